r"""Losses of outputs z and targets t, with reduction none, mean or sum.

Cross-entropy runs on the fused kernels of ``csrc/curvature/cross_entropy.h``. NLL is linear in its log-probabilities.
The elementwise losses know f' (`slope`) and f'' (`bend`) of each element, scaled for their reduction:

    jvp  y' = sum f' x'      vjp  xbar = f' ybar      vjp_jvp  xbar' = f' ybar' + f'' x' ybar

The losses of a difference x - t (mse, l1, smooth l1, huber) take an active target too: its derivatives are those of x
with the sign turned. Class weights, or targets of the other losses, that depend on the parameters are left to the
generic rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast.program.cross_entropy import CrossEntropyRows
from lsfast.program.rules.generic import call_operation, generic_rule
from lsfast.program.rules.rule import Activity, Rule, register_rule, rule_for

aten = torch.ops.aten
_NONE, _MEAN = 0, 1


class CrossEntropy(Rule):
    """Softmax cross-entropy with class indices or probabilities: what is kept beside z is a few numbers a row.

    The adjoint tangents of the logits take the place of their tangents: with a large vocabulary they are by far the
    largest tensors of a product.
    """

    lent = 0

    def forward(
        self, z: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int, smoothing: float
    ) -> Tensor:
        self.rows = CrossEntropyRows(z, target, weight, ignored, smoothing, mean=reduction == _MEAN)
        self.reduced = reduction != _NONE
        loss = self.rows.loss
        if not self.reduced:
            return loss.view(self.rows.row_shape).to(z.dtype)
        empty_mean = reduction == _MEAN and self.rows.count == 0
        return (loss.sum() / 0 if empty_mean else loss.sum()).to(z.dtype)

    def jvp(self, *tangents: Any) -> Tensor:
        by_row = self.rows.jvp(tangents[0])
        dtype = tangents[0].dtype
        return by_row.sum(1).to(dtype) if self.reduced else by_row.view(-1, *self.rows.row_shape).to(dtype)

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        return (self.rows.vjp(self._by_row(adjoints)),)

    def hold(self, adjoint: Any) -> None:
        self.curvature = self._by_row(adjoint[None])[0] * self.rows.mass

    def vjp_jvp(self, adjoints: Any, *tangents: Any) -> tuple[Any, ...]:
        return (self.rows.product(self.curvature, tangents[0], self._by_row(adjoints), in_place=self.may_overwrite),)

    def _by_row(self, adjoints: Tensor) -> Tensor:
        """Adjoints of the loss [k], or of its rows [k, ...], as [k, rows]; expanded, not copied."""
        if self.reduced:
            return adjoints[:, None].expand(-1, self.rows.count)
        return adjoints.reshape(len(adjoints), -1)


class NegativeLogLikelihood(Rule):
    """y = - sum of factor[i] weight[t] z[i, t] over rows i: linear in z."""

    curved = False

    def forward(self, z: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> Tensor:
        self.axis = 0 if z.dim() == 1 else 1
        self.shape, self.reduced = z.shape, reduction != _NONE
        kept = target != ignored
        self.index = torch.where(kept, target, 0)
        factor = kept.to(z.dtype) if weight is None else weight[self.index] * kept
        self.slope = -(factor / factor.sum() if reduction == _MEAN else factor)
        result: Tensor = aten.nll_loss_nd.default(z, target, weight, reduction, ignored)
        return result

    def jvp(self, *tangents: Any) -> Tensor:
        chosen: Tensor = tangents[0].gather(self.axis + 1, self._index(len(tangents[0]))).squeeze(self.axis + 1)
        return chosen.reshape(len(chosen), -1) @ self.slope.reshape(-1) if self.reduced else chosen * self.slope

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        per_row = adjoints.view(-1, *[1] * self.slope.dim()) if self.reduced else adjoints
        result = adjoints.new_zeros(len(adjoints), *self.shape)
        values = (self.slope * per_row).unsqueeze(self.axis + 1)
        return (result.scatter_(self.axis + 1, self._index(len(adjoints)), values),)

    def _index(self, k: int) -> Tensor:
        return self.index.unsqueeze(self.axis).expand(k, *self.shape[: self.axis], 1, *self.shape[self.axis + 1 :])


class Elementwise(Rule):
    """A loss of each element of x, given the target and options; see the file's head."""

    operation: Any
    reduction_at = 2

    def forward(self, *args: Any) -> Tensor:
        x, target, reduction = args[0], args[1], args[self.reduction_at]
        if x.shape != target.shape:  # PyTorch's functions broadcast before they call the operation
            name = self.operation.name().split("::")[-1]
            raise ValueError(f"{name}: target must have shape {list(x.shape)}, got {list(target.shape)}")
        self.dim, self.reduced = x.dim(), reduction != _NONE
        count = x.numel()
        self.scale = (1.0 / count if count else float("nan")) if reduction == _MEAN else 1.0
        self.given, self.slope = args, self.slope_of(*args)
        if self.scale != 1.0:
            self.slope = self.slope * self.scale
        result: Tensor = call_operation(self.operation, args)
        return result

    def slope_of(self, *args: Any) -> Tensor:
        """Return f' of each element."""
        raise TypeError(f"{type(self).__name__} does not define its slope")

    def bend_of(self, *args: Any) -> Tensor | float:
        """Return f'' of each element, or one number for all."""
        raise TypeError(f"{type(self).__name__} does not define its bend")

    def jvp(self, *tangents: Any) -> Tensor:
        moved = self._moved(tangents)
        if not self.reduced:
            return moved * self.slope
        return moved.reshape(len(moved), -1) @ self.slope.reshape(-1)

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        return self._both(self._spread(adjoints) * self.slope)

    def hold(self, adjoint: Any) -> None:
        if self.curved:
            self.bend = self.bend_of(*self.given) * (self.scale * adjoint)
        self.given = ()

    def vjp_jvp(self, adjoints: Any, *tangents: Any) -> tuple[Any, ...]:
        if not self.curved:
            return self.vjp(adjoints)
        return self._both((self._moved(tangents) * self.bend).addcmul_(self._spread(adjoints), self.slope))

    def _spread(self, adjoints: Tensor) -> Tensor:
        """Adjoints [k] of a reduced loss as [k, 1, ...]."""
        return adjoints.view(-1, *[1] * self.dim) if self.reduced else adjoints

    def _moved(self, tangents: tuple[Any, ...]) -> Tensor:
        """Return the tangent of what f is a function of, x or x - t, [k, *s]."""
        x, target = tangents[:2]
        moved: Tensor = x if target is None else -target if x is None else x - target
        return moved

    def _both(self, adjoint: Tensor) -> tuple[Any, ...]:
        """Return the adjoints of x and t from that of x - t."""
        return (adjoint if self.active[0] else None, -adjoint if self.active[1] else None)


def _difference(args: tuple[Any, ...]) -> Tensor:
    difference: Tensor = args[0] - args[1]
    return difference


@rule_for(aten.mse_loss.default)
class MeanSquaredError(Elementwise):
    """f = (x - t)^2."""

    operation = aten.mse_loss.default

    def slope_of(self, *args: Any) -> Tensor:
        return _difference(args).mul_(2)

    def bend_of(self, *args: Any) -> float:
        return 2.0


@rule_for(aten.l1_loss.default)
class AbsoluteError(Elementwise):
    """f = |x - t|."""

    operation = aten.l1_loss.default
    curved = False

    def slope_of(self, *args: Any) -> Tensor:
        return _difference(args).sign_()


@rule_for(aten.smooth_l1_loss.default)
class SmoothAbsoluteError(Elementwise):
    """f = d^2 / (2 beta) for |d| < beta, else |d| - beta / 2, with d = x - t."""

    operation = aten.smooth_l1_loss.default

    def slope_of(self, *args: Any) -> Tensor:
        difference, beta = _difference(args), args[3]
        return difference.div_(beta).clamp_(-1, 1) if beta > 0 else difference.sign_()

    def bend_of(self, *args: Any) -> Tensor:
        inside = _difference(args).abs_().lt_(args[3])
        return inside.div_(args[3]) if args[3] > 0 else inside


@rule_for(aten.huber_loss.default)
class Huber(Elementwise):
    """f = d^2 / 2 for |d| < delta, else delta (|d| - delta / 2), with d = x - t."""

    operation = aten.huber_loss.default

    def slope_of(self, *args: Any) -> Tensor:
        return _difference(args).clamp_(-args[3], args[3])

    def bend_of(self, *args: Any) -> Tensor:
        return _difference(args).abs_().lt_(args[3])


class BinaryCrossEntropyWithLogits(Elementwise):
    """f = w ((1 - t) x + l log(1 + e^-x)), l = 1 + (pos_weight - 1) t."""

    operation = aten.binary_cross_entropy_with_logits.default
    reduction_at = 4

    def slope_of(self, *args: Any) -> Tensor:
        x, target, weight, pos_weight = args[:4]
        if pos_weight is None:
            return _weighted(x.sigmoid().sub_(target), weight)
        return _weighted(1 - target - _log_weight(target, pos_weight) * (-x).sigmoid_(), weight)

    def bend_of(self, *args: Any) -> Tensor:
        x, target, weight, pos_weight = args[:4]
        bend = x.sigmoid().mul_((-x).sigmoid_())
        return _weighted(bend if pos_weight is None else bend * _log_weight(target, pos_weight), weight)


class BinaryCrossEntropy(Elementwise):
    """f = -w (t log x + (1 - t) log(1 - x))."""

    operation = aten.binary_cross_entropy.default
    reduction_at = 3

    def slope_of(self, *args: Any) -> Tensor:
        x, target, weight = args[:3]
        # PyTorch's bound on the denominator, where a probability is 0 or 1.
        return _weighted((x - target).div_(((1 - x) * x).clamp_min_(1e-12)), weight)

    def bend_of(self, *args: Any) -> Tensor:
        x, target, weight = args[:3]
        return _weighted(target / x.square() + (1 - target) / (1 - x).square(), weight)


class KullbackLeibler(Elementwise):
    """f = t (log t - x); with log_target, f = e^t (t - x)."""

    operation = aten.kl_div.default
    curved = False

    def slope_of(self, *args: Any) -> Tensor:
        target: Tensor = args[1]
        return target.exp().neg_() if args[3] else -target


def _log_weight(target: Tensor, pos_weight: Tensor) -> Tensor:
    return 1 + (pos_weight - 1) * target


def _weighted(value: Tensor, weight: Tensor | None) -> Tensor:
    return value if weight is None else value * weight


def _register_in_first(operation: Any, rule: type[Rule]) -> None:
    """Enter the rule of an operation that is active in its first argument alone; the generic one serves the rest."""
    generic = generic_rule(operation)

    def make(active: Activity) -> Rule:
        return rule(active) if active[0] and not any(active[1:]) else generic(active)

    register_rule(operation, make)


_register_in_first(aten.cross_entropy_loss.default, CrossEntropy)
for _operation in (aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default):
    _register_in_first(_operation, NegativeLogLikelihood)
_register_in_first(aten.binary_cross_entropy_with_logits.default, BinaryCrossEntropyWithLogits)
_register_in_first(aten.binary_cross_entropy.default, BinaryCrossEntropy)
_register_in_first(aten.kl_div.default, KullbackLeibler)
