r"""Functions of one tensor, element by element: :math:`y = f(x)`.

Only :math:`f'(x)` and, once the adjoint is known, :math:`f''(x)\,\bar y` are kept, so a product with K vectors is one
pass over memory: :math:`\dot y = f' \dot x` and :math:`\dot{\bar x} = f' \dot{\bar y} + (f'' \bar y)\, \dot x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.rows import combine_rows, scale_rows
from lsfast.program.rules.generic import call_operation, generic_rule
from lsfast.program.rules.rule import Activity, Rule, register_rule

aten = torch.ops.aten

Derivative = Callable[..., Tensor]


class Unary(Rule):
    """A function of the first argument alone; the others are numbers, or constants of its shape."""

    def __init__(
        self, operation: OpOverload, active: Activity, first: Derivative, second: Derivative | None = None
    ) -> None:
        super().__init__(active)
        self.operation, self.first, self.second = operation, first, second
        self.curved = second is not None

    def forward(self, *args: Any) -> Tensor:
        y: Tensor = call_operation(self.operation, args)
        slope = self.first(*args)
        self.slope = slope if slope.dtype == torch.bool else slope.to(y.dtype)
        self.args = args if self.curved else ()
        return y

    def jvp(self, *tangents: Any) -> Tensor:
        return scale_rows(tangents[0], self._factor(tangents[0]))

    def vjp(self, adjoints: Tensor) -> tuple[Tensor]:
        return (scale_rows(adjoints, self._factor(adjoints)),)

    def _factor(self, rows: Tensor) -> Tensor:
        """Return f'; what is 0 or 1 everywhere is kept in a byte an element."""
        return self.slope.to(rows.dtype) if self.slope.dtype == torch.bool else self.slope

    def hold(self, adjoint: Tensor) -> None:
        if self.second is not None:
            self.bend = self.second(*self.args).to(adjoint.dtype).mul_(adjoint)
            self.args = ()

    def vjp_jvp(self, adjoints: Tensor, *tangents: Any) -> tuple[Tensor]:
        if not self.curved:
            return self.vjp(adjoints)
        return (combine_rows(adjoints, self.slope, tangents[0], self.bend),)


def unary(operation: OpOverload, first: Derivative, second: Derivative | None = None) -> None:
    """Enter the rule of a function: f' and f'' (None: zero) are given the arguments of the operation."""
    register_rule(
        operation,
        lambda active: (
            Unary(operation, active, first, second) if not any(active[1:]) else generic_rule(operation)(active)
        ),
    )


def _sech2(x: Tensor) -> Tensor:
    """1 - tanh(x)^2 without the cancellation."""
    return torch.cosh(x.abs().clamp(max=350.0 if x.dtype == torch.float64 else 40.0)).pow(-2)


def _logistic_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _logistic_bend(x: Tensor) -> Tensor:
    return _logistic_slope(x) * (torch.sigmoid(-x) - torch.sigmoid(x))


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x).mul_(1.0 / math.sqrt(2.0 * math.pi))


def _gelu_slope(x: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        cumulative: Tensor = torch.special.ndtr(x)
        return cumulative + x * _normal_density(x)
    t, dt, first, _ = _tanh_gelu(x)
    return 0.5 * (1.0 + t) + 0.5 * x * dt * first


def _gelu_bend(x: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        return _normal_density(x) * (2.0 - x * x)
    t, dt, first, second = _tanh_gelu(x)
    return dt * first + 0.5 * x * (dt * second - 2.0 * t * dt * first * first)


def _tanh_gelu(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    root, cubic = math.sqrt(2.0 / math.pi), 0.044715
    inner = root * (x + cubic * x * x * x)
    return torch.tanh(inner), _sech2(inner), root * (1.0 + 3.0 * cubic * x * x), root * 6.0 * cubic * x


def _silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) + x * _logistic_slope(x)


def _silu_bend(x: Tensor) -> Tensor:
    return 2.0 * _logistic_slope(x) + x * _logistic_bend(x)


def _softplus_slope(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(x * beta > threshold, 1.0, torch.sigmoid(beta * x))


def _softplus_bend(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(x * beta > threshold, 0.0, beta * _logistic_slope(beta * x))


def _mish_slope(x: Tensor) -> Tensor:
    soft = torch.nn.functional.softplus(x)
    return torch.tanh(soft) + x * _sech2(soft) * torch.sigmoid(x)


def _mish_bend(x: Tensor) -> Tensor:
    soft, s = torch.nn.functional.softplus(x), torch.sigmoid(x)
    slope = _sech2(soft) * s
    return 2.0 * slope + x * (_sech2(soft) * _logistic_slope(x) - 2.0 * torch.tanh(soft) * slope * s)


def _elu_slope(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    return torch.where(x > 0, scale, alpha * scale * input_scale * torch.exp(input_scale * x.clamp(max=0.0)))


def _elu_bend(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    return torch.where(x > 0, 0.0, alpha * scale * input_scale**2 * torch.exp(input_scale * x.clamp(max=0.0)))


def _power_slope(x: Tensor, exponent: float) -> Tensor:
    return torch.zeros_like(x) if exponent == 0 else exponent * x.pow(exponent - 1)


def _power_bend(x: Tensor, exponent: float) -> Tensor:
    return torch.zeros_like(x) if exponent in (0, 1) else exponent * (exponent - 1) * x.pow(exponent - 2)


def _within(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool)
    if low is not None:
        inside = inside & (x >= low)
    if high is not None:
        inside = inside & (x <= high)
    return inside


unary(aten.exp.default, torch.exp, torch.exp)
unary(aten.expm1.default, torch.exp, torch.exp)
unary(aten.log.default, torch.reciprocal, lambda x: -x.pow(-2))
unary(aten.log1p.default, lambda x: 1.0 / (1.0 + x), lambda x: -((1.0 + x).pow(-2)))
unary(aten.log2.default, lambda x: x.reciprocal() / math.log(2.0), lambda x: -x.pow(-2) / math.log(2.0))
unary(aten.sqrt.default, lambda x: 0.5 * x.rsqrt(), lambda x: -0.25 * x.pow(-1.5))
unary(aten.rsqrt.default, lambda x: -0.5 * x.pow(-1.5), lambda x: 0.75 * x.pow(-2.5))
unary(aten.reciprocal.default, lambda x: -x.pow(-2), lambda x: 2.0 * x.pow(-3))
unary(aten.square.default, lambda x: 2.0 * x, lambda x: torch.full_like(x, 2.0))
unary(aten.pow.Tensor_Scalar, _power_slope, _power_bend)
unary(aten.sin.default, torch.cos, lambda x: -torch.sin(x))
unary(aten.cos.default, lambda x: -torch.sin(x), lambda x: -torch.cos(x))
unary(aten.tanh.default, _sech2, lambda x: -2.0 * torch.tanh(x) * _sech2(x))
unary(aten.sigmoid.default, _logistic_slope, _logistic_bend)
unary(aten.log_sigmoid.default, lambda x: torch.sigmoid(-x), lambda x: -_logistic_slope(x))
unary(aten.erf.default, lambda x: torch.exp(-x * x) * (2.0 / math.sqrt(math.pi)),
      lambda x: -2.0 * x * torch.exp(-x * x) * (2.0 / math.sqrt(math.pi)))  # fmt: skip
unary(aten.gelu.default, _gelu_slope, _gelu_bend)
unary(aten.silu.default, _silu_slope, _silu_bend)
unary(aten.softplus.default, _softplus_slope, _softplus_bend)
unary(aten.mish.default, _mish_slope, _mish_bend)
unary(aten.elu.default, _elu_slope, _elu_bend)
unary(aten.relu.default, lambda x: x > 0)
unary(aten.relu6.default, lambda x: (x > 0) & (x < 6))
unary(aten.leaky_relu.default, lambda x, slope: torch.where(x > 0, torch.ones_like(x), slope))
unary(aten.hardtanh.default, lambda x, low, high: (x > low) & (x < high))
unary(aten.threshold.default, lambda x, limit, value: x > limit)
unary(aten.abs.default, torch.sign)
unary(aten.neg.default, lambda x: torch.full_like(x, -1.0))
unary(aten.clamp.default, _within)
unary(aten.clamp_min.default, _within)
unary(aten.clamp_max.default, lambda x, high: _within(x, None, high))
