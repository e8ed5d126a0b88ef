"""The cells of a grid that is refined: which points they have, which cells have a point, and what lies inside them."""

from __future__ import annotations

import torch
from torch import Tensor


class Cells:
    """The cells between the points of a coarse grid, and their points in the fine grid of the next level.

    Along each axis an interval has a first, a middle and a last position in the fine indices: two of them are the same
    where there is nothing between its ends. A position has a lower and an upper interval: the same between the ends.
    """

    def __init__(self, coarse: list[Tensor], fine: list[Tensor]) -> None:
        ends = [torch.searchsorted(new, old) for old, new in zip(coarse, fine, strict=True)]
        self._first = [end[:-1] if len(end) > 1 else end for end in ends]
        self._last = [end[1:] if len(end) > 1 else end for end in ends]
        self._middle = [(a + b) // 2 for a, b in zip(self._first, self._last, strict=True)]
        positions = [torch.arange(len(new)) for new in fine]
        self._lower = [torch.searchsorted(last, p) for last, p in zip(self._last, positions, strict=True)]
        self._upper = [
            torch.searchsorted(first, p, right=True) - 1 for first, p in zip(self._first, positions, strict=True)
        ]
        self._new = [~torch.isin(new, old) for old, new in zip(coarse, fine, strict=True)]
        self.shape = tuple(len(first) for first in self._first)

    def touching(self, points: Tensor) -> Tensor:
        """Return the cells with one of the points in them, on their faces or corners."""
        for k, parts in enumerate(zip(self._first, self._middle, self._last, strict=True)):
            first, middle, last = (points.index_select(k, part) for part in parts)
            points = first | middle | last
        return points

    def closure(self, cells: Tensor) -> Tensor:
        """Return the points of the cells with their faces and corners."""
        for k, (lower, upper) in enumerate(zip(self._lower, self._upper, strict=True)):
            cells = cells.index_select(k, lower) | cells.index_select(k, upper)
        return cells

    def centres(self, cells: Tensor) -> Tensor:
        """Return the one point in the middle of each cell."""
        for k, (middle, new) in enumerate(zip(self._middle, self._new, strict=True)):
            shape = list(cells.shape)
            shape[k] = len(new)
            cells = cells.new_zeros(shape).index_copy_(k, middle, cells)
        return cells

    def children(self, cells: Tensor) -> Tensor:
        """Return the cells of the fine grid that lie in the cells."""
        for k, upper in enumerate(self._upper):
            cells = cells.index_select(k, upper[: max(len(upper) - 1, 1)])
        return cells

    def corrections(self, gaps: Tensor, sure: Tensor) -> Tensor:
        """Return what to add to the interpolated values on faces, from what they lack at centres.

        A point that is new along q of the r refined axes gets q / r of the mean of the `gaps` at the centres of its
        cells where these are `sure`. Were the gap of a centre a sum of one for each axis, and these equal, this would
        be exact; for any it leaves at most the mean of their absolute values.
        """
        gaps, weights = torch.where(sure, gaps, 0.0), sure.double()
        for k, middle in enumerate(self._middle):
            gaps, weights = gaps.index_select(k, middle), weights.index_select(k, middle)
        share = torch.zeros((), dtype=torch.float64)
        for k, (lower, upper, new) in enumerate(zip(self._lower, self._upper, self._new, strict=True)):
            shape = [-1 if axis == k else 1 for axis in range(gaps.dim())]
            twice = (lower != upper).view(shape)
            gaps = gaps.index_select(k, lower) + gaps.index_select(k, upper) * twice
            weights = weights.index_select(k, lower) + weights.index_select(k, upper) * twice
            share = share + new.view(shape)
        return gaps / weights.clamp_min(1.0) * share / max(1, sum(bool(new.any()) for new in self._new))
