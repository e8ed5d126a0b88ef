r"""Products of two tensors: linear, matmul and their kind, einsum.

Of :math:`y = x W^T`: :math:`\dot y = \dot x W^T + x \dot W^T`, and the adjoint tangents
:math:`\dot{\bar x} = \dot{\bar y} W + \bar y \dot W`, :math:`\dot{\bar W} = \dot{\bar y}^T x + \bar y^T \dot x`. What
multiplies a tensor that all K vectors share is one wide product; what multiplies tangents of both kinds is a batched
one over an expanded view. The second term is added by the product itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast.program.rules.rule import Activity, Rule, register_rule, rule_for
from lsfast.program.rules.shapes import spread_rows, sum_rows_to

aten = torch.ops.aten


# Elements of a matrix. Products of batches of small ones are faster where the results (the adjoint of a weight) or the
# factors (a shared one) lie side by side, and copying them there or from there costs little.
_COPIED_AT_MOST = 1 << 15


@rule_for(aten.linear.default)
class Linear(Rule):
    """x W^T + b for x [..., in], W [out, in], b [out]."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.curved = bool(active[0] and active[1])

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.lead, self.matrix = x.shape[:-1], weight.dim() == 2
        flat = x.reshape(-1, x.shape[-1])
        self.width = weight.shape[0] if self.matrix else 1
        weights = weight.reshape(self.width, -1)
        self.x = flat if self.active[1] else None
        self.weight = weights if self.active[0] else None
        self.shapes = (x.shape, weight.shape)
        return aten.linear.default(x, weight, bias)  # type: ignore[no-any-return]

    def jvp(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        rows = next(len(t) for t in (x, weight, bias) if t is not None)
        y: Tensor | None = None
        if weight is not None:
            assert self.x is not None
            wide = weight.reshape(rows, self.width, -1).transpose(1, 2)
            shared = self.x.expand(rows, *self.x.shape)
            if bias is None:
                y = torch.bmm(shared, wide)
            else:
                y = torch.baddbmm(bias.reshape(rows, 1, self.width), shared, wide)
        if x is not None:
            assert self.weight is not None
            flat = x.reshape(-1, x.shape[-1])
            if y is None:
                y = torch.mm(flat, self.weight.T)
                if bias is not None:
                    y = y.view(rows, -1, self.width).add_(bias.reshape(rows, 1, self.width))
            else:
                y = y.view(-1, self.width).addmm_(flat, self.weight.T)
        if y is None:
            assert bias is not None
            y = bias.reshape(rows, 1, self.width).expand(rows, self.lead.numel(), self.width)
        return y.reshape(rows, *self.lead, self.width) if self.matrix else y.reshape(rows, *self.lead)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        return self._adjoints(adjoints, None, None)

    def hold(self, adjoint: Tensor) -> None:
        if self.curved:
            self.adjoint = adjoint.reshape(-1, self.width)

    def vjp_jvp(self, adjoints: Tensor, *tangents: Any) -> tuple[Tensor | None, ...]:
        return self._adjoints(adjoints, tangents[0], tangents[1])

    def _adjoints(self, adjoints: Tensor, x: Tensor | None, weight: Tensor | None) -> tuple[Tensor | None, ...]:
        rows = len(adjoints)
        flat = adjoints.reshape(rows, -1, self.width)
        of_x = of_weight = of_bias = None
        if self.active[0]:
            assert self.weight is not None
            of_x = torch.mm(flat.reshape(-1, self.width), self.weight).view(rows, flat.shape[1], -1)
            if weight is not None and self.curved:
                shared = self.adjoint.expand(rows, *self.adjoint.shape)
                of_x.baddbmm_(shared, weight.reshape(rows, self.width, -1))
            of_x = of_x.view(rows, *self.shapes[0])
        if self.active[1]:
            assert self.x is not None
            shared = self.x.expand(rows, *self.x.shape)
            out = self.into.get(1) if self.width * self.x.shape[1] > _COPIED_AT_MOST else None
            of_weight = None if out is None else out.view(rows, self.width, self.x.shape[1])
            of_weight = (
                torch.bmm(flat.transpose(1, 2), shared, out=of_weight)
                if of_weight is not None
                else torch.bmm(flat.transpose(1, 2), shared)
            )
            if x is not None and self.curved:
                adjoint = self.adjoint.T.expand(rows, *self.adjoint.T.shape)
                of_weight.baddbmm_(adjoint, x.reshape(rows, -1, x.shape[-1]))
            of_weight = out if out is not None else of_weight.view(rows, *self.shapes[1])
        if len(self.active) > 2 and self.active[2]:
            of_bias = flat.sum(1) if self.matrix else flat.sum((1, 2))
        return of_x, of_weight, of_bias


class Product(Rule):
    """matmul, mm, bmm, mv, dot: torch.matmul's meaning, batches broadcast."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.curved = bool(active[0] and active[1])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.shapes, y = (a.shape, b.shape), torch.matmul(a, b)
        left = a[None] if a.dim() == 1 else a
        right = b[:, None] if b.dim() == 1 else b
        self.result, self.matrix_shape = y.shape, (*_lead(left, right), left.shape[-2], right.shape[-1])
        self.left_shape, self.right_shape = left.shape, right.shape
        self.left = left if self.active[1] else None
        self.right = right if self.active[0] else None
        return y

    def jvp(self, a: Tensor | None, b: Tensor | None) -> Tensor:
        y: Tensor | None = None
        if a is not None:
            y = rows_times(a.reshape(len(a), *self.left_shape), _given(self.right))
        if b is not None:
            y = times_rows(_given(self.left), b.reshape(len(b), *self.right_shape), y)
        assert y is not None
        return y.reshape(len(y), *self.result)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self._adjoints(adjoints, None, None)

    def hold(self, adjoint: Tensor) -> None:
        if self.curved:
            self.adjoint = adjoint.reshape(self.matrix_shape)

    def vjp_jvp(self, adjoints: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return self._adjoints(adjoints, a, b) if self.curved else self.vjp(adjoints)

    def _adjoints(self, adjoints: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        y = adjoints.reshape(len(adjoints), *self.matrix_shape)
        of_a = of_b = None
        if self.active[0]:
            assert self.right is not None
            of_a = rows_times(y, self.right.mT)
            if b is not None:
                of_a = times_rows(self.adjoint, b.reshape(len(b), *self.right_shape).mT, of_a)
            of_a = sum_rows_to(of_a, self.left_shape).reshape(len(y), *self.shapes[0])
        if self.active[1]:
            assert self.left is not None
            of_b = times_rows(self.left.mT, y)
            if a is not None:
                of_b = rows_times(a.reshape(len(a), *self.left_shape).mT, self.adjoint, of_b)
            of_b = sum_rows_to(of_b, self.right_shape).reshape(len(y), *self.shapes[1])
        return of_a, of_b


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _lead(a: Tensor, b: Tensor) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))


def rows_times(a: Tensor, b: Tensor, into: Tensor | None = None) -> Tensor:
    """Return a @ b for rows a [K, ..., i, j] and a shared b [..., j, k]; added to `into`, which is written to."""
    if b.dim() == 2:
        flat = a.reshape(-1, a.shape[-1])
        if into is None:
            return torch.mm(flat, b).view(*a.shape[:-1], b.shape[-1])
        into.view(-1, b.shape[-1]).addmm_(flat, b)
        return into
    return _batched(_padded(a, b.dim()), b, True, into)


def times_rows(a: Tensor, b: Tensor, into: Tensor | None = None) -> Tensor:
    """Return a @ b for a shared a [..., i, j] and rows b [K, ..., j, k]; added to `into`, which is written to."""
    if b.dim() == 3:
        flat = a.reshape(-1, a.shape[-1]).expand(len(b), -1, -1)
        if into is None:
            return torch.bmm(flat, b).view(len(b), *a.shape[:-1], b.shape[-1])
        into.view(len(b), -1, b.shape[-1]).baddbmm_(flat, b)
        return into
    return _batched(_padded(b, a.dim()), a, False, into)


def _padded(rows: Tensor, dims: int) -> Tensor:
    """Rows with axes of size 1 after the first, so that their matrices have at least `dims` axes."""
    return rows.reshape(len(rows), *(1,) * max(0, dims + 1 - rows.dim()), *rows.shape[1:])


def _batched(rows: Tensor, shared: Tensor, rows_first: bool, into: Tensor | None) -> Tensor:
    def product(of: Tensor) -> Tensor:
        return torch.matmul(of, shared) if rows_first else torch.matmul(shared, of)

    if shared.numel() <= _COPIED_AT_MOST:
        whole = product(rows)
        return whole if into is None else into.add_(whole)
    if rows.dim() == 4 == shared.dim() + 1 and rows.shape[1] == shared.shape[0]:
        pairs = [(row, shared) if rows_first else (shared, row) for row in rows]
        if into is not None:
            for part, (left, right) in zip(into, pairs, strict=True):
                part.baddbmm_(left, right)
            return into
        fresh = rows.new_empty(len(rows), len(shared), pairs[0][0].shape[1], pairs[0][1].shape[2])
        for part, (left, right) in zip(fresh, pairs, strict=True):
            torch.bmm(left, right, out=part)
        return fresh
    parts = [product(row) for row in rows]
    if into is None:
        return torch.stack(parts)
    for k, part in enumerate(parts):
        into[k].add_(part)
    return into


@rule_for(aten.addmm.default, aten.baddbmm.default)
class AddProduct(Rule):
    """beta c + alpha a @ b, c broadcast."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.product = Product(active[1:3])
        self.curved = self.product.curved

    def forward(self, c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
        self.beta, self.alpha, self.like = beta, alpha, (c.shape, c.dtype)
        product = self.product.forward(a, b)
        return torch.add(beta * c, product, alpha=alpha)

    def jvp(self, c: Tensor | None, a: Tensor | None, b: Tensor | None, *factors: Any) -> Tensor:
        moved = None if c is None else self.beta * spread_rows(c, self.product.result)
        if a is None and b is None:
            return _given(moved)
        product = self.product.jvp(a, b)
        return self.alpha * product if moved is None else torch.add(moved, product, alpha=self.alpha)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        of_product = self.product.vjp(self.alpha * adjoints)
        return self._of_c(adjoints), *of_product

    def hold(self, adjoint: Tensor) -> None:
        self.product.hold(self.alpha * adjoint)

    def vjp_jvp(self, adjoints: Tensor, *tangents: Any) -> tuple[Tensor | None, ...]:
        of_product = self.product.vjp_jvp(self.alpha * adjoints, tangents[1], tangents[2])
        return self._of_c(adjoints), *of_product

    def _of_c(self, adjoints: Tensor) -> Tensor | None:
        return sum_rows_to(self.beta * adjoints, *self.like) if self.active[0] else None


for _operation in (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default):
    register_rule(_operation, Product)


class Einsum(Rule):
    """einsum of any number of tensors without repeated letters in one of them."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        flags = active[1]
        assert isinstance(flags, tuple)
        self.flags = flags
        self.curved = sum(flags) > 1

    def forward(self, equation: str, tensors: list[Tensor], path: Any) -> Tensor:
        self.letters, self.result = _letters(equation, tensors)
        self.tensors = tensors
        return torch.einsum(equation, *tensors)

    def _sum(self, operands: dict[int, Tensor], rows: set[int], result: str) -> Tensor:
        """Einsum of operands by number (-1: the adjoint), those in `rows` with the axis of the K rows in front."""
        terms = [(self.result if i < 0 else self.letters[i]) for i in operands]
        lead = ["Z" if i in rows else "" for i in operands]
        given = set("".join(terms))
        kept = "".join(c for c in result if c in given)
        equation = ",".join(z + term for z, term in zip(lead, terms, strict=True)) + "->Z" + kept
        return torch.einsum(equation, *operands.values())

    def jvp(self, equation: Any, tensors: list[Tensor | None], path: Any) -> Tensor:
        total: Tensor | None = None
        for i, tangent in enumerate(tensors):
            if tangent is not None:
                operands = {j: tangent if j == i else x for j, x in enumerate(self.tensors)}
                part = self._sum(operands, {i}, self.result)
                total = part if total is None else total.add_(part)
        return _given(total)

    def _adjoint(self, i: int, operands: dict[int, Tensor], rows: set[int]) -> Tensor:
        part = self._sum(operands, rows, self.letters[i])
        given = set("".join((self.result if j < 0 else self.letters[j]) for j in operands))
        shape = self.tensors[i].shape
        kept = [size if c in given else 1 for c, size in zip(self.letters[i], shape, strict=True)]
        return part.reshape(len(part), *kept).expand(len(part), *shape)

    def vjp(self, adjoints: Tensor) -> tuple[None, list[Tensor | None]]:
        found = []
        for i, flag in enumerate(self.flags):
            others = {-1: adjoints, **{j: x for j, x in enumerate(self.tensors) if j != i}}
            found.append(self._adjoint(i, others, {-1}) if flag else None)
        return None, found

    def vjp_jvp(self, adjoints: Tensor, equation: Any, tensors: list[Tensor | None], path: Any) -> Any:
        found = self.vjp(adjoints)[1]
        for i, flag in enumerate(self.flags):
            for j, tangent in enumerate(tensors):
                if not flag or tangent is None or j == i:
                    continue
                others = {-1: self.adjoint, **{m: x for m, x in enumerate(self.tensors) if m != i}, j: tangent}
                found[i] = _given(found[i]) + self._adjoint(i, others, {j})
        return None, found


def _letters(equation: str, tensors: list[Tensor]) -> tuple[list[str], str]:
    """Return the letters of every tensor and of the result, an ellipsis spelled out."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXY" if c not in equation]
    longest = max(
        [x.dim() - len(t.replace("...", "")) for t, x in zip(terms, tensors, strict=True) if "..." in t] or [0]
    )
    dots = "".join(spare[:longest])
    spelled = []
    for term, x in zip(terms, tensors, strict=True):
        missing = x.dim() - len(term.replace("...", ""))
        spelled.append(term.replace("...", dots[longest - missing :]))
    if not arrow:
        every = "".join(spelled)
        result = dots + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c not in dots))
    return spelled, result.replace("...", dots)


register_rule(aten.einsum.default, Einsum)
