"""The table of batched operations: an operation of a captured model at g parameter sets at once.

An entry is called with the operation's arguments in order and, for each, whether it differs between the sets ("many":
it has a leading axis of length g); it returns the result with that axis. What has no entry runs set by set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.rules.generic import call_operation
from lsfast.program.rules.linear_maps import overloads

aten = torch.ops.aten

Many = tuple[bool | tuple[bool, ...], ...]
Entry = Callable[[OpOverload, tuple[Any, ...], Many], Any]

_table: dict[OpOverload, Entry] = {}
_Entry = TypeVar("_Entry", bound=Entry)


def batched(*names: str) -> Callable[[_Entry], _Entry]:
    """Decorate the entry of operations by name (``"view"``, ``"sum.dim_IntList"``), those that this torch has."""

    def register(entry: _Entry) -> _Entry:
        for operation in overloads(*names):
            _table[operation] = entry
        return entry

    return register


def call_batched(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Any:
    """Return the result [g, ...] of an operation (a list of such for several results), one argument many at least."""
    entry = _table.get(operation)
    if entry is None:
        entry = pointwise if torch.Tag.pointwise in operation.tags else one_by_one
    return entry(operation, arguments, many)


def one_by_one(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Any:
    """Return the stacked results of g calls."""
    results = [call_operation(operation, _set(arguments, many, index)) for index in range(sets_of(arguments, many))]
    if isinstance(results[0], Tensor):
        return stacked(results)
    return [stacked(list(parts)) for parts in zip(*results, strict=True)]


def stacked(results: list[Tensor]) -> Tensor:
    """Return tensors along a new first axis; a single one is not copied."""
    return results[0][None] if len(results) == 1 else torch.stack(results)


def pointwise(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Any:
    """Return an element-by-element operation of tensors that broadcast."""
    tensors = [(x, bool(flag)) for x, flag in zip(arguments, many, strict=True) if isinstance(x, Tensor)]
    dims = [x.dim() - flag for x, flag in tensors]
    # A number (of no axes) does not promote the others' dtype; with an axis of the sets it would.
    if (0 in dims and len({x.dtype for x, _ in tensors}) > 1) or any(isinstance(flag, tuple) for flag in many):
        return one_by_one(operation, arguments, many)
    rank = max(dims)
    aligned = tuple(align(x, rank) if flag else x for x, flag in zip(arguments, many, strict=True))
    return call_operation(operation, aligned)


def align(x: Tensor, rank: int) -> Tensor:
    """View [g, *s] as [g, 1, ..., *s] so that what stands for *s has `rank` axes."""
    missing = rank - (x.dim() - 1)
    return x if missing <= 0 else x.reshape(len(x), *(1,) * missing, *x.shape[1:])


def sets_of(arguments: tuple[Any, ...], many: Many) -> int:
    """Return g."""
    for x, flag in zip(arguments, many, strict=True):
        if isinstance(flag, tuple):
            for item, one in zip(x, flag, strict=True):
                if one:
                    return len(item)
        elif flag:
            return len(x)
    raise ValueError("sets_of: one argument must differ between the sets, got none")


def _set(arguments: tuple[Any, ...], many: Many, index: int) -> tuple[Any, ...]:
    chosen: list[Any] = []
    for x, flag in zip(arguments, many, strict=True):
        if isinstance(flag, tuple):
            chosen.append([item[index] if one else item for item, one in zip(x, flag, strict=True)])
        else:
            chosen.append(x[index] if flag else x)
    return tuple(chosen)


def as_many(x: Tensor, flag: bool, g: int) -> Tensor:
    """Return a value with the axis of the sets, expanded where it is shared."""
    return x if flag else x.expand(g, *x.shape)
