"""Products at many parameter sets: matrix products as batched ones, convolutions, attention, embeddings.

A factor that all sets share makes one wide product of the others; two that differ make a batched one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.batched.table import Many, align, as_many, aten, batched, one_by_one, sets_of
from lsfast.program.rules.convolution import memory_format
from lsfast.program.rules.generic import call_operation


@batched("linear")
def _linear(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, weight, bias = arguments
    of_x, of_weight, of_bias = many
    if weight.dim() - bool(of_weight) == 1:
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    if not of_weight and not of_bias:
        return aten.linear.default(x, weight, bias)  # type: ignore[no-any-return]
    g = next(len(t) for t, flag in zip(arguments, many, strict=True) if flag)
    lead = x.shape[1:-1] if of_x else x.shape[:-1]
    rows = x.reshape(g, -1, x.shape[-1]) if of_x else x.reshape(-1, x.shape[-1])
    if not of_weight:
        shared: Tensor = aten.linear.default(x, weight, None)
        added = bias.reshape(g, *(1,) * len(lead), -1)
        return shared.add_(added) if of_x else shared + added
    columns = weight.mT
    rows = rows if of_x else rows.expand(g, *rows.shape)
    added = None if bias is None else bias[:, None] if of_bias else bias
    y = torch.bmm(rows, columns) if added is None else torch.baddbmm(added, rows, columns)
    return y.view(g, *lead, weight.shape[1])


@batched("matmul", "mm", "bmm", "mv", "dot")
def _matmul(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    a, b = arguments
    ranks = (a.dim() - bool(many[0]), b.dim() - bool(many[1]))
    left = a.unsqueeze(-2) if ranks[0] == 1 else a
    right = b.unsqueeze(-1) if ranks[1] == 1 else b
    rank = max(2, *ranks)
    y = torch.matmul(align(left, rank) if many[0] else left, align(right, rank) if many[1] else right)
    if ranks[0] == 1:
        y = y.squeeze(-2)
    return y.squeeze(-1) if ranks[1] == 1 else y


@batched("addmm", "baddbmm")
def _add_product(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    c, a, b, beta, alpha = arguments
    rank = 2 if operation is aten.addmm.default else 3
    product = _matmul(aten.matmul.default, (a, b), many[1:3])
    added = align(c, rank) if many[0] else c
    return torch.add(beta * added, product, alpha=alpha)


@batched("convolution", "conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def _convolution(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    """Put kernels side by side over shared images, or take set by set: grouped convolutions are slower than either."""
    x, weight, bias, *options = arguments
    of_x, of_weight, of_bias = many[:3]
    dims = weight.dim() - bool(of_weight) - 2
    if x.dim() - bool(of_x) != dims + 2:  # a single image
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    memory = memory_format(x, dims) if dims > 1 else torch.contiguous_format
    if of_x and not of_weight and not of_bias:
        y = call_operation(operation, (x.flatten(0, 1).contiguous(memory_format=memory), weight, bias, *options))
        return y.unflatten(0, x.shape[:2])  # type: ignore[no-any-return]
    transposed = operation is aten.convolution.default and options[3]
    if not of_x and of_weight and options[-1] == 1 and not transposed:
        g, channels = weight.shape[:2]
        added = None if bias is None else as_many(bias, bool(of_bias), g).reshape(-1)
        images = x.contiguous(memory_format=memory)
        y = call_operation(operation, (images, weight.flatten(0, 1), added, *options))
        return y.unflatten(1, (g, channels)).movedim(1, 0)  # type: ignore[no-any-return]
    results = []
    for index in range(sets_of(arguments, many)):
        images, *given = (t[index] if flag else t for t, flag in zip(arguments, many, strict=True))
        results.append(call_operation(operation, (images.contiguous(memory_format=memory), *given)))
    if len(results) == 1:
        return results[0][None]  # type: ignore[no-any-return]
    shape = (len(results) * len(results[0]), *results[0].shape[1:])
    together: Tensor = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory).unflatten(
        0, (len(results), -1)
    )
    for part, result in zip(together, results, strict=True):
        part.copy_(result)
    return together


@batched("scaled_dot_product_attention")
def _attention(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    query, key, value, mask, *options = arguments
    g = next(len(t) for t, flag in zip(arguments, many, strict=True) if flag)
    if any(t.dim() - bool(flag) != 4 for t, flag in zip(arguments[:3], many, strict=False)):
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    spread = [as_many(t, bool(flag), g).flatten(0, 1) for t, flag in zip(arguments[:3], many, strict=False)]
    if isinstance(mask, Tensor) and (many[3] or mask.dim() > 2):
        lead = (1,) * (4 - mask.dim() + bool(many[3]))
        mask = mask.reshape(g, *lead, *mask.shape[1:]) if many[3] else mask.reshape(1, *lead, *mask.shape)
        mask = mask.expand(g, query.shape[-4], *mask.shape[2:]).flatten(0, 1)
    y = call_operation(operation, (*spread, mask, *options))
    return y.unflatten(0, (g, -1))  # type: ignore[no-any-return]


@batched("embedding")
def _embedding(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    weight, index = arguments[:2]
    if not many[0] or many[1]:
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    found = weight.index_select(1, index.reshape(-1))
    return found.view(len(weight), *index.shape, weight.shape[2])  # type: ignore[no-any-return]


@batched("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d")
@batched(
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "constant_pad_nd", "pad", "pixel_shuffle"
)
@batched(
    "upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_nearest1d.vec", "upsample_linear1d.vec", "im2col"
)
def _by_image(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    """Operations on each image of a batch alone."""
    x = arguments[0]
    pads = operation in (aten.constant_pad_nd.default, aten.pad.default)
    if x.dim() < 4 or any(many[1:]) or (pads and len(arguments[1]) > 2 * (x.dim() - 3)):
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    y = call_operation(operation, (x.flatten(0, 1), *arguments[1:]))
    return y.unflatten(0, x.shape[:2])  # type: ignore[no-any-return]
