"""Groups of units: what the axes of a value count, and what becomes of it when axes meet or are reshaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """An axis that counts units of a group: entry (o * units + u) * inner + i belongs to unit u."""

    group: int
    units: int
    outer: int = 1
    inner: int = 1


Mark = Axis | None  # None: the order of this axis matters
Marks = tuple[Mark, ...]


class NotFollowed(Exception):
    """An operation does something to units that is not known to commute with their permutation."""


class Groups:
    """Groups of units that become one where the model combines them."""

    def __init__(self) -> None:
        self._parents: list[Axis | None] = []  # how the units of a group are entries of another's; None: its own root
        self._fixed: set[int] = set()

    def new(self, units: int) -> Mark:
        """Return an axis that counts units of a new group; a single unit has nothing to permute."""
        if units < 2:
            return None
        self._parents.append(None)
        return Axis(len(self._parents) - 1, units)

    def root(self, mark: Mark) -> Mark:
        """Return an axis in terms of the group that its own became part of, None if that is fixed."""
        while mark is not None and (parent := self._parents[mark.group]) is not None:
            mark = Axis(parent.group, parent.units, mark.outer * parent.outer, parent.inner * mark.inner)
        return None if mark is None or mark.group in self._fixed else mark

    def fix(self, mark: Mark) -> None:
        """Fix the order of the units that an axis counts."""
        found = self.root(mark)
        if found is not None:
            self._fixed.add(found.group)

    def unite(self, one: Mark, other: Mark) -> Mark:
        """Make two axes whose entries meet count the same units; return what they count."""
        first, second = self.root(one), self.root(other)
        if first == second:
            return first
        for small, large in ((first, second), (second, first)):
            if small is not None and large is not None and small.group != large.group:
                if (small.outer, small.inner) == (1, 1):  # each of its units is an entry of the other's axis
                    self._parents[small.group] = large
                    return large
                if (small.outer, small.inner) == (large.outer, large.inner):
                    self._parents[small.group] = Axis(large.group, large.units)
                    return large
        self.fix(first)
        self.fix(second)
        return None


def regrouped(marks: Sequence[Mark], sizes: Sequence[int], shape: Sequence[int]) -> Marks:
    """Return the marks of a value that is reshaped from `sizes` to `shape`.

    Raises
    ------
    NotFollowed
        If the units of an axis would be parted.
    """
    factors: list[tuple[int, Mark]] = []  # of the sizes, in order: those of units, and between them
    for size, mark in zip(sizes, marks, strict=True):
        if mark is None:
            factors.append((size, None))
        else:
            factors += [(mark.outer, None), (mark.units, Axis(mark.group, mark.units)), (mark.inner, None)]
    factors = [(size, mark) for size, mark in factors if size != 1]
    result = []
    for length in shape:
        taken: list[tuple[int, Mark]] = []
        while math.prod(size for size, _ in taken) < length:
            size, mark = factors.pop(0)
            need = length // math.prod(size for size, _ in taken)
            if size > need:
                if mark is not None or size % need:
                    raise NotFollowed("which parts an axis of units")
                factors.insert(0, (size // need, None))
                size = need
            taken.append((size, mark))
        if math.prod(size for size, _ in taken) != length:
            raise NotFollowed("which parts an axis of units")
        result.append(_one_axis(taken))
    return tuple(result)


def _one_axis(factors: Sequence[tuple[int, Mark]]) -> Mark:
    """Return the mark of an axis made of these factors."""
    places = [k for k, (_, mark) in enumerate(factors) if mark is not None]
    if not places:
        return None
    if len(places) > 1:
        raise NotFollowed("which joins two axes of units")
    (place,) = places
    mark = factors[place][1]
    assert mark is not None
    outer, inner = (math.prod(size for size, _ in part) for part in (factors[:place], factors[place + 1 :]))
    return Axis(mark.group, mark.units, outer, inner)
