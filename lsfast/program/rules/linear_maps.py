"""Operations that are linear in one tensor: views, permutations, slices, sums, joins and splits.

A class says how it acts on rows and how its transpose does; jvp, vjp and vjp_jvp follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.rules.generic import call_operation
from lsfast.program.rules.rule import Activity, Rule, register_rule
from lsfast.program.rules.shapes import after_rows, spread_rows, sum_rows_to

aten = torch.ops.aten


class LinearMap(Rule):
    """A linear map of its first argument; the others are no tensors, or constants."""

    curved = False

    def __init__(self, operation: OpOverload, active: Activity) -> None:
        super().__init__(active)
        self.operation = operation

    def forward(self, *args: Any) -> Any:
        self.args = (None, *args[1:])
        self.shape, self.dtype = args[0].shape, args[0].dtype
        y = call_operation(self.operation, args)
        if isinstance(y, Tensor):
            self.result_shape, self.result_dtype = y.shape, y.dtype
        return y

    def axis(self, dim: int) -> int:
        """Return an axis of the argument as an axis of its rows."""
        return after_rows(dim, len(self.shape))

    def jvp(self, *tangents: Any) -> Any:
        return self.rows(tangents[0])

    def vjp(self, adjoints: Any) -> tuple[Tensor]:
        return (self.transposed(adjoints),)

    def rows(self, x: Tensor) -> Any:
        raise TypeError(f"{type(self).__name__} does not define rows")

    def transposed(self, y: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define transposed")


class Reshape(LinearMap):
    """Everything that keeps the elements in their order, also into another dtype."""

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.result_shape).to(self.result_dtype)

    def transposed(self, y: Tensor) -> Tensor:
        return y.reshape(len(y), *self.shape).to(self.dtype)


class Permutation(LinearMap):
    """Transpositions and permutations of axes."""

    def forward(self, *args: Any) -> Any:
        permutation = permutation_of(self.operation, args, args[0].dim())
        assert permutation is not None
        self.order = [0, *(axis + 1 for axis in permutation)]
        self.inverse = [self.order.index(axis) for axis in range(len(self.order))]
        return super().forward(*args)

    def rows(self, x: Tensor) -> Tensor:
        return x.permute(self.order)

    def transposed(self, y: Tensor) -> Tensor:
        return y.permute(self.inverse)


def permutation_of(operation: OpOverload, args: tuple[Any, ...], dims: int) -> list[int] | None:
    """Return which axis of the argument each axis of the result is, None if the operation is no permutation."""
    name = operation._schema.name.split("::")[1]
    if name not in _PERMUTATIONS:
        return None
    probe = torch.empty([2] * dims, device="meta").as_strided([2] * dims, list(range(dims)))
    return list(call_operation(operation, (probe, *args[1:])).stride())


class Expand(LinearMap):
    """Broadcasting to a larger shape."""

    def rows(self, x: Tensor) -> Tensor:
        return spread_rows(x, self.result_shape)

    def transposed(self, y: Tensor) -> Tensor:
        return sum_rows_to(y, self.shape)


class Repeat(LinearMap):
    """Tiles."""

    def rows(self, x: Tensor) -> Tensor:
        lead = len(self.result_shape) - len(self.shape)
        padded = x.reshape(len(x), *(1,) * lead, *self.shape)
        return padded.repeat(1, *self.args[1])

    def transposed(self, y: Tensor) -> Tensor:
        repeats = self.args[1]
        lead = len(repeats) - len(self.shape)
        sizes = [size for r, s in zip(repeats, [*(1,) * lead, *self.shape], strict=True) for size in (r, s)]
        tiles = y.reshape(len(y), *sizes)
        return tiles.sum(list(range(1, 2 * len(repeats), 2))).reshape(len(y), *self.shape)


class RepeatInterleave(LinearMap):
    """Each element, or slice along an axis, a number of times."""

    def rows(self, x: Tensor) -> Tensor:
        dim = self.args[2]
        flat = x.reshape(len(x), -1) if dim is None else x
        return flat.repeat_interleave(self.args[1], 1 if dim is None else self.axis(dim))

    def transposed(self, y: Tensor) -> Tensor:
        times, dim = self.args[1], self.args[2]
        axis = 1 if dim is None else self.axis(dim)
        tiles: Tensor = y.unflatten(axis, (y.shape[axis] // times, times))
        return tiles.sum(axis + 1).reshape(len(y), *self.shape)


class Slice(LinearMap):
    """``x[start:end:step]`` along one axis."""

    def _part(self, x: Tensor) -> Tensor:
        dim, start, end, step = self.args[1:5]
        return aten.slice.Tensor(x, self.axis(dim), start, end, step)  # type: ignore[no-any-return]

    def rows(self, x: Tensor) -> Tensor:
        return self._part(x)

    def transposed(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.shape)
        self._part(x).copy_(y)
        return x


class Narrow(Slice):
    """``x.narrow(dim, start, length)``."""

    def _part(self, x: Tensor) -> Tensor:
        _, dim, start, length = self.args
        return x.narrow(self.axis(dim), start, length)


class Select(Slice):
    """``x[index]`` along one axis."""

    def _part(self, x: Tensor) -> Tensor:
        _, dim, index = self.args
        return x.select(self.axis(dim), index)


class Diagonal(Slice):
    """A diagonal of two axes."""

    def _part(self, x: Tensor) -> Tensor:
        _, offset, first, second = self.args
        return x.diagonal(offset, self.axis(first), self.axis(second))


class Split(LinearMap):
    """split, chunk, unbind: several pieces along one axis."""

    def forward(self, *args: Any) -> Any:
        pieces = super().forward(*args)
        name = self.operation._schema.name.split("::")[1]
        self.dim = self.axis(args[1] if name == "unbind" else args[2])
        self.sizes = None if name == "unbind" else [piece.shape[self.dim - 1] for piece in pieces]
        return pieces

    def rows(self, x: Tensor) -> Any:
        return x.unbind(self.dim) if self.sizes is None else x.split(self.sizes, self.dim)

    def transposed(self, y: Any) -> Tensor:
        given = next(piece for piece in y if piece is not None)
        if self.sizes is None:
            return torch.stack([torch.zeros_like(given) if piece is None else piece for piece in y], self.dim)
        shape = list(given.shape)
        pieces = []
        for piece, size in zip(y, self.sizes, strict=True):
            shape[self.dim] = size
            pieces.append(given.new_zeros(shape) if piece is None else piece)
        return torch.cat(pieces, self.dim)


class Sum(LinearMap):
    """sum and mean, over all or some axes."""

    def forward(self, *args: Any) -> Any:
        dims = args[0].dim()
        names = [argument.name for argument in self.operation._schema.arguments]
        chosen = args[names.index("dim")] if "dim" in names else None
        self.axes = [self_axis % max(dims, 1) for self_axis in chosen] if chosen else list(range(dims))
        y = super().forward(*args)
        mean = self.operation._schema.name == "aten::mean"
        self.scale = y.numel() / args[0].numel() if mean and args[0].numel() else 1.0
        return y

    def rows(self, x: Tensor) -> Tensor:
        axes = [axis + 1 for axis in self.axes]
        total = x.sum(axes, dtype=self.result_dtype) if axes else x.to(self.result_dtype)
        if self.scale != 1.0:
            total = total * self.scale
        return total.reshape(len(x), *self.result_shape)

    def transposed(self, y: Tensor) -> Tensor:
        kept = [1 if axis in self.axes else size for axis, size in enumerate(self.shape)]
        scaled = (y * self.scale if self.scale != 1.0 else y).to(self.dtype)
        return scaled.reshape(len(y), *kept).expand(len(y), *self.shape)


class Join(Rule):
    """cat and stack of a list of tensors."""

    curved = False
    stacks = False

    def forward(self, tensors: list[Tensor], dim: int) -> Tensor:
        y = torch.stack(tensors, dim) if self.stacks else torch.cat(tensors, dim)
        if not self.stacks:  # cat skips an empty one-dimensional tensor, whatever the shape of the others
            self.joined = [x.dim() == y.dim() for x in tensors]
        self.shapes, self.dtypes, self.dtype = [x.shape for x in tensors], [x.dtype for x in tensors], y.dtype
        self.dim = after_rows(dim, y.dim())
        return y

    def jvp(self, tensors: list[Tensor | None], dim: Any) -> Tensor:
        given = next(t for t in tensors if t is not None)
        rows = [
            (given.new_zeros(len(given), *shape) if t is None else t).to(self.dtype)
            for t, shape in zip(tensors, self.shapes, strict=True)
        ]
        if self.stacks:
            return torch.stack(rows, self.dim)
        return torch.cat([row for row, joined in zip(rows, self.joined, strict=True) if joined], self.dim)

    def vjp(self, adjoints: Tensor) -> tuple[list[Tensor | None]]:
        flags = self.active[0]
        assert isinstance(flags, tuple)
        if self.stacks:
            parts = list(adjoints.unbind(self.dim))
        else:
            sizes = [
                shape[self.dim - 1] if joined else 0 for shape, joined in zip(self.shapes, self.joined, strict=True)
            ]
            parts = list(adjoints.split(sizes, self.dim))
        return (
            [
                part.reshape(len(adjoints), *shape).to(dtype) if flag else None
                for part, flag, shape, dtype in zip(parts, flags, self.shapes, self.dtypes, strict=True)
            ],
        )


class Stack(Join):
    """stack: a new axis."""

    stacks = True


class Replaced(Rule):
    """``x`` with a part of it replaced by ``source``: select_scatter, slice_scatter."""

    curved = False

    def __init__(self, operation: OpOverload, active: Activity) -> None:
        super().__init__(active)
        self.operation = operation

    def forward(self, x: Tensor, source: Tensor, *where: Any) -> Tensor:
        self.where, self.shape, self.source_shape = where, x.shape, source.shape
        self.dtype, self.source_dtype = x.dtype, source.dtype
        return call_operation(self.operation, (x, source, *where))  # type: ignore[no-any-return]

    def _part(self, rows: Tensor) -> Tensor:
        dim = after_rows(self.where[0], len(self.shape))
        if len(self.where) == 2:
            return rows.select(dim, self.where[1])
        return aten.slice.Tensor(rows, dim, *self.where[1:])  # type: ignore[no-any-return]

    def jvp(self, x: Tensor | None, source: Tensor | None, *where: Any) -> Tensor:
        given = x if x is not None else source
        assert given is not None
        rows = (
            x.clone(memory_format=torch.contiguous_format)
            if x is not None
            else given.new_zeros((len(given), *self.shape), dtype=self.dtype)
        )
        part = self._part(rows)
        part.copy_(source) if source is not None else part.zero_()
        return rows

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rest = None
        if self.active[0]:
            rest = adjoints.clone(memory_format=torch.contiguous_format)
            self._part(rest).zero_()
        part = self._part(adjoints).to(self.source_dtype) if self.active[1] else None
        return rest, part


def _enter(make: type[LinearMap] | type[Replaced], *operations: OpOverload) -> None:
    for operation in operations:
        register_rule(operation, lambda active, operation=operation: make(operation, active))  # type: ignore[misc]


def overloads(*names: str) -> list[OpOverload]:
    """Return the operations of the given names that this version of torch has."""
    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(aten, packet, None), overload or "default", None)
        if operation is not None:
            found.append(operation)
    return found


_enter(
    Reshape,
    *overloads("view", "reshape", "_unsafe_view", "flatten.using_ints", "unflatten.int", "squeeze"),
    *overloads("squeeze.dim", "squeeze.dims", "unsqueeze", "contiguous", "clone", "alias", "view_as", "reshape_as"),
    *overloads("_to_copy", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as", "float", "double"),
    *overloads("_reshape_alias", "view_copy", "ravel", "atleast_1d", "positive", "lift_fresh", "lift"),
)
_PERMUTATIONS = {"transpose", "permute", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "numpy_T"}
_PERMUTATIONS |= {"adjoint", "matrix_H", "transpose_copy", "permute_copy"}
_enter(
    Permutation,
    *overloads("transpose.int", "permute", "t", "movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist"),
    *overloads("swapaxes", "swapdims", "mT", "numpy_T", "adjoint", "matrix_H"),
)
_enter(Expand, *overloads("expand", "expand_as", "broadcast_to"))
_enter(Repeat, *overloads("repeat", "tile"))
_enter(RepeatInterleave, *overloads("repeat_interleave.self_int"))
_enter(Slice, *overloads("slice.Tensor"))
_enter(Narrow, *overloads("narrow"))
_enter(Select, *overloads("select.int"))
_enter(Diagonal, *overloads("diagonal"))
_enter(Split, *overloads("split.Tensor", "split.sizes", "split_with_sizes", "chunk", "unbind.int"))
_enter(Sum, *overloads("sum", "sum.dim_IntList", "mean", "mean.dim"))
_enter(Replaced, *overloads("select_scatter", "slice_scatter"))
register_rule(aten.cat.default, Join)
register_rule(aten.concat.default, Join)
register_rule(aten.stack.default, Stack)
