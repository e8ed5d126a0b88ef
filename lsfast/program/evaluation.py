"""An objective's loss at many points by the program engine: chunks of points at once, batch after batch.

For each batch what no point moves is computed once, and the products of the layers that are linear in the point
(plan.py). A chunk of points then runs the remaining steps with a leading axis of points. Losses are summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsfast.data import batches, plain, tensors_in
from lsfast.program.batched import call_batched
from lsfast.program.batched.norms import normalize_channels
from lsfast.program.capture import data_tensors
from lsfast.program.errors import CaptureError
from lsfast.program.fold import folded
from lsfast.program.graph import Program, Slot, Step
from lsfast.program.linearization import program_of
from lsfast.program.one_by_one import one_by_one
from lsfast.program.plan import Kind, Plan, affine_rows, make_plan
from lsfast.program.point_sets import Points
from lsfast.program.points import parameter_points
from lsfast.program.precision import matmul_precision
from lsfast.program.rules.generic import call_operation
from lsfast.program.totals import BatchLoss, Totals
from lsfast.program.workspace import keep_memory

if TYPE_CHECKING:
    from lsfast.objective import Objective

Metrics = Mapping[str, Callable[[Any, Any], Any]]


class _Batch:
    """A batch with what is the same for all points: shared and affine values."""

    def __init__(self, evaluator: Evaluator, inputs: Any, targets: Any, weight: float) -> None:
        self.inputs, self.targets, self.weight = inputs, targets, weight
        self.plan = evaluator.plan_of(inputs, targets)
        self.rows = next((x.shape[0] for x in tensors_in(targets) if x.dim() > 0), 1)
        points, program = evaluator.points, self.plan.program
        values: list[Any] = [None] * program.slots
        for slot, constant in program.constants.items():
            values[slot] = constant
        leaves = data_tensors(inputs, targets)
        for place, slot in program.data.items():
            values[slot] = leaves[place]
        for name, slot in {**program.parameters, **program.others}.items():
            kind = self.plan.kinds[slot]
            if kind == Kind.SHARED:
                values[slot] = evaluator.shared(name)
            elif kind == Kind.AFFINE:
                values[slot] = points.rows[name]
        self.values = values
        self._forms: dict[int, tuple[Tensor, Tensor, torch.Size, tuple[int, ...]]] = {}
        for place in self.plan.once:
            step = program.steps[place]
            arguments = tuple(_filled(argument, values.__getitem__) for argument in step.arguments)
            many = _flags(step, lambda slot: self.plan.kinds[slot] == Kind.AFFINE)
            result = affine_rows(step, arguments, many) if _any(many) else call_operation(step.operation, arguments)
            _store(step, result, values)

    def formed(self, slot: int, coordinates: Tensor) -> Tensor:
        """Return an affine value at points, [g, *s] in the memory order of its rows."""
        if slot not in self._forms:
            rows = self.values[slot]
            order = _dense_order(rows)
            flat = rows.permute(0, *(axis + 1 for axis in order)).reshape(len(rows), -1).contiguous()
            shape = tuple(rows.shape[axis + 1] for axis in order)
            back = tuple(order.index(axis) + 1 for axis in range(len(order)))
            self._forms[slot] = (flat[0], flat[1:], torch.Size(shape), back)
        origin, directions, shape, back = self._forms[slot]
        return parameter_points(origin, directions, coordinates).view(-1, *shape).permute(0, *back)


def evaluate_points(
    objective: Objective,
    points: Points,
    metrics: Metrics,
    recompute: bool,
    at_once: int | None,
    progress: Callable[[int], object] | None,
) -> tuple[Totals, int]:
    """Return the totals at all points, and how many were evaluated together.

    By the program engine where the objective has it, its model can be captured and there are points enough to be worth
    a capture; else point by point.
    """
    if objective.engine == "program" and (recompute or points.count >= _WORTH_A_CAPTURE):
        evaluator = Evaluator(objective, points, metrics, recompute)
        try:
            at_once = at_once or evaluator.points_at_once()
            return evaluator.run(at_once, progress), at_once
        except CaptureError:
            if recompute:
                raise
    elif recompute:
        raise ValueError("evaluate: batch_norm='recompute' needs an objective with engine='program'")
    return one_by_one(objective, points, metrics, progress), 1


class Evaluator:
    """The loss of an objective, and metrics, at points.

    Parameters
    ----------
    objective
        The objective; its engine is "program".
    points
        Where.
    metrics
        name -> function of outputs and targets.
    recompute
        Whether batch norms take their statistics from all data at each point.

    Raises
    ------
    CaptureError
        By `plan_of` and `run`, if the model cannot be captured.
    """

    def __init__(self, objective: Objective, points: Points, metrics: Metrics, recompute: bool) -> None:
        self.objective, self.points, self.metrics, self.recompute = objective, points, metrics, recompute
        self._plans: dict[int, tuple[Program, Plan]] = {}
        named = {**dict(objective.model.named_parameters()), **dict(objective.model.named_buffers())}
        self._named = {name: tensor.detach() for name, tensor in named.items()}
        self._shared: dict[str, Tensor] = {}
        if objective.device.type == "cpu":
            keep_memory(self)

    def shared(self, name: str) -> Tensor:
        """Return a parameter or buffer that is the same at all points."""
        if name not in self._shared:
            value = self.points.fixed.get(name, self._named[name])
            rounded = self.points.rounded.get(name)
            self._shared[name] = value if rounded is None else rounded(value[None], None)[0]
        return self._shared[name]

    def plan_of(self, inputs: Any, targets: Any) -> Plan:
        """Return the plan of a batch, made once for every program."""
        program = program_of(self.objective, inputs, targets)
        if id(program) not in self._plans:
            moving = {}
            for name, slot in {**program.parameters, **program.others}.items():
                if name in self.points.given or (name in self.points.rows and name in self.points.rounded):
                    moving[slot] = Kind.MANY
                elif name in self.points.rows:
                    moving[slot] = Kind.AFFINE
            rows = next((x.shape[0] for x in tensors_in(targets) if x.dim() > 0), 1)
            whole = program if self.recompute else folded(program)
            if self.metrics and whole.outputs is None:
                raise ValueError("evaluate: metrics need one tensor that the loss is given; pass output= to Objective")
            self._plans[id(program)] = (program, make_plan(whole, moving, rows, self.recompute, bool(self.metrics)))
        return self._plans[id(program)][1]

    def points_at_once(self) -> int:
        """Return how many points make a chunk, from the first batch: its values fit blocks of cache and the limit."""
        objective = self.objective
        inputs, targets = plain(next(iter(batches(objective.data))))
        peak, largest = self.plan_of(inputs, targets).bytes_of_point(objective.dtype.itemsize)
        copies = sum(1 for _ in batches(objective.data)) if self.recompute else 1
        return int(
            max(
                1,
                min(
                    _MOST,
                    _BLOCK[objective.device.type] // max(1, largest),
                    objective.memory_limit // 2 // max(1, copies * peak),
                ),
            )
        )

    def run(self, at_once: int, progress: Callable[[int], object] | None = None) -> Totals:
        """Evaluate at all points, `at_once` together."""
        objective, g = self.objective, self.points.count
        totals = Totals(g, list(self.metrics), objective.reduction == "sum", objective.device)
        with torch.no_grad(), matmul_precision(objective.matmul_precision, objective.device), objective.undisturbed():
            if self.recompute:
                found = [self._batch(*pair) for pair in batches(objective.data)]
                for first in range(0, g, at_once):
                    chunk = slice(first, min(first + at_once, g))
                    self._together([batch for batch in found if batch is not None], chunk, totals)
                    if progress is not None:
                        progress(chunk.stop - chunk.start)
                return totals
            done, parts = 0, 0
            count = sum(1 for _ in batches(objective.data)) if progress is not None else 1
            for pair in batches(objective.data):
                batch = self._batch(*pair)
                for first in range(0, g, at_once):
                    chunk = slice(first, min(first + at_once, g))
                    if batch is not None:
                        totals.add(chunk, self._alone(batch, chunk))
                    parts += chunk.stop - chunk.start
                    if progress is not None and parts // count > done:
                        progress(parts // count - done)
                        done = parts // count
        return totals

    def _batch(self, inputs: Any, targets: Any) -> _Batch | None:
        inputs, targets = plain((inputs, targets))
        weight = self.objective.weight_of(inputs, targets)
        return _Batch(self, inputs, targets, weight) if weight > 0.0 else None

    def _alone(self, batch: _Batch, chunk: slice) -> BatchLoss:
        try:
            next(self._steps(batch, chunk))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise RuntimeError("evaluate: a batch asked for statistics of others")

    def _together(self, found: list[_Batch], chunk: slice, totals: Totals) -> None:
        """Run a chunk over all batches side by side: at each batch norm they wait for the statistics of all."""
        running = [self._steps(batch, chunk) for batch in found]
        answer: Any = None
        while True:
            asked = []
            for steps in running:
                try:
                    asked.append(steps.send(answer))
                except StopIteration as end:
                    totals.add(chunk, end.value)
            if not asked:
                return
            answer = _joint_statistics(asked)

    def _steps(self, batch: _Batch, chunk: slice) -> Generator[_Moments, tuple[Tensor, Tensor], BatchLoss]:
        """Run a chunk of points; at a batch norm to recompute give this batch's moments and take all data's."""
        plan, points = batch.plan, self.points
        kinds, g = plan.kinds, chunk.stop - chunk.start
        coordinates = None if points.coordinates is None else points.coordinates[chunk]
        found: dict[int, Any] = {}
        names = {slot: name for name, slot in {**plan.program.parameters, **plan.program.others}.items()}

        def value(slot: int) -> Any:
            if kinds[slot] == Kind.SHARED:
                return batch.values[slot]
            if slot not in found:
                found[slot] = self._moved(names.get(slot), slot, batch, chunk, coordinates)
            return found[slot]

        for place in plan.each:
            step = plan.program.steps[place]
            arguments = tuple(_filled(argument, value) for argument in step.arguments)
            many = _flags(step, lambda slot: kinds[slot] != Kind.SHARED)
            if place in plan.statistics:
                x = arguments[0] if many[0] else arguments[0].expand(g, *arguments[0].shape)
                mean, variance = yield _moments(x)
                weight, bias = (
                    t if t is None or flag else t[None] for t, flag in zip(arguments[1:3], many[1:3], strict=True)
                )
                result = normalize_channels(x, weight, bias, mean, variance, arguments[7])
            else:
                result = call_batched(step.operation, arguments, many)
            del arguments
            _store(step, result, found)
            for slot in plan.last[place]:
                found.pop(slot, None)
        return self._end(batch, value, g)

    def _moved(self, name: str | None, slot: int, batch: _Batch, chunk: slice, coordinates: Tensor | None) -> Tensor:
        """Return a parameter, buffer or affine value at the points of a chunk."""
        points = self.points
        if name in points.rounded:
            if name in points.given:
                return points.rounded[name](points.given[name][chunk], None)
            return points.rounded[name](points.rows[name], coordinates)
        if name in points.given:
            return points.given[name][chunk]
        assert coordinates is not None
        return batch.formed(slot, coordinates)

    def _end(self, batch: _Batch, value: Callable[[int], Any], g: int) -> BatchLoss:
        plan, program = batch.plan, batch.plan.program
        if plan.loss is None or plan.loss_step is None:
            loss = value(program.loss)
            rows = loss.reshape(-1, 1).double().expand(g, 1)
            weights = rows.new_ones(1)
        else:
            step = plan.loss_step
            arguments = [_filled(argument, value) for argument in step.arguments]
            many = list(_flags(step, lambda slot: plan.kinds[slot] != Kind.SHARED))
            if not many[0]:  # nothing moves the loss
                arguments[0], many[0] = arguments[0].expand(g, *arguments[0].shape), True
            rows, weights = plan.loss(tuple(arguments), tuple(many))
        metrics = {name: torch.zeros(g, dtype=torch.float64) for name in self.metrics}
        if self.metrics:
            assert program.outputs is not None
            outputs = value(program.outputs)
            for index in range(g):
                one = outputs[index] if plan.kinds[program.outputs] != Kind.SHARED else outputs
                for name, metric in self.metrics.items():
                    metrics[name][index] = torch.as_tensor(metric(one, batch.targets)).double()
        return BatchLoss(batch.weight, rows, weights, batch.rows, metrics)


_WORTH_A_CAPTURE = 4  # points
_MOST = 256
_BLOCK = {"cpu": 4 << 20, "cuda": 256 << 20}  # bytes of the largest value of a chunk


# -- batch statistics -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moments:
    count: int
    mean: Tensor  # [g, C] float64
    variance: Tensor  # [g, C] float64, biased


def _moments(x: Tensor) -> _Moments:
    axes = [1, *range(3, x.dim())]
    variance, mean = torch.var_mean(x, axes, correction=0)
    return _Moments(x[0].numel() // max(1, x.shape[2]), mean.double(), variance.double())


def _joint_statistics(parts: list[_Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and variance [g, C] of all batches together (Chan, Golub, LeVeque 1983)."""
    count = sum(part.count for part in parts)
    mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(0)
    between = [(part.variance + (part.mean - mean).square()) * (part.count / count) for part in parts]
    return mean, torch.stack(between).sum(0)


# -- steps ------------------------------------------------------------------------------------------------------------


def _filled(argument: Any, value: Callable[[int], Any]) -> Any:
    if isinstance(argument, Slot):
        return value(argument.index)
    if isinstance(argument, (tuple, list)):
        return [_filled(item, value) for item in argument]
    return argument


def _flags(step: Step, moving: Callable[[int], bool]) -> tuple[bool | tuple[bool, ...], ...]:
    found: list[bool | tuple[bool, ...]] = []
    for argument in step.arguments:
        if isinstance(argument, (tuple, list)) and any(isinstance(item, Slot) for item in argument):
            found.append(tuple(isinstance(item, Slot) and moving(item.index) for item in argument))
        else:
            found.append(isinstance(argument, Slot) and moving(argument.index))
    return tuple(found)


def _any(flags: tuple[bool | tuple[bool, ...], ...]) -> bool:
    return any(any(flag) if isinstance(flag, tuple) else flag for flag in flags)


def _store(step: Step, result: Any, values: Any) -> None:
    if isinstance(step.results, tuple):
        for slot, part in zip(step.results, result, strict=True):
            if slot is not None:
                values[slot] = part
    else:
        values[step.results] = result


def _dense_order(rows: Tensor) -> list[int]:
    """Return the axes of a row from the slowest in memory to the fastest."""
    steps = rows.stride()[1:]
    return sorted(range(len(steps)), key=lambda axis: -steps[axis])
