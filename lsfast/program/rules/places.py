"""Places in a tensor, in all the ways that operations name them: what is read, written and added there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lsfast.program.rules.selection import scatter, select


class Places:
    """Places in a tensor: neighbouring dimensions, brought together as one axis, and an index along it.

    Parameters
    ----------
    axis, lengths
        The first of these dimensions, and their lengths.
    index
        Places along the axis, of any shape, which takes its place in what is read.
    order
        The order in which dimensions are neighbours, None for their own.
    """

    def __init__(self, axis: int, lengths: list[int], index: Tensor, order: list[int] | None = None) -> None:
        self.axis, self.lengths, self.order = axis, lengths, order
        self.index, self.shape = index.flatten(), index.shape

    def region(self, shape: Sequence[int]) -> list[int]:
        """Return the shape of what is read from a tensor of that shape."""
        ordered = list(shape) if self.order is None else [shape[axis] for axis in self.order]
        ordered[self.axis : self.axis + len(self.lengths)] = self.shape
        return ordered

    def read(self, rows: Tensor) -> Tensor:
        """Return what is at the places in each row."""
        return self._spread(select(self._merged(rows), self.index, self.axis + 1), self.shape)

    def add(self, rows: Tensor) -> Tensor:
        """Return zeros with everything added at its place: the adjoint of `read`."""
        found = scatter(self._joined(rows, self.shape), self.index, torch.Size(self.lengths).numel(), self.axis + 1)
        return self._apart(found)

    def write(self, rows: Tensor, values: Tensor | None) -> Tensor:
        """Return rows with what is at the places replaced, by zeros if no values are given."""
        merged = self._merged(rows).clone(memory_format=torch.contiguous_format)
        if values is None:
            merged.index_fill_(self.axis + 1, self.index, 0.0)
        else:
            merged.index_copy_(self.axis + 1, self.index, self._joined(values, self.shape))
        return self._apart(merged)

    def _merged(self, rows: Tensor) -> Tensor:
        if self.order is not None:
            rows = rows.permute(0, *(axis + 1 for axis in self.order))
        return self._joined(rows, self.lengths)

    def _apart(self, rows: Tensor) -> Tensor:
        rows = self._spread(rows, self.lengths)
        if self.order is None:
            return rows
        return rows.permute(0, *(self.order.index(axis) + 1 for axis in range(len(self.order))))

    def _joined(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Bring dimensions together as the one axis."""
        before, after = self.axis + 1, self.axis + 1 + len(shape)
        return rows.reshape(*rows.shape[:before], torch.Size(shape).numel(), *rows.shape[after:])

    def _spread(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the one axis as dimensions again."""
        return rows.view(*rows.shape[: self.axis + 1], *shape, *rows.shape[self.axis + 2 :])


def places_of_indices(x: Tensor, indices: list[Tensor | None], *_: Any) -> Places:
    """Return the places of ``x[indices]``: integers, or masks of booleans, each for dimensions of its own."""
    all_indices: list[Tensor | None] = []
    for item in indices:
        is_mask = item is not None and item.dtype in (torch.bool, torch.uint8)
        all_indices += item.nonzero(as_tuple=True) if item is not None and is_mask else [item]
    used = [axis for axis, item in enumerate(all_indices) if item is not None]
    given = torch.broadcast_tensors(*[item.to(x.device) for item in all_indices if item is not None])
    lengths = [x.shape[axis] for axis in used]
    index = torch.zeros_like(given[0], dtype=torch.int64)
    for item, n in zip(given, lengths, strict=True):
        index = index * n + torch.where(item < 0, item + n, item)
    if used == list(range(used[0], used[0] + len(used))):
        return Places(used[0], lengths, index)
    # Apart from one another, their common dimensions come first in the result.
    return Places(0, lengths, index, used + [axis for axis in range(x.dim()) if axis not in used])


def places_along(x: Tensor, dim: int, index: Tensor, *_: Any) -> Places:
    """Return the places of whole slices along a dimension."""
    if x.dim() == 0:
        return Places(0, [], index.reshape(()))
    axis = dim % x.dim()
    return Places(axis, [x.shape[axis]], index.reshape(-1))


def places_by_gather(x: Tensor, dim: int, index: Tensor, *_: Any) -> Places:
    """Return the places of single elements, each with its own index along a dimension."""
    return _places_in_all(x, lambda offsets: offsets.gather(dim, index))


def _places_in_all(x: Tensor, read: Callable[[Tensor], Tensor]) -> Places:
    offsets = torch.arange(x.numel(), device=x.device).view(x.shape)
    return Places(0, list(x.shape), read(offsets))


def places_along_dim(x: Tensor, indices: Tensor, dim: int | None) -> Places:
    """Return the places that ``take_along_dim`` reads: as gather, broadcast, or in the flattened tensor."""
    return _places_in_all(x, lambda offsets: torch.take_along_dim(offsets, indices, dim))


def places_in_flat(x: Tensor, index: Tensor) -> Places:
    """Return the places of single elements by their number."""
    return _places_in_all(x, lambda offsets: offsets.take(index))
