r"""Indexing by tensors of integers, which are constants: linear in what is read and written.

Reading, :math:`y_i = x_{s(i)}`, has the adjoint :math:`\bar x_j = \sum_{s(i) = j} \bar y_i`. Writing values v into x
has the adjoint :math:`\bar v_i = \bar y_{s(i)}`, and that of x is :math:`\bar y`, without what was overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.functional import pad

from lsfast.program.rules.generic import call_operation
from lsfast.program.rules.places import (
    Places,
    places_along,
    places_along_dim,
    places_by_gather,
    places_in_flat,
    places_of_indices,
)
from lsfast.program.rules.rule import Activity, Rule, register_rule, rule_for
from lsfast.program.rules.selection import scatter, select

aten = torch.ops.aten


@rule_for(aten.embedding.default)
class Embedding(Rule):
    """Rows of a weight. The row `padding_idx` is a constant: torch gives it no gradient, so its tangent is none."""

    curved = False

    def forward(self, weight: Tensor, indices: Tensor, padding: int, scaled: bool, sparse: bool) -> Tensor:
        if scaled:
            raise ValueError("embedding: scale_grad_by_freq must be False, as a scaled gradient is no derivative")
        self.tokens, self.shape, self.count = indices.flatten(), indices.shape, len(weight)
        self.padding = None if padding < 0 else padding
        return aten.embedding(weight, indices)  # type: ignore[no-any-return]

    def jvp(self, weight: Tensor, *_: None) -> Tensor:
        rows = select(weight, self.tokens)
        if self.padding is not None:
            rows.masked_fill_((self.tokens == self.padding)[:, None], 0.0)
        return rows.view(len(rows), *self.shape, rows.shape[-1])

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        rows = adjoints.reshape(len(adjoints), len(self.tokens), adjoints.shape[-1])
        found = scatter(rows, self.tokens, self.count, out=self.into.get(0))
        if self.padding is not None:
            found[:, self.padding] = 0.0
        return found, None, None, None, None


class Reading(Rule):
    """An operation that reads places of its first argument.

    Parameters
    ----------
    operation
        The operation.
    places
        What returns the places, given all arguments.
    """

    curved = False

    def __init__(self, active: Activity, operation: OpOverload, places: Callable[..., Places]) -> None:
        super().__init__(active)
        self.operation = operation
        self.find = places

    def forward(self, x: Tensor, *options: Any) -> Any:
        self.places = self.find(x, *options)
        return call_operation(self.operation, (x, *options))

    def jvp(self, x: Tensor, *_: None) -> Tensor:
        return self.places.read(x)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        return (self.places.add(adjoints),)


class Writing(Rule):
    """An operation that writes values to places of its first argument, or adds them there.

    Parameters
    ----------
    operation, places
        As for `Reading`.
    values
        Which argument the values are.
    factor
        What returns by how much they are multiplied to be added, None to replace, given all arguments.
    """

    curved = False

    def __init__(
        self,
        active: Activity,
        operation: OpOverload,
        places: Callable[..., Places],
        values: int,
        factor: Callable[..., float | None],
    ) -> None:
        super().__init__(active)
        self.operation, self.find, self.at, self.find_factor = operation, places, values, factor

    def forward(self, *args: Any) -> Any:
        self.places = self.find(*args)
        self.factor = self.find_factor(*args)
        x, values = args[0], args[self.at]
        self.shape = x.shape
        if isinstance(values, Tensor):
            self.values_shape, self.region = values.shape, self.places.region(x.shape)
        return call_operation(self.operation, args)

    def jvp(self, *tangents: Any) -> Tensor:
        x: Tensor | None = tangents[0]
        values: Tensor | None = tangents[self.at]
        if values is not None:
            values = self._fitted(values)
        if values is None:
            assert x is not None
            return self.places.write(x, None) if self.factor is None else x
        if self.factor is None:
            return self.places.write(values.new_zeros(()).expand(len(values), *self.shape) if x is None else x, values)
        total = self.places.add(values)
        if self.factor != 1:
            total.mul_(self.factor)
        return total if x is None else total.add_(x)

    def vjp(self, adjoints: Tensor) -> tuple[Any, ...]:
        found: list[Any] = [[None] * len(flag) if isinstance(flag, tuple) else None for flag in self.active]
        if self.active[0]:
            found[0] = adjoints if self.factor is not None else self.places.write(adjoints, None)
        if self.active[self.at]:
            values = self._unfitted(self.places.read(adjoints))
            found[self.at] = values if self.factor in (None, 1) else values.mul_(self.factor)
        return tuple(found)

    def _fitted(self, values: Tensor) -> Tensor:
        """Return rows of values as one for each place: broadcast, or the first of them, which `scatter` takes."""
        missing = len(self.region) - len(self.values_shape)
        values = values.view(len(values), *(1,) * missing, *self.values_shape)
        for axis, n in enumerate(self.region, start=1):
            values = values.narrow(axis, 0, min(n, values.shape[axis]))
        return values.expand(-1, *self.region)

    def _unfitted(self, rows: Tensor) -> Tensor:
        """Return the adjoint of `_fitted`."""
        missing = len(self.region) - len(self.values_shape)
        shape = (*(1,) * missing, *self.values_shape)
        repeated = [axis for axis, (n, m) in enumerate(zip(self.region, shape, strict=True), start=1) if m == 1 < n]
        if repeated:
            rows = rows.sum(repeated, keepdim=True)
        more = [length for n, m in zip(reversed(rows.shape[1:]), reversed(shape), strict=True) for length in (0, m - n)]
        return (pad(rows, more) if any(more) else rows).view(len(rows), *self.values_shape)


def _never(*_: Any) -> None:
    return None


_readings: dict[OpOverload, Callable[..., Places]] = {
    aten.index.Tensor: places_of_indices,
    aten.index_select.default: places_along,
    aten.gather.default: places_by_gather,
    aten.take_along_dim.default: places_along_dim,
    aten.take.default: places_in_flat,
}
for _operation, _places in _readings.items():
    register_rule(_operation, partial(Reading, operation=_operation, places=_places))

_writings: dict[OpOverload, tuple[Callable[..., Places], int, Callable[..., float | None]]] = {
    aten.index_put.default: (places_of_indices, 2, lambda x, indices, values, adds: 1.0 if adds else None),
    aten.scatter.src: (places_by_gather, 3, _never),
    aten.scatter.value: (places_by_gather, 3, _never),
    aten.scatter_add.default: (places_by_gather, 3, lambda *_: 1.0),
    aten.index_add.default: (places_along, 3, lambda x, dim, index, source, alpha: alpha),
    aten.index_copy.default: (places_along, 3, _never),
}
for _operation, (_places, _values, _factor) in _writings.items():
    register_rule(_operation, partial(Writing, operation=_operation, places=_places, values=_values, factor=_factor))
