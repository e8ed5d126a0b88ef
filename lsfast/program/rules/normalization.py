r"""Rules of group, instance and batch norm (with batch or running statistics); layer and RMS norm are in layer_norm.py.

All are :math:`y = w \hat x + b`, :math:`\hat x = r (x - \mu)`; the formulas of the four parts are in
csrc/curvature/normalization.h. Here w is the same for a whole plane, so everything they need of a tensor are a few sums
over planes (float64, [k, groups, channels]); the formulas are evaluated on those, and give the coefficients of one pass
that is linear in the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast._native import ops, register_fake
from lsfast.program.rules.layer_norm import wide_dtype
from lsfast.program.rules.rule import Rule, rule_for

aten = torch.ops.aten


class _ChannelNorm(Rule):
    """Norms whose weight and bias belong to channels (axis 1); a subclass's `forward` calls `keep`.

    Statistics are shared by `width` neighbouring channels of one sample (mean, rstd [samples, channels]), by a channel
    of all samples ([1, channels]), or are constants (`constant`).
    """

    x_place, weight_place, bias_place = 0, 1, 2

    def keep(
        self, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, width: int = 1, constant: bool = False
    ) -> None:
        groups = mean.numel() // x.shape[1]
        last = x.movedim(1, -1)
        self.channels_last = groups == 1 and not x.is_contiguous() and last.is_contiguous()
        self.shape = x.shape
        self.x = self._flat(x).contiguous()
        self.mean = mean.reshape(groups, -1).to(wide_dtype(x.dtype)).contiguous()
        self.rstd = rstd.reshape(groups, -1).double()
        self.parameter_dtype = x.dtype if weight is None else weight.dtype
        self.weight = torch.ones_like(self.rstd[:1]) if weight is None else weight.reshape(1, -1).double()
        self.width, self.constant = width, constant
        self.count = width * x.numel() // max(1, groups * x.shape[1])  # elements that share statistics

    def _flat(self, x: Tensor) -> Tensor:
        """View [..., N, C, *] as [..., samples, channels, size]; with channels last as [..., N *, channels, 1]."""
        lead = x.shape[: x.dim() - len(self.shape)]
        if self.channels_last:
            return x.movedim(len(lead) + 1, -1).reshape(*lead, -1, self.shape[1], 1)
        return x.reshape(*lead, *self.shape[:2], self.shape[2:].numel())

    def _shaped(self, rows: Tensor) -> Tensor:
        if self.channels_last:
            samples, channels, *size = self.shape
            return rows.reshape(len(rows), samples, *size, channels).movedim(-1, 2)
        return rows.reshape(len(rows), *self.shape)

    def _average(self, sums: Tensor) -> Tensor:
        """Return the mean over all that share statistics, from sums over planes [..., groups, channels]."""
        if self.constant:
            return torch.zeros_like(sums)
        if self.width > 1:
            shared = sums.unflatten(-1, (-1, self.width))
            sums = shared.sum(-1, keepdim=True).expand_as(shared).flatten(-2)
        return sums / self.count

    def _parameter_rows(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.reshape(len(rows), 1, -1).double()

    def _linear(
        self,
        centred: Any,
        one: Any,
        of_a: Any,
        a: Tensor | None,
        of_b: Any = 0.0,
        b: Any = None,
        of_y: Any = 0.0,
        y: Any = None,
    ) -> Tensor:
        """Return ``centred * (x - mean) + one + of_a * a + ...``; coefficients broadcast to [k, groups, channels]."""
        terms = (centred, one, of_a, of_b, of_y)
        rows = len(a) if a is not None else max(len(term) for term in terms if isinstance(term, Tensor))
        shape = (5, rows, *self.mean.shape)
        coefficients = torch.empty(shape, dtype=self.mean.dtype, device=self.x.device)
        for place, term in zip(coefficients, terms, strict=True):
            if isinstance(term, Tensor):
                place.copy_(term)
            else:
                place.fill_(term)
        return self._shaped(ops.channel_norm_linear(coefficients, self.x, self.mean, a, b, y))

    def jvp(self, *tangents: Any) -> Any:
        x = tangents[self.x_place]
        weight = self._parameter_rows(tangents[self.weight_place])
        bias = self._parameter_rows(tangents[self.bias_place])
        slope = 0.0 if weight is None else self.rstd * weight
        offset: Any = 0.0 if bias is None else bias
        if x is None:
            return self._linear(slope, offset, 0.0, None)
        x = self._flat(x)
        scale = self.weight * self.rstd
        if not self.constant:
            sums = ops.channel_norm_sums(x, self.x, self.mean, None)
            m1, m2 = self._average(sums[0]), self._average(self.rstd * sums[1])
            slope = slope - scale * self.rstd * m2
            offset = offset - scale * m1
        return self._linear(slope, offset, scale, x)

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        rows, r = self._flat(_first(adjoints)), self.rstd
        wants_x, wants_weight, wants_bias = self._wants()
        x_bar = weight_bar = bias_bar = None
        if wants_weight or wants_bias or not self.constant:
            sums = ops.channel_norm_sums(rows, self.x, self.mean, None)
        if wants_x and self.constant:
            x_bar = self._linear(0.0, 0.0, r * self.weight, rows)
        elif wants_x:
            c1, c2 = self._average(self.weight * sums[0]), self._average(r * self.weight * sums[1])
            x_bar = self._linear(-r * r * c2, -r * c1, r * self.weight, rows)
        if wants_weight:
            weight_bar = (r * sums[1]).sum(1).to(self.parameter_dtype)
        if wants_bias:
            bias_bar = sums[0].sum(1).to(self.parameter_dtype)
        return self._placed(x_bar, weight_bar, bias_bar)

    def hold(self, adjoint: Any) -> None:
        self.held = self._flat(_first(adjoint))
        sums = ops.channel_norm_sums(self.held[None], self.x, self.mean, None)[:, 0]
        self.held_sum, self.held_moment = sums[0], self.rstd * sums[1]  # of ybar and ybar xhat

    def vjp_jvp(self, adjoints: Any, *tangents: Any) -> tuple[Any, ...]:
        x = tangents[self.x_place]
        if x is None:  # with a tangent of w alone, only xbar would differ
            return self.vjp(adjoints)
        rows, x = self._flat(_first(adjoints)), self._flat(x)
        w, r = self.weight, self.rstd
        weight = self._parameter_rows(tangents[self.weight_place])
        wants_weight, wants_bias = self._wants()[1:]
        weight_bar = bias_bar = None
        p1, p2 = self.held_sum, self.held_moment
        t3: Any = 0.0
        if wants_weight or wants_bias or not self.constant:
            sums = ops.channel_norm_sums(rows, self.x, self.mean, None)
            a1, a2 = sums[0], r * sums[1]
        if wants_weight or not self.constant:
            t1, t2, t3 = ops.channel_norm_sums(x, self.x, self.mean, self.held)
            m1, m2 = self._average(t1), self._average(r * t2)
        of_held = r * weight if weight is not None else 0.0
        if self.constant:
            if weight is None:
                x_bar = self._linear(0.0, 0.0, r * w, rows)
            else:
                x_bar = self._linear(0.0, 0.0, r * w, rows, 0.0, x, of_held, self.held)
        else:
            c1, c2 = self._average(w * p1), self._average(w * p2)
            e1, e2 = w * a1, w * a2
            if weight is not None:
                e1, e2 = e1 + weight * p1, e2 + weight * p2
            e1, e2, e3 = self._average(e1), self._average(e2), self._average(w * t3)
            offset = r * r * (m2 * c1 + c2 * m1) - r * e1
            slope = -r * r * (e3 - m1 * c1 - 3.0 * m2 * c2) - r * e2
            x_bar = self._linear(r * slope, offset, r * w, rows, -r * r * c2, x, of_held - r * r * m2 * w, self.held)
        if wants_weight:
            weight_bar = (a2 + r * (t3 - m1 * p1 - m2 * p2)).sum(1).to(self.parameter_dtype)
        if wants_bias:
            bias_bar = a1.sum(1).to(self.parameter_dtype)
        return self._placed(x_bar, weight_bar, bias_bar)

    def _wants(self) -> tuple[bool, bool, bool]:
        places = (self.x_place, self.weight_place, self.bias_place)
        return bool(self.active[places[0]]), bool(self.active[places[1]]), bool(self.active[places[2]])

    def _placed(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        result: list[Any] = [None] * len(self.active)
        result[self.x_place] = x
        result[self.weight_place], result[self.bias_place] = weight, bias
        return tuple(result)


def _first(adjoint: Any) -> Tensor:
    result: Tensor = adjoint[0] if isinstance(adjoint, (tuple, list)) else adjoint
    return result


def _statistics(x: Tensor, shape: tuple[int, ...], axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd of x viewed as `shape` over `axes`, in the dtype of the arithmetic."""
    variance, mean = torch.var_mean(x.reshape(shape).to(wide_dtype(x.dtype)), axes, correction=0)
    return mean, torch.rsqrt(variance + eps)


@rule_for(aten.group_norm.default)
class GroupNorm(_ChannelNorm):
    """``group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True)``."""

    weight_place, bias_place = 2, 3

    def forward(self, x: Tensor, groups: int, weight: Any, bias: Any, eps: float, *_: Any) -> Any:
        samples, channels = x.shape[:2]
        width = channels // groups
        mean, rstd = _statistics(x, (samples, groups, -1), (2,), eps)
        self.keep(x, mean.repeat_interleave(width, 1), rstd.repeat_interleave(width, 1), weight, width)
        return aten.group_norm(x, groups, weight, bias, eps)


@rule_for(aten.instance_norm.default)
class InstanceNorm(_ChannelNorm):
    """``instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, ...)``."""

    def forward(
        self,
        x: Tensor,
        weight: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        use_input: bool,
        momentum: float,
        eps: float,
        *_: Any,
    ) -> Any:
        if use_input:
            self.keep(x, *_statistics(x, (*x.shape[:2], -1), (2,), eps), weight)
        else:
            self.keep(x, mean, torch.rsqrt(variance.double() + eps), weight, constant=True)
        given = (None, None) if use_input else (mean, variance)  # statistics of the batch would update them
        return aten.instance_norm(x, weight, bias, *given, use_input, momentum, eps, False)


@rule_for(aten.batch_norm.default)
class BatchNorm(_ChannelNorm):
    """``batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)``.

    In training running statistics are neither used nor updated.
    """

    def forward(
        self,
        x: Tensor,
        weight: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        training: bool,
        momentum: float,
        eps: float,
        *_: Any,
    ) -> Any:
        if training:
            y, mean, rstd = aten.native_batch_norm(x, weight, bias, None, None, True, momentum, eps)
            if x.dtype == torch.bfloat16:
                mean, rstd = _statistics(x, (*x.shape[:2], -1), (0, 2), eps)
            self.keep(x, mean, rstd, weight)
        else:
            y = aten.native_batch_norm(x, weight, bias, mean, variance, False, momentum, eps)[0]
            self.keep(x, mean, torch.rsqrt(variance.double() + eps), weight, constant=True)
        return y


@register_fake("channel_norm_sums")
def _(a: Tensor, x: Tensor, mean: Tensor, y: Any) -> Tensor:
    return x.new_empty(2 if y is None else 3, len(a), *mean.shape, dtype=torch.float64)


@register_fake("channel_norm_linear")
def _(coefficients: Tensor, x: Tensor, mean: Tensor, a: Any, b: Any, y: Any) -> Tensor:
    return x.new_empty(coefficients.shape[1], *x.shape)
