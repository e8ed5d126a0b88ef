"""The steps of a plan on values by slot: arguments filled in, results stored, free memory written over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lsfast.data import tensors_in
from lsfast.program.batched import call_batched
from lsfast.program.batched.in_place import activated, write_over
from lsfast.program.batched.table import Many
from lsfast.program.graph import Slot, Step


def filled(argument: Any, value: Callable[[int], Any]) -> Any:
    """Return an argument of a step with the values of its slots."""
    if isinstance(argument, Slot):
        return value(argument.index)
    if isinstance(argument, (tuple, list)):
        return [filled(item, value) for item in argument]
    return argument


def flags_of(step: Step, moving: Callable[[int], bool]) -> Many:
    """Return of each argument of a step whether its slot satisfies `moving`."""
    found: list[bool | tuple[bool, ...]] = []
    for argument in step.arguments:
        if isinstance(argument, (tuple, list)) and any(isinstance(item, Slot) for item in argument):
            found.append(tuple(isinstance(item, Slot) and moving(item.index) for item in argument))
        else:
            found.append(isinstance(argument, Slot) and moving(argument.index))
    return tuple(found)


def any_of(flags: Many) -> bool:
    """Whether any of the flags is set."""
    return any(any(flag) if isinstance(flag, tuple) else flag for flag in flags)


class Memory:
    """Whose memory the values of a chunk are in: what nothing else looks at may be written over."""

    def __init__(self) -> None:
        self.own: set[int] = set()

    def run(
        self,
        step: Step,
        arguments: tuple[Any, ...],
        many: Many,
        last: tuple[int, ...],
        shape: list[int],
        activation: str | None,
    ) -> Any:
        """Return the result of a step, in the memory of an argument where that is free.

        `last` are the slots that no later step reads, `shape` is that of the result, if it is one tensor, `activation`
        that of the result, if the step has one.
        """
        if isinstance(step.results, int):
            spare = tuple(isinstance(a, Slot) and a.index in last and a.index in self.own for a in step.arguments)
            if activation is not None:
                self.own.add(step.results)
                return activated(step.operation, arguments, many, spare, shape, activation)
            over = write_over(step.operation, arguments, many, spare, shape)
            if over is not None:
                self.own.add(step.results)
                return over
        result = call_batched(step.operation, arguments, many)
        self._note(step, arguments, result)
        return result

    def _note(self, step: Step, arguments: tuple[Any, ...], result: Any) -> None:
        """Note whose memory is its own: that of a result alone; not that of an argument with a result that views it."""
        places = {x.untyped_storage().data_ptr() for x in tensors_in(arguments)}
        slots = step.results if isinstance(step.results, tuple) else (step.results,)
        parts: list[Tensor] = list(result) if isinstance(step.results, tuple) else [result]
        at = [part.untyped_storage().data_ptr() for part in parts]
        if any(place in places for place in at):
            self.own.difference_update(slot for slot, _ in step.read())
        for slot, place in zip(slots, at, strict=True):
            if slot is not None and at.count(place) == 1 and place not in places:
                self.own.add(slot)


def dense_order(rows: Tensor) -> list[int]:
    """Return the axes of a row from the slowest in memory to the fastest."""
    steps = rows.stride()[1:]
    return sorted(range(len(steps)), key=lambda axis: -steps[axis])
