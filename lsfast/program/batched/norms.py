"""Norms at many parameter sets: normalized without weight and bias, which then act set by set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.batched.table import Many, as_many, aten, batched, one_by_one


@batched("layer_norm", "rms_norm")
def _over_last(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, shape, weight = arguments[:3]
    is_layer = operation is aten.layer_norm.default
    bias, eps = (arguments[3], arguments[4]) if is_layer else (None, arguments[3])
    apart = bool(many[2]) or (is_layer and bool(many[3]))
    given = (None, None) if apart else (weight, bias)
    y: Tensor = aten.layer_norm(x, shape, *given, eps) if is_layer else aten.rms_norm(x, shape, given[0], eps)
    if not apart:
        return y
    ones = x.dim() - bool(many[0]) - len(shape)
    w = None if weight is None else _spread(weight, bool(many[2]), ones)
    b = None if bias is None else _spread(bias, bool(many[3]), ones)
    if not many[0]:  # its own memory for each set
        if w is None:
            assert b is not None
            return y + b
        return y * w if b is None else torch.addcmul(b, y, w)
    if w is not None:
        y.mul_(w)
    return y if b is None else y.add_(b)


def _spread(x: Tensor, flag: bool, ones: int) -> Tensor:
    return x.reshape(len(x), *(1,) * ones, *x.shape[1:]) if flag else x


@batched("batch_norm")
def _batch_norm(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, weight, bias, mean, variance, training, _, eps, _ = arguments
    g = next(len(t) for t, flag in zip(arguments, many, strict=True) if flag)
    x = as_many(x, bool(many[0]), g)
    if training or mean is None:
        axes = [1, *range(3, x.dim())]
        variance, mean = torch.var_mean(x, axes, correction=0)
    else:
        mean, variance = (t if flag else t[None] for t, flag in ((mean, many[3]), (variance, many[4])))
    return normalize_channels(x, _rows(weight, bool(many[1])), _rows(bias, bool(many[2])), mean, variance, eps)


def normalize_channels(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias of x [g, B, C, *], the others [g or 1, C]."""
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (x.dim() - 3) * (1,)
    scale, shift = (t.to(x.dtype).reshape(len(t), 1, -1, *shape) for t in (scale, shift))
    return torch.addcmul(shift, x, scale)


def _rows(x: Tensor | None, flag: bool) -> Tensor | None:
    return x if x is None or flag else x[None]


@batched("group_norm")
def _group_norm(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, groups, weight, bias, eps, cudnn = arguments
    if not many[0] or x.dim() < 3:
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    y = aten.group_norm(x.flatten(0, 1), groups, None, None, eps, cudnn).unflatten(0, x.shape[:2])
    shape = (1, -1, *(1,) * (x.dim() - 3))
    if weight is not None:
        y = y.mul_(_rows_of(weight, bool(many[2]), shape))
    return y if bias is None else y.add_(_rows_of(bias, bool(many[3]), shape))  # type: ignore[no-any-return]


def _rows_of(x: Tensor, flag: bool, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(len(x) if flag else 1, *shape)
