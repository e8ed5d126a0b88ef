"""Which axes of a model's parameters count the same units: they can be permuted together without changing the model.

The captured program is walked with a mark on every axis of every value: fixed, or the group whose units it counts.
Operations that combine two axes make their groups one; what reads the order of an axis fixes its group.
"""

from __future__ import annotations

from collections.abc import Mapping

from lsfast.data import batches
from lsfast.landscape.states import own_buffers
from lsfast.landscape.units.groups import Axis, Groups, Marks, NotFollowed
from lsfast.landscape.units.rules import Call, is_reduction, rule_of
from lsfast.objective import Objective
from lsfast.program.errors import CaptureError, first_line
from lsfast.program.graph import Program
from lsfast.program.linearization import program_of

Places = dict[str, dict[int, Axis]]  # name of a parameter or buffer -> its axis -> the units it counts


def unit_places(function: str, objective: Objective) -> Places:
    """Return where the parameters and floating buffers of an objective's model count units that can be permuted.

    The numbers of groups follow the order in which the model reads their first parameters.

    Raises
    ------
    ValueError
        If the model cannot be captured, or holds an operation through which units cannot be followed.
    """
    inputs, targets = next(batches(objective.data))
    try:
        with objective.undisturbed():
            program = program_of(objective, inputs, targets)
    except CaptureError as error:
        raise ValueError(
            f"{function}: objective must have a model that can be captured, or groups be given, got one that cannot: "
            f"{first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)}"
        ) from error
    groups = Groups()
    own = own_buffers(objective)
    slots = {**program.parameters, **{name: slot for name, slot in program.others.items() if name in own}}
    starts = {name: tuple(groups.new(size) for size in program.shapes[slot]) for name, slot in slots.items()}
    _walk(function, program, groups, {slot: starts[name] for name, slot in slots.items()})
    found = {name: {k: groups.root(mark) for k, mark in enumerate(marks)} for name, marks in starts.items()}
    chosen = {axis.group for name in program.parameters for axis in found[name].values() if axis is not None}
    numbers: dict[int, int] = {}
    for name in _in_order(program, slots):
        for axis in found[name].values():
            if axis is not None and axis.group in chosen:
                numbers.setdefault(axis.group, len(numbers))
    return {
        name: {
            k: Axis(numbers[axis.group], axis.units, axis.outer, axis.inner)
            for k, axis in axes.items()
            if axis is not None and axis.group in chosen
        }
        for name, axes in found.items()
    }


def given_places(objective: Objective, groups: Mapping[str, Mapping[int, str]]) -> tuple[Places, list[str]]:
    """Return the places that a user names, and the names of the groups by number.

    Raises
    ------
    TypeError, ValueError
        If they do not fit the parameters and buffers.
    """
    if not isinstance(groups, Mapping) or not all(isinstance(axes, Mapping) for axes in groups.values()):
        raise TypeError(f"align: groups must map names to axes to groups, got {groups!r}")
    shapes = dict(zip(objective.names, objective.shapes, strict=True))
    shapes |= {name: buffer.shape for name, buffer in own_buffers(objective).items()}
    sizes: dict[str, list[int]] = {}
    for name, axes in groups.items():
        if name not in shapes:
            raise ValueError(f"align: groups must name parameters and floating buffers of the objective, got {name!r}")
        for axis, group in axes.items():
            if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < len(shapes[name]):
                raise ValueError(f"align: groups[{name!r}] must have axes of {list(shapes[name])}, got {axis!r}")
            if not isinstance(group, str):
                raise TypeError(f"align: groups[{name!r}] must map axes to names, got {group!r}")
            sizes.setdefault(group, []).append(shapes[name][axis])
    of_parameters = {group for name, axes in groups.items() if name in objective.names for group in axes.values()}
    for group in sizes:
        if group not in of_parameters:
            raise ValueError(f"align: groups must be of parameters too, got {group!r} of buffers alone")
    order = list(sizes)
    for group, lengths in sizes.items():
        if any(length % min(lengths) for length in lengths):
            raise ValueError(
                f"align: groups must have axes of whole multiples of a group's units, got {lengths} for {group!r}"
            )
    places = {
        name: {
            axis: Axis(order.index(group), min(sizes[group]), inner=shapes[name][axis] // min(sizes[group]))
            for axis, group in axes.items()
        }
        for name, axes in groups.items()
    }
    return places, order


def _in_order(program: Program, slots: Mapping[str, int]) -> list[str]:
    """Return names in the order in which the program reads them."""
    names = {slot: name for name, slot in slots.items()}
    read = [slot for step in program.steps for slot, _ in step.read()]
    return list(dict.fromkeys(names[slot] for slot in read if slot in names))


def _walk(function: str, program: Program, groups: Groups, marks: dict[int, Marks]) -> None:
    """Mark all values of a program, given the marks of parameters and buffers."""

    def marks_of(slot: int) -> Marks:
        return tuple(groups.root(mark) for mark in marks.get(slot, (None,) * len(program.shapes[slot])))

    last = _last_units(program)
    for step in program.steps:
        if any(mark is not None for slot, _ in step.read() for mark in marks_of(slot)):  # else all is fixed
            try:
                result = rule_of(step.operation)(Call(step, groups, marks_of, program.shapes))
            except NotFollowed as reason:
                raise ValueError(
                    f"{function}: objective must have a model whose units can be followed, or groups be given, got "
                    f"{step.operation}{step.where}, {reason}"
                ) from None
            marks.update(dict.fromkeys(step.written(), result))
        if last in step.written():
            for mark in marks_of(last):
                groups.fix(mark)


def _last_units(program: Program) -> int:
    """Return the slot of what becomes the outputs by operations on it alone: the loss reads them in their order."""
    makers = {slot: step for step in program.steps for slot in step.written()}
    slot = program.loss if program.outputs is None else program.outputs
    while slot in makers:
        read = {source for source, _ in makers[slot].read()}
        if len(read) != 1 or next(iter(read)) not in makers or is_reduction(makers[slot].operation):
            break
        (slot,) = read
    return slot
