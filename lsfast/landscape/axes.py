"""The axes of a grid: coordinates from steps and extents, or given, rounded to the parameters' dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsfast import checks


def grid_axes(
    function: str, steps: Any, extent: Any, coordinates: Any, count: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return one vector of coordinates for each of `count` directions; `function` is for messages.

    Raises
    ------
    TypeError, ValueError
        If an axis would be empty or not finite, or there is not one for each direction.
    """
    if coordinates is not None:
        return _given(function, coordinates, count, dtype)
    pairs = _extents(function, extent, count)
    return tuple(
        _axis(function, points, low, high, dtype)
        for points, (low, high) in zip(_steps(function, steps, count), pairs, strict=True)
    )


def _steps(function: str, steps: Any, count: int) -> list[int]:
    each = [steps] * count if isinstance(steps, int) else steps
    if not isinstance(each, Sequence):
        raise TypeError(f"{function}: steps must be an integer or one for each direction, got {steps!r}")
    if len(each) != count:
        raise ValueError(f"{function}: steps must be one for each of {count} directions, got {len(each)}")
    return [checks.positive_integer(function, "steps", value) for value in each]


def _extents(function: str, extent: Any, count: int) -> list[tuple[float, float]]:
    if isinstance(extent, (int, float)) and not isinstance(extent, bool):
        if not 0.0 < extent < math.inf:
            raise ValueError(f"{function}: extent must be a finite number > 0, got {extent}")
        return [(-float(extent), float(extent))] * count
    try:
        pairs = [(float(low), float(high)) for low, high in extent]
    except (TypeError, ValueError):
        raise TypeError(
            f"{function}: extent must be a number or a pair (low, high) for each direction, got {extent!r}"
        ) from None
    if len(pairs) != count:
        raise ValueError(f"{function}: extent must be one pair for each of {count} directions, got {len(pairs)}")
    for low, high in pairs:
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"{function}: extent must be finite with low < high, got ({low}, {high})")
    return pairs


def _axis(function: str, count: int, low: float, high: float, dtype: torch.dtype) -> Tensor:
    if count == 1:
        axis = torch.tensor([low / 2 + high / 2], dtype=torch.float64)
    else:
        # Weighted ends: antisymmetric to the bit where low = -high, so the middle is exactly 0.
        i = torch.arange(count, dtype=torch.float64)
        axis = low * ((count - 1 - i) / (count - 1)) + high * (i / (count - 1))
    rounded = axis.to(dtype)
    if not (rounded.diff() > 0).all() or not rounded.isfinite().all():
        raise ValueError(f"{function}: extent must hold {count} different numbers of {dtype}, got ({low}, {high})")
    return rounded


def _given(function: str, coordinates: Any, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if not isinstance(coordinates, (Sequence, Tensor)) or len(coordinates) != count:
        got = len(coordinates) if hasattr(coordinates, "__len__") else type(coordinates).__name__
        raise ValueError(f"{function}: coordinates must be one vector for each of {count} directions, got {got}")
    axes = tuple(torch.as_tensor(axis, dtype=torch.float64).detach().cpu().to(dtype) for axis in coordinates)
    for axis in axes:
        if axis.dim() != 1 or len(axis) == 0:
            raise ValueError(
                f"{function}: coordinates must be vectors that are not empty, got shape {list(axis.shape)}"
            )
        if not axis.isfinite().all():
            raise ValueError(f"{function}: coordinates must be finite in {dtype}, got {axis[~axis.isfinite()][0]}")
    return axes
