"""Rows of tangents beside a primal shape: broadcasting to it and summing back, the axes counted after the first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spread_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return rows [K, *s] as a view [K, *shape], s broadcast to `shape`."""
    missing = len(shape) - (rows.dim() - 1)
    return rows.reshape(len(rows), *(1,) * missing, *rows.shape[1:]).expand(len(rows), *shape)


def sum_rows_to(rows: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return rows [K, *s] summed over what broadcasting `shape` to s repeats: [K, *shape], in `dtype`."""
    extra = rows.dim() - 1 - len(shape)
    axes = [axis for axis in range(1, rows.dim()) if axis <= extra or shape[axis - 1 - extra] != rows.shape[axis]]
    if axes:
        rows = rows.sum(axes, keepdim=True)
    result = rows.reshape(len(rows), *shape)
    return result if dtype is None else result.to(dtype)


def after_rows(dim: int, dims: int) -> int:
    """Return the axis `dim` of a tensor with `dims` axes as an axis of its rows."""
    return dim % max(dims, 1) + 1
