"""The demo: three small models trained on real images, analysed by everything lsfast has, in one report.

`run_demo` is what ``lsfast demo`` calls. Everything it shows comes from the public functions of lsfast.
"""

from lsfast.studies.demo.run import run_demo

__all__ = ["run_demo"]
