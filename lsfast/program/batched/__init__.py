"""Operations of a captured model at many parameter sets at once, a file for each family.

An entry of the table (`table.call_batched`) is one function: the operation with a leading axis of the sets. To add one,
write it, decorate it with ``@batched("name")``, and call ``check_batched(operation, *arguments)`` in ``tests/program``:
it compares it with the operation set by set, for every choice of arguments that differ. Element-by-element operations
need no entry, and what has none runs set by set.
"""

from lsfast.program.batched import norms, products, views
from lsfast.program.batched.table import call_batched

__all__ = ["call_batched"]

FAMILIES = (norms, products, views)  # importing them enters their operations
