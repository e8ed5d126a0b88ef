"""Linear maps that move or mix the elements of one tensor in a fixed way: padding, rolls, triangles, sums, resizing.

The tangent of the result is the map of the tangent; for the adjoint each has its transpose.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.functional import pad

from lsfast.program.rules.linear_maps import LinearMap
from lsfast.program.rules.pooling import map_dimensions
from lsfast.program.rules.rule import Rule, register_rule, rule_for

aten = torch.ops.aten


@rule_for(aten.constant_pad_nd.default)
class ConstantPad(Rule):
    """A constant around x, or less of x where the padding is negative."""

    curved = False

    def forward(self, x: Tensor, padding: list[int], value: float = 0.0) -> Tensor:
        self.padding = list(padding)
        y: Tensor = pad(x, self.padding, value=value)
        return y

    def jvp(self, x: Tensor, *_: None) -> Tensor:
        if x.dim() < 5 or len(self.padding) > 2 * (x.dim() - 2):
            return pad(x, self.padding)
        result: Tensor = pad(x.flatten(0, 1), self.padding).unflatten(
            0, x.shape[:2]
        )  # which keeps images channels_last
        return result

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        for axis, before, after in _ends(self.padding):
            adjoints = _inside(adjoints, axis, before, after)
        return adjoints, None, None


class EdgePad(Rule):
    """Padding by elements of x: mirrored, from the other end, or the last ones."""

    curved = False

    def forward(self, x: Tensor, padding: list[int], mode: str) -> Tensor:
        self.padding, self.mode = list(padding), mode
        # Numbers padded like x tell which element each one is.
        self.sources = []
        for axis, before, after in _ends(self.padding):
            numbers = pad(torch.arange(x.shape[axis], dtype=torch.float64)[None], (before, after), mode=mode)
            self.sources.append((axis, before, after, [int(number) for number in numbers[0].tolist()]))
        y: Tensor = pad(x, self.padding, mode=mode)
        return y

    def jvp(self, x: Tensor, *_: None) -> Tensor:
        batches = x.dim() - 1 - len(self.padding) // 2
        result: Tensor = pad(x.flatten(0, batches - 1), self.padding, mode=self.mode).unflatten(0, x.shape[:batches])
        return result

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        for axis, before, after, source in self.sources:
            n = len(source)
            inside = _inside(adjoints, axis, before, after).clone()
            for place in (*range(before), *range(n - max(after, 0), n)):
                inside.select(axis, source[place]).add_(adjoints.select(axis, place))
            adjoints = inside
        return adjoints, None, None, None


@rule_for(aten.pad.default)
class Pad(Rule):
    """Padding of any mode."""

    curved = False

    def forward(self, x: Tensor, padding: list[int], mode: str, value: float | None) -> Tensor:
        if mode == "constant":
            constant = ConstantPad(self.active)
            self.rule: Rule = constant
            return constant.forward(x, padding, 0.0 if value is None else value)
        edge = EdgePad(self.active)
        self.rule = edge
        return edge.forward(x, padding, mode)

    def jvp(self, x: Tensor, *_: None) -> Tensor:
        y: Tensor = self.rule.jvp(x)
        return y

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        return self.rule.vjp(adjoints)[0], None, None, None


def _ends(padding: list[int]) -> list[tuple[int, int, int]]:
    """Return (axis, before, after) of what is padded: a list of both ends of the last dimension, the one before, ..."""
    return [(-1 - i // 2, padding[i], padding[i + 1]) for i in range(0, len(padding), 2) if any(padding[i : i + 2])]


def _inside(rows: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Return rows without their padding, a view; with zeros where something had been cut off."""
    start, end = max(before, 0), rows.shape[axis] - max(after, 0)
    rows = rows.narrow(axis, start, end - start)
    if before >= 0 and after >= 0:
        return rows
    return pad(rows, [0, 0] * (-1 - axis) + [max(-before, 0), max(-after, 0)])


class Roll(LinearMap):
    """Elements moved along dimensions, or along the flattened tensor, those beyond the end to the start."""

    def rows(self, x: Tensor) -> Tensor:
        return self._rolled(x, list(self.args[1]))

    def transposed(self, y: Tensor) -> Tensor:
        return self._rolled(y, [-shift for shift in self.args[1]])

    def _rolled(self, rows: Tensor, shifts: list[int]) -> Tensor:
        dims = [self.axis(dim) for dim in self.args[2]]
        return rows.roll(shifts, dims) if dims else rows.flatten(1).roll(shifts, [1]).view(rows.shape)


class Flip(LinearMap):
    """Elements in reverse order: its own transpose."""

    def rows(self, x: Tensor) -> Tensor:
        return x.flip([self.axis(dim) for dim in self.args[1]])

    def transposed(self, y: Tensor) -> Tensor:
        return self.rows(y)


class Triangle(LinearMap):
    """A triangle of matrices, zeros elsewhere: its own transpose."""

    def rows(self, x: Tensor) -> Tensor:
        result: Tensor = self.operation(x, self.args[1])
        return result

    def transposed(self, y: Tensor) -> Tensor:
        return self.rows(y)


class CumulativeSum(LinearMap):
    """Sums of all elements up to each; the transpose sums those from each on."""

    def rows(self, x: Tensor) -> Tensor:
        return x.cumsum(self.axis(self.args[1]), dtype=self.result_dtype) if self.shape else x.to(self.result_dtype)

    def transposed(self, y: Tensor) -> Tensor:
        if self.shape:
            axis = self.axis(self.args[1])
            y = y.flip(axis).cumsum(axis).flip(axis)
        return y.to(self.dtype)


class Resize(LinearMap):
    """Interpolation, a matrix for each spatial dimension: y = P1 x P2^T.

    Tangents are interpolated like x. The matrices serve the adjoint: its sums then have a fixed order on a GPU too.
    """

    def forward(self, x: Tensor, *options: Any) -> Tensor:
        sizes = x.shape[2:]
        self.transposes = []
        for i, n in enumerate(sizes):
            # A channel for each basis vector of dimension i, the same along the others.
            basis = torch.eye(n, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
            basis = basis.view(1, n, *(n if j == i else 1 for j in range(len(sizes)))).expand(1, n, *sizes)
            first = tuple(slice(None) if j == i else 0 for j in range(len(sizes)))
            self.transposes.append(self.operation(basis, *options)[0][:, *first].to(x.dtype))
        y: Tensor = super().forward(x, *options)
        return y

    def rows(self, x: Tensor) -> Tensor:
        y: Tensor = self.operation(x.flatten(0, 1), *self.args[1:])
        result: Tensor = y.unflatten(0, x.shape[:2])
        return result

    def transposed(self, y: Tensor) -> Tensor:
        return map_dimensions(y, self.transposes)


class Unfold(LinearMap):
    """The patches of an image as columns."""

    def rows(self, x: Tensor) -> Tensor:
        columns: Tensor = aten.im2col(x.flatten(0, -4), *self.args[1:])
        result: Tensor = columns.unflatten(0, x.shape[:-3])
        return result

    def transposed(self, y: Tensor) -> Tensor:
        images: Tensor = aten.col2im(y.flatten(0, -3), self.shape[-2:], *self.args[1:])
        result: Tensor = images.unflatten(0, y.shape[:-2])
        return result


class Fold(LinearMap):
    """The image that columns of patches add up to."""

    def rows(self, x: Tensor) -> Tensor:
        images: Tensor = aten.col2im(x.flatten(0, -3), *self.args[1:])
        result: Tensor = images.unflatten(0, x.shape[:-2])
        return result

    def transposed(self, y: Tensor) -> Tensor:
        columns: Tensor = aten.im2col(y.flatten(0, -4), *self.args[2:])
        result: Tensor = columns.unflatten(0, y.shape[:-3])
        return result


class Shuffle(LinearMap):
    """Channels to pixels or back; the other one is the transpose."""

    def rows(self, x: Tensor) -> Tensor:
        result: Tensor = self.operation(x, self.args[1])
        return result

    def transposed(self, y: Tensor) -> Tensor:
        other = aten.pixel_unshuffle if self.operation is aten.pixel_shuffle.default else aten.pixel_shuffle
        x: Tensor = other(y, self.args[1])
        return x


_patterns: dict[type[LinearMap], tuple[OpOverload, ...]] = {
    Roll: (aten.roll.default,),
    Flip: (aten.flip.default,),
    Triangle: (aten.tril.default, aten.triu.default),
    CumulativeSum: (aten.cumsum.default,),
    Unfold: (aten.im2col.default,),
    Fold: (aten.col2im.default,),
    Shuffle: (aten.pixel_shuffle.default, aten.pixel_unshuffle.default),
    Resize: (
        aten.upsample_nearest1d.vec,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest3d.vec,
        aten._upsample_nearest_exact1d.vec,
        aten._upsample_nearest_exact2d.vec,
        aten._upsample_nearest_exact3d.vec,
        aten.upsample_linear1d.vec,
        aten.upsample_bilinear2d.vec,
        aten.upsample_trilinear3d.vec,
        aten.upsample_bicubic2d.vec,
        aten._upsample_bilinear2d_aa.vec,
        aten._upsample_bicubic2d_aa.vec,
    ),
}
for _class, _operations in _patterns.items():
    for _operation in _operations:
        register_rule(_operation, partial(_class, _operation))
