r"""Rules of layer and RMS norm: :math:`y = w \hat x + b`, :math:`\hat x = r (x - \mu)`, over the last axes.

The formulas of the four parts are in csrc/curvature/normalization.h; each part is one call of a row kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast._native import ops, register_fake
from lsfast.program.rules.rule import Rule, rule_for

aten = torch.ops.aten


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics and parameters: that of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _RowNorm(Rule):
    """Layer and RMS norm of [rows, columns]; a subclass's `forward` calls `keep`."""

    def keep(self, x: Tensor, columns: int, mean: Tensor | None, rstd: Tensor, weight: Tensor | None) -> None:
        wide = wide_dtype(x.dtype)
        self.shape, self.columns = x.shape, columns
        self.x = x.reshape(-1, columns).contiguous()
        self.mean = None if mean is None else mean.reshape(-1).to(wide)
        self.rstd = rstd.reshape(-1).to(wide)
        self.weight_like = weight
        self.weight = (
            torch.ones(columns, dtype=wide, device=x.device) if weight is None else weight.reshape(-1).to(wide)
        )
        self.held: Tensor | None = None

    def _rows(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.reshape(len(rows), *self.x.shape)

    def _parameter_rows(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.reshape(len(rows), self.columns).to(self.weight.dtype).contiguous()

    def push(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Jvp: rows of tangents, None where not active."""
        weight, bias = self._parameter_rows(weight), self._parameter_rows(bias)
        if weight is None and bias is not None:
            weight = torch.zeros_like(bias)
        if bias is None and weight is not None:
            bias = torch.zeros_like(weight)
        result = ops.row_norm_jvp(self.x, self.mean, self.rstd, self.weight, self._rows(x), weight, bias)
        return result.reshape(len(result), *self.shape)  # type: ignore[no-any-return]

    def pull(
        self, adjoints: Tensor, wants: tuple[bool, bool, bool], x: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Vjp, or with tangents of x vjp_jvp: the adjoints of x, weight and bias where wanted."""
        held = self.held if x is not None else None
        tangents = self._parameter_rows(weight) if x is not None else None
        wants_parameters = wants[1] or wants[2]
        rows = (self._rows(adjoints), self.x, self.mean, self.rstd, self.weight, held, self._rows(x), tangents)
        result, sums = ops.row_norm_vjp(*rows, wants[0], wants_parameters)
        return (
            result.reshape(len(adjoints), *self.shape) if wants[0] else None,
            self._parameter(sums[0]) if wants[1] else None,
            self._parameter(sums[1]) if wants[2] else None,
        )

    def _parameter(self, sums: Tensor) -> Tensor:
        like = self.x if self.weight_like is None else self.weight_like
        return sums.to(like.dtype).reshape(len(sums), *self.normalized)

    normalized: tuple[int, ...]

    def hold(self, adjoint: Any) -> None:
        self.held = (adjoint[0] if isinstance(adjoint, (tuple, list)) else adjoint).reshape(self.x.shape)


@rule_for(aten.layer_norm.default)
class LayerNorm(_RowNorm):
    """``layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True)``."""

    def forward(self, x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float, *_: Any) -> Any:
        self.normalized = tuple(shape)
        y, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, eps)
        columns = torch.Size(shape).numel()
        if x.dtype == torch.bfloat16:  # its statistics come rounded to bfloat16
            variance, mean = torch.var_mean(x.reshape(-1, columns).float(), 1, correction=0)
            rstd = torch.rsqrt(variance + eps)
        self.keep(x, columns, mean, rstd, weight)
        return y

    def jvp(self, x: Any, shape: Any, weight: Any = None, bias: Any = None, *_: Any) -> Any:
        return self.push(x, weight, bias)

    def _places(self) -> tuple[bool, bool, bool]:
        return bool(self.active[0]), bool(self.active[2]), bool(self.active[3])

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        x_bar, weight_bar, bias_bar = self.pull(adjoints, self._places())
        return x_bar, None, weight_bar, bias_bar, None, None

    def vjp_jvp(self, adjoints: Any, x: Any, shape: Any, weight: Any = None, *_: Any) -> tuple[Any, ...]:
        x_bar, weight_bar, bias_bar = self.pull(adjoints, self._places(), x, weight)
        return x_bar, None, weight_bar, bias_bar, None, None


@rule_for(aten.rms_norm.default)
class RmsNorm(_RowNorm):
    """``rms_norm(input, normalized_shape, weight=None, eps=None)``; eps None: that of the dtype."""

    def forward(self, x: Tensor, shape: list[int], weight: Any, eps: float | None) -> Any:
        self.normalized = tuple(shape)
        columns = torch.Size(shape).numel()
        square = torch.linalg.vector_norm(x.reshape(-1, columns), dim=1, dtype=wide_dtype(x.dtype)).square() / columns
        self.keep(x, columns, None, torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps)), weight)
        return aten.rms_norm(x, shape, weight, eps)

    def jvp(self, x: Any, shape: Any, weight: Any = None, *_: Any) -> Any:
        return self.push(x, weight, None)

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        x_bar, weight_bar = self.pull(adjoints, (bool(self.active[0]), bool(self.active[2]), False))[:2]
        return x_bar, None, weight_bar, None

    def vjp_jvp(self, adjoints: Any, x: Any, shape: Any, weight: Any = None, *_: Any) -> tuple[Any, ...]:
        wants = (bool(self.active[0]), bool(self.active[2]), False)
        x_bar, weight_bar = self.pull(adjoints, wants, x, weight)[:2]
        return x_bar, None, weight_bar, None


@register_fake("row_norm_jvp")
def _(x: Tensor, mean: Any, rstd: Tensor, weight: Tensor, x_tangents: Any, weight_tangents: Any, bias: Any) -> Tensor:
    rows = len(x_tangents if x_tangents is not None else weight_tangents)
    return x.new_empty(rows, *x.shape)


@register_fake("row_norm_vjp")
def _(
    adjoints: Tensor,
    x: Tensor,
    mean: Any,
    rstd: Tensor,
    weight: Tensor,
    held: Any,
    x_tangents: Any,
    weight_tangents: Any,
    wants_x: bool,
    wants_parameters: bool,
) -> tuple[Tensor, Tensor]:
    rows = len(adjoints)
    out = x.new_empty(rows if wants_x else 0, *x.shape)
    return out, x.new_empty(2, rows if wants_parameters else 0, x.shape[1], dtype=torch.float64)
