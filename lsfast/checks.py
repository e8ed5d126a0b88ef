"""Checks of arguments: one line naming the function, the argument, what it was and what was expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positive_integer(function: str, name: str, value: object, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`, else raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")
    return value


def seed(function: str, value: object) -> int:
    """Return `value` if it is a seed, an integer in 0 .. 2^63 - 1, else raise."""
    positive_integer(function, "seed", value, least=0)
    if value >= 2**63:  # type: ignore[operator]
        raise ValueError(f"{function}: seed must be below 2**63, got {value}")
    return value  # type: ignore[return-value]


def one_of(function: str, name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, else raise."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{function}: {name} must be one of {expected}, got {value!r}")
    return str(value)


def floating(function: str, name: str, x: object) -> Tensor:
    """Return `x` if it is a tensor of real floating-point numbers, else raise."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"{function}: {name} must be a floating-point tensor, got {x.dtype}")
    return x


def axis(function: str, x: Tensor, value: object) -> int:
    """Return `value`, counted from the end, if it is an axis of `x` (of which a number has one), else raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: axis must be an integer, got {value!r}")
    dims = max(x.dim(), 1)
    if not -dims <= value < dims:
        raise ValueError(f"{function}: axis must lie in {-dims}..{dims - 1}, got {value}")
    return value if value < 0 else value - dims


def like(function: str, name: str, x: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `x` if it is a floating-point tensor of the given dtype and device, else raise."""
    tensor = floating(function, name, x)
    if tensor.dtype != dtype:
        raise ValueError(f"{function}: {name} must have dtype {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{function}: {name} must be on {device}, got {tensor.device}")
    return tensor


def finite_number(function: str, name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number, else raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}: {name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{function}: {name} must be finite, got {value}")
    return float(value)
