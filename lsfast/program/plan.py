r"""How a program is evaluated at many parameter sets: what runs once for a batch, and what for every chunk of points.

A point is theta + sum_k c_k d_k, and a value of the program is one of three kinds:

    SHARED   the same at every point: computed once for a batch
    AFFINE   v_0 + sum_k c_k v_k, as the parameters are, and what is linear in them: the products of the first layer
             with W, D_1, D_2, ... are formed once for a batch, and give it at every point without another product
    MANY     all else: computed for a chunk of points together, with a leading axis
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lsfast.program.batched.in_place import activation_of
from lsfast.program.batched.losses import RowLosses, row_losses
from lsfast.program.batched.table import Many, aten, call_batched
from lsfast.program.graph import Program, Slot, Step
from lsfast.program.rules.linear_maps import overloads


class Kind(enum.IntEnum):
    """What a value is to the points; see the file's head."""

    SHARED = 0
    AFFINE = 1
    MANY = 2


@dataclass(frozen=True)
class Plan:
    """The steps of a program by when they run.

    Attributes
    ----------
    program
        The program.
    kinds
        Of every slot.
    once, each
        Places of the steps that run once for a batch, and for every chunk of points.
    last
        Place of a step -> the slots that no later one needs in a chunk.
    loss
        Makes what gives the contributions of rows by the loss's last step; None: only the batch's loss is known.
    loss_step
        That step, which is not among the others.
    activations
        Place of a step -> the activation of its result, which the step has taken over from the one that read it.
    statistics
        Places of the steps that are batch norms with statistics of their own.
    """

    program: Program
    kinds: tuple[Kind, ...]
    once: tuple[int, ...]
    each: tuple[int, ...]
    last: dict[int, tuple[int, ...]]
    loss: Callable[[], RowLosses] | None
    loss_step: Step | None
    activations: dict[int, str]
    statistics: frozenset[int]

    @property
    def apart(self) -> bool:
        """Whether points are best taken one by one: a convolution's images and kernels both differ between them."""
        places = (self.program.steps[place] for place in self.each)
        return any(
            step.operation in _CONVOLUTIONS
            and all(isinstance(a, Slot) and self.kinds[a.index] > Kind.SHARED for a in step.arguments[:2])
            for step in places
        )

    @property
    def ends(self) -> list[int]:
        """Slots that a chunk must give."""
        if self.loss_step is None:
            return [self.program.loss]
        return [slot for slot, _ in self.loss_step.read()]

    def bytes_of_point(self, itemsize: int) -> tuple[int, int]:
        """Return about the largest sum of the values of one point that live together, and the largest value."""
        alive: set[int] = set()
        now = peak = largest = 0
        for place in self.each:
            step = self.program.steps[place]
            for slot in {slot for slot, _ in step.read() if self.kinds[slot] > Kind.SHARED} | set(step.written()):
                if slot not in alive:
                    alive.add(slot)
                    size = math.prod(self.program.shapes[slot])
                    now, largest = now + size, max(largest, size)
            peak = max(peak, now)
            for slot in self.last[place]:
                if slot in alive:
                    alive.remove(slot)
                    now -= math.prod(self.program.shapes[slot])
        ends = sum(math.prod(self.program.shapes[slot]) for slot in self.ends if self.kinds[slot] > Kind.SHARED)
        return max(peak, ends) * itemsize, max(largest, ends) * itemsize


def make_plan(
    program: Program, moving: Mapping[int, Kind], rows: int, recompute: bool, outputs: bool, carry: bool
) -> Plan:
    """Plan the evaluation of a program.

    Parameters
    ----------
    program
        What is evaluated.
    moving
        Slot of a parameter or buffer that differs between points -> its kind.
    rows
        Of the batch's data.
    recompute
        Batch norms take their statistics from the data at each point.
    outputs
        The outputs are wanted beside the loss.
    carry
        What is linear in the parameters is affine too; else the parameters alone are.
    """
    kinds = [Kind.SHARED] * program.slots
    for slot, kind in moving.items():
        kinds[slot] = kind
    loss_place, loss = _loss_step(program, rows)
    once: list[int] = []
    each: list[int] = []
    statistics = set()
    after_loss = _after(program, loss_place) if loss is not None else set()
    for place, step in enumerate(program.steps):
        if place in after_loss:
            continue
        own = recompute and step.operation is aten.batch_norm.default and not step.arguments[5]
        if own and step.arguments[3] is not None:
            statistics.add(place)
        kind = Kind.MANY if place in statistics else _kind(step, kinds, carry)
        if loss is not None and place == loss_place:
            continue
        for slot in step.written():
            kinds[slot] = kind
        (each if kind == Kind.MANY else once).append(place)
    wanted = {program.outputs} if outputs else set()
    wanted |= {slot for slot, _ in program.steps[loss_place].read()} if loss is not None else {program.loss}
    program, each, activations = _with_activations(program, each, wanted)
    return Plan(
        program=program,
        kinds=tuple(kinds),
        once=tuple(once),
        each=tuple(each),
        last=_last_reads(program, each, kinds, wanted),
        loss=loss,
        loss_step=program.steps[loss_place] if loss is not None else None,
        activations=activations,
        statistics=frozenset(statistics),
    )


def _with_activations(program: Program, each: list[int], wanted: set[Any]) -> tuple[Program, list[int], dict[int, str]]:
    """Let a layer or a sum apply the activation that alone reads its result: a pass over memory less."""
    steps, activations, gone = list(program.steps), {}, set()
    reads = Counter(slot for place in each for slot, _ in steps[place].read())
    made = {slot: place for place in each for slot in steps[place].written()}
    for place in each:
        step = steps[place]
        name = activation_of(step)
        if name is None:
            continue
        source: int = step.arguments[0].index
        at = made.get(source)
        if at is None or at in activations or reads[source] != 1 or source in wanted:
            continue
        before = steps[at]
        sums = before.operation is aten.add.Tensor and before.arguments[2] == 1
        if before.operation is aten.linear.default or (sums and isinstance(before.arguments[1], Slot)):
            steps[at] = replace(before, results=step.results)
            activations[at] = name
            gone.add(place)
    return replace(program, steps=tuple(steps)), [place for place in each if place not in gone], activations


def _last_reads(program: Program, each: list[int], kinds: list[Kind], wanted: set[Any]) -> dict[int, tuple[int, ...]]:
    seen = set(wanted)
    last: dict[int, tuple[int, ...]] = {}
    for place in reversed(each):
        step = program.steps[place]
        slots = {slot for slot, _ in step.read() if kinds[slot] > Kind.SHARED} | set(step.written())
        last[place] = tuple(slots - seen)
        seen |= slots
    return last


_SHAPES_ONLY = overloads("view", "reshape", "_unsafe_view", "alias", "clone", "squeeze", "squeeze.dim", "contiguous")


def _loss_step(program: Program, rows: int) -> tuple[int, Callable[[], RowLosses] | None]:
    """Return the place of the step that reduces the loss, and what gives its rows (None where it is not known)."""
    made = {slot: place for place, step in enumerate(program.steps) for slot in step.written()}
    slot = program.loss
    while slot in made:
        step = program.steps[made[slot]]
        if step.operation not in _SHAPES_ONLY:
            first = step.arguments[0]
            if not isinstance(first, Slot):
                break
            found = row_losses(step.operation, step.arguments, program.shapes[first.index], rows)
            return made[slot], found
        slot = step.arguments[0].index
    return -1, None


def _after(program: Program, place: int) -> set[int]:
    """Return the places of the steps that need the result of one."""
    slots = set(program.steps[place].written())
    found = set()
    for index in range(place + 1, len(program.steps)):
        step = program.steps[index]
        if slots.intersection(slot for slot, _ in step.read()):
            found.add(index)
            slots.update(step.written())
    return found


# -- affine values ----------------------------------------------------------------------------------------------------

_LINEAR_IN_FIRST = frozenset(
    overloads(
        *("view", "reshape", "_unsafe_view", "alias", "clone", "contiguous", "flatten.using_ints", "unflatten.int"),
        *("squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze", "transpose.int", "permute", "t", "movedim.int"),
        *("swapaxes", "swapdims", "mT", "expand", "slice.Tensor", "select.int", "narrow", "neg", "mul.Scalar"),
        *("div.Scalar", "div.Tensor", "sum", "sum.dim_IntList", "mean", "mean.dim", "dropout", "embedding", "detach"),
    )
)
_CONVOLUTIONS = overloads(
    *("conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding", "convolution"),
    *("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
)
# Operation -> the places of the factors, of which one may move, and of what is added.
_MULTILINEAR: dict[Any, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(
        overloads("linear", "conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding"), ((0, 1), (2,))
    ),
    **dict.fromkeys(overloads("conv3d.padding", "convolution"), ((0, 1), (2,))),
    **dict.fromkeys(overloads("matmul", "mm", "bmm", "mul.Tensor"), ((0, 1), ())),
    **dict.fromkeys(overloads("addmm", "baddbmm"), ((1, 2), (0,))),
    **dict.fromkeys(overloads("add.Tensor", "sub.Tensor"), ((), (0, 1))),
}


def _kind(step: Step, kinds: list[Kind], carry: bool) -> Kind:
    reads = [kinds[slot] for slot, _ in step.read()]
    most = max(reads, default=Kind.SHARED)
    if most != Kind.AFFINE:
        return most
    if not carry:
        return Kind.MANY
    moving = [
        place
        for place, argument in enumerate(step.arguments)
        if isinstance(argument, Slot) and kinds[argument.index] == Kind.AFFINE
    ]
    if step.operation in _LINEAR_IN_FIRST and moving == [0]:
        return Kind.AFFINE
    if step.operation in _MULTILINEAR:
        factors, added = _MULTILINEAR[step.operation]
        moved = [place for place in moving if place in factors]
        plain = all(isinstance(step.arguments[place], Slot) or step.arguments[place] is None for place in added)
        if len(moved) == min(1, len(factors)) and len(moved) + sum(p in added for p in moving) == len(moving) and plain:
            return Kind.AFFINE
    return Kind.MANY


def affine_rows(step: Step, arguments: tuple[Any, ...], many: Many) -> Tensor:
    """Return the rows [1 + d, *s] of an affine result, given those of its affine arguments.

    Every row of the result is the operation of the rows of the arguments; what is added and is shared belongs to the
    first row alone.
    """
    added = _MULTILINEAR.get(step.operation, ((), ()))[1]
    rows = next(len(x) for x, flag in zip(arguments, many, strict=True) if flag)
    given, flags = list(arguments), list(many)
    for place in added:
        x = given[place]
        if isinstance(x, Tensor) and not flags[place]:
            given[place] = torch.cat([x[None], x.new_zeros(rows - 1, *x.shape)])
            flags[place] = True
    result: Tensor = call_batched(step.operation, tuple(given), tuple(flags))
    return result
