"""Segments of the parameter vector (filters, tensors, the whole): norms, inner products and scaling, natively.

Sums are taken in float64 in an order fixed by the segment alone, so they have the same bits on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import ops, register_fake


def segment_norms(x: Tensor, offsets: Tensor) -> Tensor:
    """Return the Euclidean norms [c, s], float64, of the segments ``x[:, offsets[i] : offsets[i + 1]]`` of x [c, n].

    float32 values neither overflow nor vanish when squared; float64 ones beyond 1e154 give Inf.
    """
    result: Tensor = ops.segment_norms(x, offsets)
    return result


def segment_dots(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """Return the inner products [c, s], float64, of the segments of x [c, n] with those of y [c, n]."""
    result: Tensor = ops.segment_dots(x, y, offsets)
    return result


def scale_segments_(x: Tensor, offsets: Tensor, factors: Tensor) -> Tensor:
    """Multiply each segment of x [c, n], in place, by its factor of [c, s] float64, rounded once to the dtype of x."""
    ops.scale_segments_(x, offsets, factors)
    return x


@register_fake("segment_norms")
def _(x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], offsets.shape[0] - 1, dtype=torch.float64)


@register_fake("segment_dots")
def _(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], offsets.shape[0] - 1, dtype=torch.float64)


@register_fake("scale_segments_")
def _(x: Tensor, offsets: Tensor, factors: Tensor) -> None:
    return None
