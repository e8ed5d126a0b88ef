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

from lsfast._native import ops
from lsfast.data import class_weights
from lsfast.program.batched.table import Many, aten, call_batched
from lsfast.program.cross_entropy import CrossEntropyRows

_NONE = 0

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


class RowLosses:
    """The last operation of a loss on one batch, taken apart by rows.

    Attributes
    ----------
    weights
        [R] float64: w, the same at all sets; known after the first call of `rows`.
    """

    weights: Tensor

    def __init__(self, operation: OpOverload) -> None:
        self.operation = operation

    def rows(self, arguments: tuple[Any, ...], many: Many) -> Tensor:
        """Return the contributions [g, R] float64, given the operation's arguments; the first differs between sets."""
        raise TypeError(f"{type(self).__name__} does not define rows")


def row_losses(
    operation: OpOverload, arguments: tuple[Any, ...], shape: tuple[int, ...], rows: int
) -> Callable[[], RowLosses] | None:
    """Return what makes the `RowLosses` of a loss's last operation, None where rows cannot be told apart.

    `arguments` are those of the step (tensors as slots), `shape` is that of its first argument, `rows` the data's.
    """
    if operation is aten.cross_entropy_loss.default and len(shape) >= 2 and arguments[3] != _NONE:
        return lambda: _CrossEntropy(operation)
    if operation in _BY_CLASS and len(shape) >= 2 and arguments[3] != _NONE:
        return lambda: _Likelihood(operation)
    if operation in _REDUCTION_AT and len(shape) >= 1 and arguments[_REDUCTION_AT[operation]] != _NONE:
        return lambda: _Elementwise(operation)
    over_all = operation in (aten.mean.default, aten.sum.default) or (
        operation in (aten.mean.dim, aten.sum.dim_IntList) and len(arguments[1] or ()) in (0, len(shape))
    )
    return (lambda: _Reduced(operation)) if over_all and len(shape) >= 1 and shape[0] == rows else None


class _Reduced(RowLosses):
    """A mean or sum of what a loss of one's own gives for each row."""

    def rows(self, arguments: tuple[Any, ...], many: Many) -> Tensor:
        x = arguments[0]
        flat = x.reshape(*x.shape[:2], -1)
        mean = self.operation in (aten.mean.default, aten.mean.dim)
        rows: Tensor = flat.mean(2, dtype=torch.float64) if mean else flat.sum(2, dtype=torch.float64)
        self.weights = rows.new_ones(rows.shape[1])
        return rows


class _Elementwise(RowLosses):
    """Sums over the elements of a row, whose number is the weight: a mean divides by all elements."""

    def rows(self, arguments: tuple[Any, ...], many: Many) -> Tensor:
        place = _REDUCTION_AT[self.operation]
        x = call_batched(self.operation, (*arguments[:place], _NONE, *arguments[place + 1 :]), many)
        flat = x.reshape(*x.shape[:2], -1)
        self.weights = torch.full_like(flat[0, :, 0], flat.shape[2], dtype=torch.float64)
        rows: Tensor = flat.sum(2, dtype=torch.float64)
        return rows


class _Likelihood(RowLosses):
    def rows(self, arguments: tuple[Any, ...], many: Many) -> Tensor:
        z, target, weight, _, ignored = arguments
        repeated = target.expand(len(z), *target.shape).flatten(0, 1)
        found = aten.nll_loss_nd.default(z.flatten(0, 1), repeated, weight, _NONE, ignored)
        self.weights = class_weights(target, weight, ignored)
        return found.view(len(z), -1).double()  # type: ignore[no-any-return]


class _CrossEntropy(RowLosses):
    """The targets of each number of sets are laid out once, for logits whose classes lie last."""

    def __init__(self, operation: OpOverload) -> None:
        super().__init__(operation)
        self._given: dict[int, tuple[Tensor, Tensor | None, Tensor]] = {}

    def rows(self, arguments: tuple[Any, ...], many: Many) -> Tensor:
        z, target, weight, _, ignored, smoothing = arguments
        g = len(z)
        if z.dim() > 3 or many[1] or target.dtype.is_floating_point:
            repeated = target.flatten(0, 1) if many[1] else target.expand(g, *target.shape).flatten(0, 1)
            rows = CrossEntropyRows(z.flatten(0, 1), repeated, weight, ignored, smoothing)
            self.weights = class_weights(target[0] if many[1] else target, weight, ignored)
            return rows.loss.view(g, -1).double()
        if g not in self._given:
            self.weights = class_weights(target, weight, ignored)
            real = torch.float64 if z.dtype == torch.float64 else torch.float32
            kept = (target != ignored).to(real)
            self._given[g] = (
                target.long().repeat(g)[:, None],
                None if weight is None else weight.to(real),
                kept.repeat(g)[:, None],
            )
        index, class_weight, factor = self._given[g]
        logits = z.reshape(-1, z.shape[-1], 1)
        loss = ops.cross_entropy_forward(logits, index, None, class_weight, factor, float(smoothing))[2]
        return loss.view(g, -1).double()  # type: ignore[no-any-return]
