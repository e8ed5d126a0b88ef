r"""Losses by row of the data at many parameter sets: what a mean is the mean of, so that its error is known too.

A loss with reduction mean or sum over rows is :math:`\sum_r l_r / \sum_r w_r` or :math:`\sum_r l_r`. Here are the
contributions l [g, R] and the weights w [R] of the losses of PyTorch, and of a mean or sum at the end of any loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.data import class_weights
from lsfast.program.batched.table import Many, aten, call_batched
from lsfast.program.cross_entropy import CrossEntropyRows

_NONE = 0

RowLosses = Callable[[tuple[Any, ...], Many], tuple[Tensor, Tensor]]

_REDUCTION_AT = {
    aten.mse_loss.default: 2,
    aten.l1_loss.default: 2,
    aten.smooth_l1_loss.default: 2,
    aten.huber_loss.default: 2,
    aten.kl_div.default: 2,
    aten.binary_cross_entropy.default: 3,
    aten.binary_cross_entropy_with_logits.default: 4,
}
_BY_CLASS = (aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default)


def row_losses(operation: OpOverload, arguments: tuple[Any, ...], dims: tuple[int, ...], rows: int) -> RowLosses | None:
    """Return what gives contributions and weights of a loss's last operation, None where rows cannot be told apart.

    `arguments` are those of the step (tensors as slots), `dims` the axes of its first argument, `rows` the data's.
    """
    if operation is aten.cross_entropy_loss.default and len(dims) >= 2 and arguments[3] != _NONE:
        return _cross_entropy
    if operation in _BY_CLASS and len(dims) >= 2 and arguments[3] != _NONE:
        return _likelihood
    if operation in _REDUCTION_AT and len(dims) >= 1 and arguments[_REDUCTION_AT[operation]] != _NONE:
        place = _REDUCTION_AT[operation]

        def elementwise(given: tuple[Any, ...], many: Many) -> tuple[Tensor, Tensor]:
            return _of_elements(call_batched(operation, (*given[:place], _NONE, *given[place + 1 :]), many), operation)

        return elementwise
    over_all = operation in (aten.mean.default, aten.sum.default) or (
        operation in (aten.mean.dim, aten.sum.dim_IntList) and len(arguments[1] or ()) in (0, len(dims))
    )
    if over_all and len(dims) >= 1 and dims[0] == rows:
        mean = operation in (aten.mean.default, aten.mean.dim)
        return lambda given, many: _reduced(given[0], mean)
    return None


def _reduced(x: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    flat = x.reshape(*x.shape[:2], -1).double()
    rows = flat.mean(2) if mean else flat.sum(2)
    return rows, rows.new_ones(rows.shape[1])


def _of_elements(x: Tensor, operation: OpOverload) -> tuple[Tensor, Tensor]:
    """Means over the elements of a row, all of one weight: their number, as the loss divides by all elements."""
    flat = x.reshape(*x.shape[:2], -1)
    return flat.sum(2, dtype=torch.float64), torch.full_like(flat[0, :, 0], flat.shape[2], dtype=torch.float64)


def _cross_entropy(arguments: tuple[Any, ...], many: Many) -> tuple[Tensor, Tensor]:
    z, target, weight, _, ignored, smoothing = arguments
    g = len(z)
    repeated = target.expand(g, *target.shape).flatten(0, 1) if not many[1] else target.flatten(0, 1)
    rows = CrossEntropyRows(z.flatten(0, 1), repeated, weight, ignored, smoothing)
    return rows.loss.view(g, -1).double(), class_weights(target[0] if many[1] else target, weight, ignored)


def _likelihood(arguments: tuple[Any, ...], many: Many) -> tuple[Tensor, Tensor]:
    z, target, weight, _, ignored = arguments
    g = len(z)
    repeated = target.expand(g, *target.shape).flatten(0, 1)
    found = aten.nll_loss_nd.default(z.flatten(0, 1), repeated, weight, _NONE, ignored)
    return found.view(g, -1).double(), class_weights(target, weight, ignored)
