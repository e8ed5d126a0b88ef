"""The captured loss of one batch: a list of steps over numbered slots, and what each step is to its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch._ops import OpOverload

from lsfast.program.rules.generic import call_operation
from lsfast.program.rules.rule import Activity, Rule


@dataclass(frozen=True)
class Slot:
    """A value of the program by its number: an argument of a step that is filled in when it runs."""

    index: int


@dataclass(frozen=True)
class Step:
    """One call of an operation.

    Attributes
    ----------
    operation, arguments
        What is called, with all arguments of its schema in order; tensors are `Slot` (in lists too).
    results
        The slot of the result; a tuple of slots (None: never read) for an operation with several.
    active
        Whether each argument depends on the parameters.
    make
        Makes the rule; None for a step that does not depend on the parameters.
    rule
        What it is called in `explain`.
    where
        Line of the user's code that made the call, as far as it is known.
    """

    operation: OpOverload
    arguments: tuple[Any, ...]
    results: int | tuple[int | None, ...]
    active: Activity
    make: Callable[[Activity], Rule] | None
    rule: str
    where: str

    def call(self, arguments: tuple[Any, ...]) -> Any:
        """Run the operation itself, for a step that does not depend on the parameters."""
        return call_operation(self.operation, arguments)

    def store(self, result: Any, values: Any) -> None:
        """Put the result, or those that are read of several, in their slots."""
        if isinstance(self.results, tuple):
            for slot, part in zip(self.results, result, strict=True):
                if slot is not None:
                    values[slot] = part
        else:
            values[self.results] = result

    def read(self) -> list[tuple[int, bool]]:
        """Return (slot, active) of every tensor argument."""
        found: list[tuple[int, bool]] = []
        for argument, flag in zip(self.arguments, self.active, strict=True):
            if isinstance(argument, Slot):
                found.append((argument.index, bool(flag)))
            elif isinstance(argument, (tuple, list)):
                flags = flag if isinstance(flag, tuple) else (flag,) * len(argument)
                found += [(a.index, bool(f)) for a, f in zip(argument, flags, strict=True) if isinstance(a, Slot)]
        return found

    def written(self) -> list[int]:
        """Return the slots of the results that are read."""
        results = self.results if isinstance(self.results, tuple) else (self.results,)
        return [slot for slot in results if slot is not None]


@dataclass(frozen=True)
class Program:
    """A model and its loss on one batch as steps, in an order in which they can run.

    Attributes
    ----------
    steps
        Only those that the outputs or the loss depend on.
    slots
        How many values there are.
    parameters
        Name of a chosen parameter -> its slot; one that is not used is missing.
    others
        Name of another parameter or buffer -> its slot.
    constants
        Slot -> tensor, those made inside the model.
    data
        Place among the tensors of (inputs, targets) -> slot.
    outputs
        Slot of what the loss is given; None if that is not one tensor, or does not depend on the parameters.
    loss
        Slot of the loss.
    model_steps
        How many leading steps (the outputs' own) the outputs need: the others belong to the loss.
    through_outputs
        Whether the loss depends on the parameters through the outputs alone, as a GGN needs it.
    tangent_size
        Elements of all values that depend on the parameters: what K tangents take K times.
    largest_tangent
        Elements of the largest of them.
    active
        Slots of what depends on the parameters differentiably.
    shapes
        Of every value, by slot; (0,) where it is no tensor.
    """

    steps: tuple[Step, ...]
    slots: int
    parameters: dict[str, int]
    others: dict[str, int]
    constants: dict[int, Any]
    data: dict[int, int]
    outputs: int | None
    loss: int
    model_steps: int
    through_outputs: bool
    tangent_size: int
    largest_tangent: int
    active: frozenset[int] = field(default_factory=frozenset)
    shapes: tuple[tuple[int, ...], ...] = ()
