"""How packed tensors lie in memory: the order of the axes, and the shapes and dtypes of codes and scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsfast._native import register_fake
from lsfast.formats import QuantScheme

SCALE_DTYPES = {"e4m3": torch.float8_e4m3fn, "e8m0": torch.float8_e8m0fnu, "fp32": torch.float32}
_FIRST_BYTE_RULE = 4  # of csrc's ScaleRule: kE4m3, after which the E8M0 rules follow


def axes_in_order(dims: int, axis: int, scheme: QuantScheme) -> list[int]:
    """Return the axes in the order in which they are packed: those of a block at the end."""
    last = [axis - 1, axis] if isinstance(scheme.block, tuple) else [axis]
    return [d for d in range(dims) if d not in last] + last


def moved_shape(shape: torch.Size, axis: int, scheme: QuantScheme) -> list[int]:
    """Return the shape of a tensor whose axes are in that order; a number is a line of one."""
    sizes = list(shape) or [1]
    return [sizes[d] for d in axes_in_order(len(sizes), axis, scheme)]


def packed_shapes(shape: Sequence[int], numbers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the shapes of codes and scales of a tensor whose blocks lie along its last axis."""
    bits = 1 + numbers[0] + numbers[1]
    height, length = numbers[5], numbers[6]
    stored = bits if bits <= 8 else (16 if bits <= 16 else 32)
    *leading, last = shape
    codes = [*leading, (last * stored + 7) // 8]
    if length == 0:
        return codes, [0]
    if length == -2:
        return codes, [1]
    if length == -1:
        return codes, [*leading, 1]
    blocks = [-(-size // side) for size, side in zip(shape[-2:], (height, length)[-len(shape) :], strict=True)]
    return codes, [*shape[:-2], *blocks]


@register_fake("quantize")
def _(
    x: Tensor, amax: Tensor | None, scheme: list[int], word_inner: int, seed: int, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    codes, scales = packed_shapes(x.shape, scheme)
    rule, length, tensor_scale = scheme[3], scheme[6], scheme[7]
    scale_dtype = torch.uint8 if rule >= _FIRST_BYTE_RULE else torch.float32
    shared = 1 if length == -2 or tensor_scale else 0
    return (
        x.new_empty(codes, dtype=torch.uint8),
        x.new_empty(scales, dtype=scale_dtype),
        x.new_empty(shared, dtype=torch.float32),
    )


@register_fake("dequantize_out")
def _(codes: Tensor, scales: Tensor, amax: Tensor, out: Tensor, scheme: list[int]) -> None:
    return None
