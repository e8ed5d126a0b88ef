"""Sums, products, quotients and choices of two tensors, element by element, with broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast.program.rows import combine_rows, scale_rows
from lsfast.program.rules.rule import Activity, Rule, register_rule, rule_for
from lsfast.program.rules.shapes import spread_rows, sum_rows_to

aten = torch.ops.aten


class Add(Rule):
    """x + alpha y and x - alpha y, with broadcasting."""

    curved = False
    sign = 1.0
    reverse = False

    def forward(self, x: Any, y: Any, alpha: float = 1) -> Tensor:
        factor = self.sign * alpha
        self.factors = (factor, 1.0) if self.reverse else (1.0, factor)
        self.like = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else None for v in (x, y))
        result = torch.sub(y, x, alpha=alpha) if self.reverse else torch.add(x, y, alpha=factor)
        self.shape, self.dtype = result.shape, result.dtype
        return result

    def jvp(self, x: Tensor | None, y: Tensor | None, alpha: Any = None) -> Tensor:
        dims = len(self.shape)
        rows = [
            (t.reshape(len(t), *(1,) * (dims + 1 - t.dim()), *t.shape[1:]), factor)
            for t, factor in zip((x, y), self.factors, strict=True)
            if t is not None
        ]
        if len(rows) == 1:
            t, factor = rows[0]
            return (t if factor == 1.0 else t * factor).to(self.dtype).expand(len(t), *self.shape)
        (a, f), (b, g) = rows
        total = torch.add(a, b, alpha=g) if f == 1.0 else torch.add(b, a, alpha=f)
        return total.to(self.dtype)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self._part(adjoints, 0), self._part(adjoints, 1)

    def _part(self, adjoints: Tensor, index: int) -> Tensor | None:
        like = self.like[index]
        if not self.active[index] or like is None:
            return None
        part = sum_rows_to(adjoints, *like)
        return part if self.factors[index] == 1.0 else part * self.factors[index]


class Subtract(Add):
    """x - alpha y."""

    sign = -1.0


class ReverseSubtract(Add):
    """y - alpha x."""

    sign = -1.0
    reverse = True


class Multiply(Rule):
    """x y, with broadcasting."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.curved = bool(active[0] and active[1])

    def forward(self, x: Any, y: Any) -> Tensor:
        result = torch.mul(x, y)
        self.shape, self.dtype = result.shape, result.dtype
        self.like = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else None for v in (x, y))
        self.factors: tuple[Any, Any] = (y if self.active[0] else None, x if self.active[1] else None)
        return result

    def _times(self, rows: Tensor, factor: Any) -> Tensor:
        """Rows of one argument times the other: rows of the result."""
        spread = spread_rows(rows, self.shape)
        if isinstance(factor, Tensor) and factor.shape == self.shape and rows.dtype == factor.dtype == self.dtype:
            return scale_rows(spread, factor)
        product: Tensor = spread * factor
        return product.to(self.dtype)

    def jvp(self, x: Tensor | None, y: Tensor | None) -> Tensor:
        if x is not None and y is not None:
            if self._same(x, y):
                return combine_rows(x, self.factors[0], y, self.factors[1])
            return self._times(x, self.factors[0]) + self._times(y, self.factors[1])
        return self._times(x, self.factors[0]) if x is not None else self._times(_given(y), self.factors[1])

    def _same(self, x: Tensor, y: Tensor) -> bool:
        return x.shape[1:] == y.shape[1:] == self.shape and x.dtype == y.dtype == self.dtype

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self._part(adjoints, 0), self._part(adjoints, 1)

    def _part(self, adjoints: Tensor, index: int) -> Tensor | None:
        like = self.like[index]
        if not self.active[index] or like is None:
            return None
        return sum_rows_to(self._times(adjoints, self.factors[index]), *like)

    def vjp_jvp(self, adjoints: Tensor, x: Tensor | None, y: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if x is None or y is None:
            return self.vjp(adjoints)
        if self._same(x, y):
            return (
                combine_rows(adjoints, self.factors[0], y, self.adjoint),
                combine_rows(adjoints, self.factors[1], x, self.adjoint),
            )
        parts = []
        for factor, other, like in zip(self.factors, (y, x), self.like, strict=True):
            assert like is not None
            whole = self._times(adjoints, factor) + (spread_rows(other, self.shape) * self.adjoint)
            parts.append(sum_rows_to(whole, *like))
        return parts[0], parts[1]


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


@rule_for(aten.div.Tensor)
class Divide(Rule):
    r"""x / y: with q = x / y, :math:`\dot q = (\dot x - q \dot y) / y`."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.curved = bool(active[1])

    def forward(self, x: Any, y: Any) -> Tensor:
        q = torch.div(x, y)
        self.shape, self.dtype = q.shape, q.dtype
        self.like = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else None for v in (x, y))
        self.inverse = torch.reciprocal(y.to(q.dtype)) if isinstance(y, Tensor) else 1.0 / y
        self.ratio: Any = q if self.active[1] else None
        return q

    def jvp(self, x: Tensor | None, y: Tensor | None) -> Tensor:
        total = None if x is None else spread_rows(x, self.shape)
        if y is not None:
            slope = spread_rows(y, self.shape) * self.ratio
            total = slope.neg_() if total is None else total - slope
        return (_given(total) * self.inverse).to(self.dtype)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        scaled = adjoints * self.inverse
        return self._part(scaled, 0), self._part(-(scaled * self.ratio), 1) if self.active[1] else None

    def _part(self, whole: Tensor, index: int) -> Tensor | None:
        like = self.like[index]
        return sum_rows_to(whole, *like) if self.active[index] and like is not None else None

    def vjp_jvp(self, adjoints: Tensor, x: Tensor | None, y: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if y is None:
            return self.vjp(adjoints)
        primal = self.adjoint * self.inverse
        moving = spread_rows(y, self.shape) * self.inverse
        of_x = adjoints * self.inverse - primal * moving
        ratio = self.jvp(x, y)
        of_y = -(of_x * self.ratio + primal * ratio)
        return self._part(of_x, 0), self._part(of_y, 1)


class Choice(Rule):
    """Where x and where y: ``where``, ``maximum``, ``minimum``; linear once the choice is made."""

    curved = False

    def weights(self, *args: Any) -> tuple[Any, Any, Any, Any]:
        raise TypeError(f"{type(self).__name__} does not define weights")

    def forward(self, *args: Any) -> Tensor:
        x, y, self.first, self.second = self.weights(*args)
        result = self.value(*args)
        self.shape, self.dtype = result.shape, result.dtype
        self.like = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else None for v in (x, y))
        return result

    def value(self, *args: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define value")

    def places(self) -> tuple[int, int]:
        return 0, 1

    def jvp(self, *tangents: Any) -> Tensor:
        total: Tensor | None = None
        for place, share in zip(self.places(), (self.first, self.second), strict=True):
            rows = tangents[place]
            if rows is not None:
                part = _masked(spread_rows(rows, self.shape), share).to(self.dtype)
                total = part if total is None else total.add_(part)
        return _given(total)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * len(self.active)
        for place, share, like in zip(self.places(), (self.first, self.second), self.like, strict=True):
            if self.active[place] and like is not None:
                found[place] = sum_rows_to(_masked(adjoints, share), *like)
        return tuple(found)


def _masked(rows: Tensor, share: Tensor) -> Tensor:
    """Rows where `share` is true and zero elsewhere (also where a row is NaN); or times a share that is a number."""
    return torch.where(share, rows, 0.0) if share.dtype == torch.bool else rows * share.to(rows.dtype)


@rule_for(aten.where.self)
class Where(Choice):
    """where(condition, x, y)."""

    def weights(self, condition: Tensor, x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
        return x, y, condition, ~condition

    def value(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(condition, x, y)

    def places(self) -> tuple[int, int]:
        return 1, 2


@rule_for(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
class MaskedFill(Choice):
    """x, and a value where the mask is true."""

    def weights(self, x: Tensor, mask: Tensor, value: Any) -> tuple[Any, Any, Any, Any]:
        return x, value, ~mask, mask

    def value(self, x: Tensor, mask: Tensor, value: Any) -> Tensor:
        return x.masked_fill(mask, value)

    def places(self) -> tuple[int, int]:
        return 0, 2


@rule_for(aten.maximum.default, aten.max.other)
class Maximum(Choice):
    """The larger; a half of each where they are equal."""

    def weights(self, x: Tensor, y: Tensor) -> tuple[Any, Any, Any, Any]:
        half = 0.5 * (x == y)
        return x, y, (x > y) + half, (y > x) + half

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.maximum(x, y)


@rule_for(aten.minimum.default, aten.min.other)
class Minimum(Maximum):
    """The smaller; a half of each where they are equal."""

    def weights(self, x: Tensor, y: Tensor) -> tuple[Any, Any, Any, Any]:
        x_share, y_share = super().weights(x, y)[2:]
        return x, y, y_share, x_share

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.minimum(x, y)


@rule_for(aten.copy.default)
class Copy(Rule):
    """The second argument in the shape and dtype of the first, which is overwritten."""

    curved = False

    def forward(self, x: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        self.shape, self.dtype, self.like = x.shape, x.dtype, (source.shape, source.dtype)
        self.row_shape = x.shape
        return source.to(x.dtype).expand(x.shape).clone()

    def jvp(self, x: Any, source: Tensor | None, non_blocking: Any) -> Tensor:
        if source is None:
            return torch.zeros_like(x)
        return spread_rows(source, self.shape).to(self.dtype)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        nothing = torch.zeros_like(adjoints) if self.active[0] else None
        return nothing, sum_rows_to(adjoints, *self.like) if self.active[1] else None


@rule_for(aten.fill.Tensor, aten.fill.Scalar, aten.zero.default)
class Fill(Rule):
    """A number in the shape of the first argument, which is overwritten."""

    curved = False

    def forward(self, x: Tensor, value: Any = 0.0) -> Tensor:
        self.shape = x.shape
        return torch.zeros_like(x).copy_(torch.as_tensor(value)) if x.numel() else x.clone()

    def jvp(self, x: Any, value: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x) if value is None else spread_rows(value, self.shape)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        nothing = torch.zeros_like(adjoints) if self.active[0] else None
        return nothing, sum_rows_to(adjoints, ()) if len(self.active) > 1 and self.active[1] else None


class Keep(Rule):
    """Dropout in eval mode."""

    curved = False

    def forward(self, x: Tensor, p: float, train: bool) -> Tensor:
        if train and p > 0.0:
            raise ValueError("Objective: model must be deterministic, got dropout in train mode; call model.eval()")
        return x

    def jvp(self, *tangents: Any) -> Tensor:
        return tangents[0]  # type: ignore[no-any-return]

    def vjp(self, adjoints: Tensor) -> tuple[Tensor]:
        return (adjoints,)


for _operation in (aten.add.Tensor, aten.add.Scalar):
    register_rule(_operation, Add)
for _operation in (aten.sub.Tensor, aten.sub.Scalar):
    register_rule(_operation, Subtract)
for _operation in (aten.rsub.Tensor, aten.rsub.Scalar):
    register_rule(_operation, ReverseSubtract)
for _operation in (aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor):
    register_rule(_operation, Multiply)
register_rule(aten.div.Scalar, Divide)
for _operation in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
    register_rule(_operation, Keep)
