r"""A rule from beginning to end: the outer product, :math:`z_{ij} = a_i b_j`.

On paper first. jvp: :math:`\dot z = \dot a b^T + a \dot b^T`. vjp: :math:`\bar a = \bar z b`,
:math:`\bar b = \bar z^T a`. The tangent of the vjp follows by the product rule:
:math:`\dot{\bar a} = \dot{\bar z} b + \bar z \dot b`, :math:`\dot{\bar b} = \dot{\bar z}^T a + \bar z^T \dot a`.
Then the class below, its file in ``rules/__init__.py``, and a line with ``check_rule`` in ``tests/program``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast.program.rules.rule import Rule, rule_for

aten = torch.ops.aten


@rule_for(aten.outer.default)
class Outer(Rule):
    """a b^T of two vectors; either may be a constant, whose tangent is None."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.a, self.b = a, b  # all that the other parts need of the point
        return torch.outer(a, b)

    def jvp(self, a: Tensor | None, b: Tensor | None) -> Tensor:
        parts = [] if a is None else [a[:, :, None] * self.b]  # rows [K, i] in, rows [K, i, j] out
        parts += [] if b is None else [self.a[:, None] * b[:, None, :]]
        return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])  # in place: parts[0] is our own

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        of_a = adjoints @ self.b if self.active[0] else None
        return of_a, self.a @ adjoints if self.active[1] else None

    def vjp_jvp(self, adjoints: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        of_a, of_b = self.vjp(adjoints)  # the first term; `hold` has kept the primal adjoint [i, j] for the second
        if of_a is not None and b is not None:
            of_a = of_a + b @ self.adjoint.T
        if of_b is not None and a is not None:
            of_b = of_b + a @ self.adjoint
        return of_a, of_b
