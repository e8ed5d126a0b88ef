r"""Softmax, log-softmax and log-sum-exp, over any axes, by one fused pass over the rows for all K vectors.

With p the softmax of a row x, its tangent t, the adjoint g of the output and that adjoint's tangent a:

    softmax      y = p            jvp p (t - p.t)      vjp p (g - p.g)      vjp_jvp p (u - p.u),  u = c (t - p.t) + a
    log-softmax  y = log p        jvp t - p.t          vjp g - p sum(g)     vjp_jvp a - p (sum(a) + sum(g) (t - p.t))
    log-sum-exp  y = log sum e^x  jvp p.t              vjp p g              vjp_jvp p (a + g (t - p.t))

where c = g - p.g is formed once, in `hold`. Between the passes only p is kept, in float32 at least. A row whose scores
are all -inf has p = 0 in log-sum-exp, as in torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast._native import ops, register_fake
from lsfast.program.rules.rule import Activity, Rule, rule_for

aten = torch.ops.aten

# The outputs of csrc/curvature/softmax.h.
SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP, LOG_SOFTMAX_ADJOINT = range(4)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums and probabilities are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _OverRows(Rule):
    """An operation on rows of one tensor, its first argument: the axes of `dims` moved to the end and made one."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.dims: tuple[int, ...] = ()

    def _take(self, x: Tensor, dims: tuple[int, ...], result: torch.dtype) -> Tensor:
        """Keep the layout of x; return it as rows [rows, cols] in the type of the arithmetic."""
        rank = max(x.dim(), 1)
        self.shape, self.dtype, self.result = x.shape, x.dtype, result
        self.dims = tuple(sorted(dim % rank for dim in dims))
        self.others = tuple(dim for dim in range(rank) if dim not in self.dims)
        return self._rows(x.to(arithmetic(result))[None])[0]

    def _rows(self, values: Tensor) -> Tensor:
        """[K, *shape] -> [K, rows, cols]."""
        shape = self.shape or (1,)
        cols = 1
        for dim in self.dims:
            cols *= shape[dim]
        rows = 1
        for dim in self.others:
            rows *= shape[dim]
        order = (0, *(dim + 1 for dim in self.others), *(dim + 1 for dim in self.dims))
        return values.reshape(len(values), *shape).permute(order).reshape(len(values), rows, cols)

    def _unrows(self, rows: Tensor) -> Tensor:
        """[K, rows, cols] -> [K, *shape], a view."""
        shape = self.shape or (1,)
        order = (*self.others, *self.dims)
        moved = rows.reshape(len(rows), *(shape[dim] for dim in order))
        back = [0] * (len(order) + 1)
        for place, dim in enumerate(order):
            back[dim + 1] = place + 1
        return moved.permute(back).reshape(len(rows), *self.shape)


class _OfRowShape(_OverRows):
    """Softmax or log-softmax: the result has the shape of the argument, and maybe another type."""

    output: int
    centered: Tensor

    def _probabilities(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result and p of rows [rows, cols]."""
        raise TypeError(f"{type(self).__name__} does not define _probabilities")

    def forward(self, x: Tensor, dim: int, dtype: Any) -> Tensor:
        result = x.dtype
        if isinstance(dtype, torch.dtype):
            result = dtype
        elif dtype is True:  # half_to_float of the decomposed form
            result = torch.float32
        value, self.probability = self._probabilities(self._take(x, (dim,), result))
        return self._unrows(value[None])[0].to(result)

    def jvp(self, x: Tensor, *_: Any) -> Tensor:
        return self._unrows(ops.softmax_tangent(self.probability, self._rows(x.to(self.result)), self.output))

    def vjp(self, adjoints: Tensor) -> tuple[Tensor]:
        output = SOFTMAX if self.output == SOFTMAX else LOG_SOFTMAX_ADJOINT
        found = ops.softmax_tangent(self.probability, self._rows(adjoints), output)
        return (self._unrows(found).to(self.dtype),)

    def vjp_jvp(self, adjoints: Tensor, x: Tensor, *_: Any) -> tuple[Tensor]:
        tangents = self._rows(x.to(self.result))
        found = ops.softmax_adjoint_tangent(
            self.probability, self.centered, tangents, self._rows(adjoints), self.output
        )
        return (self._unrows(found).to(self.dtype),)


@rule_for(aten.softmax.int, aten._softmax.default)
class Softmax(_OfRowShape):
    """``p = softmax(x, dim)``."""

    output = SOFTMAX

    def _probabilities(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        probability = torch.softmax(rows, -1)
        return probability, probability

    def hold(self, adjoint: Tensor) -> None:
        rows = self._rows(adjoint.to(self.probability.dtype)[None])
        self.centered = ops.softmax_tangent(self.probability, rows, LOG_SOFTMAX)[0]


@rule_for(aten.log_softmax.int, aten._log_softmax.default)
class LogSoftmax(_OfRowShape):
    """``y = log softmax(x, dim)``."""

    output = LOG_SOFTMAX

    def _probabilities(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.log_softmax(rows, -1)
        return value, value.exp()

    def hold(self, adjoint: Tensor) -> None:
        self.centered = self._rows(adjoint.to(self.probability.dtype)[None])[0].sum(-1)


@rule_for(aten.logsumexp.default)
class LogSumExp(_OverRows):
    """``y = log sum exp x`` over the axes of `dim`."""

    def forward(self, x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
        value = torch.logsumexp(x, dim, keepdim)
        self.out_shape = value.shape
        rows = self._take(x, tuple(dim) or tuple(range(x.dim())), x.dtype)
        # Formed in place of a copy, which `_take` has made only where it had to.
        self.probability = rows[None].clone(memory_format=torch.contiguous_format)
        ops.attention_probabilities_(self.probability, -1)
        self.probability = self.probability[0]
        return value

    def _per_row(self, values: Tensor) -> Tensor:
        return values.reshape(len(values), len(self.probability))

    def jvp(self, x: Tensor, *_: Any) -> Tensor:
        found: Tensor = ops.softmax_tangent(self.probability, self._rows(x), LOG_SUM_EXP)
        return found.reshape(len(x), *self.out_shape)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor]:
        found = self._per_row(adjoints)[..., None] * self.probability
        return (self._unrows(found).to(self.dtype),)

    def hold(self, adjoint: Tensor) -> None:
        self.centered = self._per_row(adjoint.to(self.probability.dtype)[None])[0]

    def vjp_jvp(self, adjoints: Tensor, x: Tensor, *_: Any) -> tuple[Tensor]:
        found = ops.softmax_adjoint_tangent(
            self.probability, self.centered, self._rows(x), self._per_row(adjoints), LOG_SUM_EXP
        )
        return (self._unrows(found),)


@register_fake("softmax_tangent")
def _(probability: Tensor, tangents: Tensor, output: int) -> Tensor:
    return tangents.new_empty(tangents.shape[:2] if output == LOG_SUM_EXP else tangents.shape)


@register_fake("softmax_tangent_")
def _(probability: Tensor, tangents: Tensor, output: int) -> None:
    return None


@register_fake("softmax_adjoint_tangent")
def _(probability: Tensor, centered: Tensor, tangents: Tensor, adjoints: Tensor, output: int) -> Tensor:
    return tangents.new_empty(tangents.shape)


@register_fake("softmax_adjoint_tangent_")
def _(probability: Tensor, centered: Tensor, tangents: Tensor, adjoints: Tensor) -> None:
    return None


@register_fake("attention_probabilities_")
def _(scores: Tensor, causal: int) -> None:
    return None
