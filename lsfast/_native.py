"""Loads the compiled operators, `torch.ops.lsfast`, or says which command builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

try:
    import lsfast._C as library
except ImportError as error:
    raise ImportError(
        "lsfast: the compiled operators could not be loaded "
        f"({error}); build them with `pip install --no-build-isolation .` or `python setup.py build_ext --inplace`"
    ) from error

ops: Any = torch.ops.lsfast

_Function = TypeVar("_Function", bound=Callable[..., Any])


def register_fake(operator: str) -> Callable[[_Function], _Function]:
    """Decorate the function that gives the shapes an operator returns, for tracing and torch.compile."""
    return torch.library.register_fake(f"lsfast::{operator}")  # type: ignore[no-any-return]


def cpu_capability() -> str:
    """Return the instruction set of the CPU kernels: baseline, avx2 or avx512."""
    return str(library.cpu_capability)
