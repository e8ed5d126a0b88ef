r"""Variance and standard deviation over some axes, with any correction c of the number N of elements.

With d the distance from the mean and :math:`v = \sum d^2 / (N - c)`: :math:`\dot v = 2 \sum d \dot x / (N - c)`,
:math:`\bar x = 2 d \bar v / (N - c)`, and the tangent of that follows with
:math:`\dot d = \dot x - \mathrm{mean}\,\dot x` (the mean's own derivative is no part of :math:`\dot v`: the d add up to
0). The standard deviation is the root of v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast.program.rules.rule import Activity, Rule, register_rule

aten = torch.ops.aten


class Variance(Rule):
    """var and std, of all elements or over axes; `root` tells std."""

    def __init__(self, active: Activity, root: bool = False) -> None:
        super().__init__(active)
        self.root = root

    def forward(self, x: Tensor, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Tensor:
        self.shape = x.shape
        axes = [axis % max(x.dim(), 1) for axis in dim] if dim else list(range(x.dim()))
        self.kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        self.axes = [axis + 1 for axis in axes]
        count = x.numel() // max(1, torch.Size(self.kept).numel())
        self.inverse = 1.0 / (count - (1 if correction is None else correction))
        self.distance = x - x.mean(axes, keepdim=True)
        variance = self.distance.square().sum(axes, keepdim=True) * self.inverse
        self.deviation = variance.sqrt() if self.root else None
        y = variance if self.deviation is None else self.deviation
        self.result_shape = y.shape if keepdim else [size for axis, size in enumerate(x.shape) if axis not in axes]
        return y.reshape(self.result_shape)

    def _slope(self) -> Tensor:
        """Return the derivative of y in x."""
        if self.deviation is None:
            return self.distance * (2.0 * self.inverse)
        return self.distance * (self.inverse / self.deviation)

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.sum(self.axes, keepdim=True) if self.axes else rows

    def jvp(self, x: Tensor, *others: Any) -> Tensor:
        return self._sum(x * self._slope()).reshape(len(x), *self.result_shape)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor]:
        return (adjoints.reshape(len(adjoints), *self.kept) * self._slope(),)

    def hold(self, adjoint: Tensor) -> None:
        self.adjoint = adjoint.reshape(self.kept)

    def vjp_jvp(self, adjoints: Tensor, x: Tensor, *others: Any) -> tuple[Tensor]:
        moved = x - (x.mean(self.axes, keepdim=True) if self.axes else x)
        if self.deviation is None:
            bent = moved * (2.0 * self.inverse * self.adjoint)
        else:
            slope = self._slope()
            bent = (moved * self.inverse - slope * self._sum(x * slope)) * (self.adjoint / self.deviation)
        return (self.vjp(adjoints)[0].add_(bent),)


def _of_all(root: bool) -> Any:
    """Make the rule of ``var(x, unbiased)``."""

    class Whole(Variance):
        def forward(self, x: Tensor, unbiased: bool = True) -> Tensor:  # type: ignore[override]
            return super().forward(x, None, 1 if unbiased else 0)

    return lambda active: Whole(active, root)


def _of_axes(root: bool) -> Any:
    """Make the rule of ``var(x, dim, unbiased, keepdim)``."""

    class Along(Variance):
        def forward(self, x: Tensor, dim: Any = None, unbiased: Any = True, keepdim: bool = False) -> Tensor:
            return super().forward(x, dim, 1 if unbiased else 0, keepdim)

    return lambda active: Along(active, root)


for _root, _packet in ((False, aten.var), (True, aten.std)):
    register_rule(_packet.correction, lambda active, root=_root: Variance(active, root))  # type: ignore[misc]
    register_rule(_packet.default, _of_all(_root))
    register_rule(_packet.dim, _of_axes(_root))
