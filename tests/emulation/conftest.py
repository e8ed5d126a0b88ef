"""The emulated operators as a fixture, and the schedules as a parameter. Helpers of the tests are in schedules.py.

With LSFAST_EMULATION_SANITIZE=1 the emulated operators are the sanitized ones; sanitize.py sets what else that needs.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from . import build
from .schedules import SCHEDULES, load, set_schedule


@pytest.fixture(scope="session")
def emulated() -> object:
    """`torch.ops.lsfast_emulated`: the operators with their CUDA kernels run by the emulation, on CPU tensors."""
    library = build.emulated(sanitize=os.environ.get("LSFAST_EMULATION_SANITIZE") == "1")
    torch.ops.load_library(library)
    load(library)
    return torch.ops.lsfast_emulated


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test once under each schedule."""
    set_schedule(request.param)
    yield request.param
    set_schedule("ascending")
