"""One batch at many points: what is the same for all is computed once, the rest for a chunk of points together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from lsfast._native import ops
from lsfast.data import tensors_in
from lsfast.program.batched.norms import normalize_channels
from lsfast.program.capture import data_tensors
from lsfast.program.moments import Moments, RowMoments
from lsfast.program.plan import Kind, Plan, affine_rows
from lsfast.program.point_sets import Points
from lsfast.program.replay import Replays
from lsfast.program.rules.generic import call_operation
from lsfast.program.steps import Memory, any_of, dense_order, filled, flags_of
from lsfast.program.totals import BatchLoss, RowWeights

Metrics = Mapping[str, Callable[[Any, Any], Any]]
Statistics = tuple[Tensor, Tensor]


class BatchAtPoints:
    """A batch, with its shared and affine values.

    Parameters
    ----------
    plan
        Of the batch's program.
    points
        Where it is evaluated.
    inputs, targets
        The batch.
    weight
        Of its loss in the whole.
    shared
        Gives a parameter or buffer that no point moves.
    metrics
        name -> function of outputs and targets.
    is_sum
        The loss is a sum over the data.
    """

    def __init__(
        self,
        plan: Plan,
        points: Points,
        inputs: Any,
        targets: Any,
        weight: float,
        shared: Callable[[str], Tensor],
        metrics: Metrics,
        is_sum: bool,
    ) -> None:
        self.plan, self.weight = plan, weight
        self._points, self._targets, self._metrics, self._is_sum = points, targets, metrics, is_sum
        self._count = next((x.shape[0] for x in tensors_in(targets) if x.dim() > 0), 1)
        program = plan.program
        self._names = {slot: name for name, slot in {**program.parameters, **program.others}.items()}
        values: list[Any] = [None] * program.slots
        for slot, constant in program.constants.items():
            values[slot] = constant
        leaves = data_tensors(inputs, targets)
        for place, slot in program.data.items():
            values[slot] = leaves[place]
        for slot, name in self._names.items():
            if plan.kinds[slot] == Kind.SHARED:
                values[slot] = shared(name)
            elif plan.kinds[slot] == Kind.AFFINE:
                values[slot] = points.rows[name]
        self._values = values
        self._forms: dict[int, tuple[Tensor, Tensor, torch.Size, tuple[int, ...]]] = {}
        self._moments: dict[int, RowMoments] = {}
        self._many = {
            place: flags_of(program.steps[place], lambda slot: plan.kinds[slot] != Kind.SHARED) for place in plan.each
        }
        self._replays = Replays()
        self._loss = None if plan.loss is None else plan.loss()
        self._weights: RowWeights | None = None
        for place in plan.once:
            step = program.steps[place]
            arguments = tuple(filled(argument, values.__getitem__) for argument in step.arguments)
            many = flags_of(step, lambda slot: plan.kinds[slot] == Kind.AFFINE)
            result = affine_rows(step, arguments, many) if any_of(many) else call_operation(step.operation, arguments)
            step.store(result, values)

    def run(self, chunk: slice) -> BatchLoss:
        """Return the loss of the batch at a chunk of points; on a CUDA device by a graph, once its size comes again."""
        coordinates = self._points.coordinates
        if coordinates is None or not coordinates.is_cuda or self._metrics:
            return self._finished(chunk)

        if self._weights is None:  # known with the first chunk
            return self._finished(chunk)
        sums = self._replays.run("sums", lambda given: self._finished(chunk, given).sums, coordinates[chunk])
        return BatchLoss(self.weight, sums, self._weights, self._count)

    def _finished(self, chunk: slice, coordinates: Tensor | None = None) -> BatchLoss:
        try:
            next(self.steps(chunk, coordinates))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise RuntimeError("evaluate: a batch asked for statistics of others")

    def steps(self, chunk: slice, coordinates: Tensor | None = None) -> Generator[Moments, Statistics, BatchLoss]:
        """Run a chunk of points; at a batch norm to recompute give this batch's moments and take all data's."""
        plan = self.plan
        g = chunk.stop - chunk.start
        if coordinates is None and self._points.coordinates is not None:
            coordinates = self._points.coordinates[chunk]
        found: dict[int, Any] = {}
        memory = Memory()

        def value(slot: int) -> Any:
            if plan.kinds[slot] == Kind.SHARED:
                return self._values[slot]
            if slot not in found:
                found[slot] = self._moved(slot, chunk, coordinates)
                if slot not in self._names:
                    memory.own.add(slot)
            return found[slot]

        for place in plan.each:
            step = plan.program.steps[place]
            many = self._many[place]
            if place in plan.statistics:
                statistics = yield self._moments_of(step.arguments[0].index, value, g, coordinates)
                arguments = tuple(filled(argument, value) for argument in step.arguments)
                result = _normalized(arguments, many, g, statistics)
            else:
                arguments = tuple(filled(argument, value) for argument in step.arguments)
                shape = [g, *plan.program.shapes[step.results]] if isinstance(step.results, int) else []
                result = memory.run(step, arguments, many, plan.last[place], shape, plan.activations.get(place))
            step.store(result, found)
            del arguments, result
            for slot in plan.last[place]:
                found.pop(slot, None)
        return self._end(value, g)

    def _moments_of(self, slot: int, value: Callable[[int], Any], g: int, coordinates: Tensor | None) -> Moments:
        if self.plan.kinds[slot] == Kind.AFFINE:
            assert coordinates is not None
            if slot not in self._moments:
                self._moments[slot] = RowMoments(self._values[slot])
            return self._moments[slot].at(coordinates)
        x = value(slot)
        return Moments.of(x if self.plan.kinds[slot] == Kind.MANY else x.expand(g, *x.shape))

    def _moved(self, slot: int, chunk: slice, coordinates: Tensor | None) -> Tensor:
        """Return a parameter, buffer or affine value at the points of a chunk."""
        points, name = self._points, self._names.get(slot, "")
        if name in points.rounded:
            if name in points.given:
                return points.rounded[name](points.given[name][chunk], None)
            return points.rounded[name](points.rows[name], coordinates)
        if name in points.given:
            return points.given[name][chunk]
        assert coordinates is not None
        return self._formed(slot, coordinates)

    def _formed(self, slot: int, coordinates: Tensor) -> Tensor:
        """Return an affine value at points, [g, *s] in the memory order of its rows."""
        if slot not in self._forms:
            rows = self._values[slot]
            order = dense_order(rows)
            flat = rows.permute(0, *(axis + 1 for axis in order)).reshape(len(rows), -1).contiguous()
            shape = tuple(rows.shape[axis + 1] for axis in order)
            back = tuple(order.index(axis) + 1 for axis in range(len(order)))
            self._forms[slot] = (flat[0], flat[1:], torch.Size(shape), back)
        origin, directions, shape, back = self._forms[slot]
        points = origin.new_empty(len(coordinates), len(origin))
        ops.parameter_points_out(origin, directions, coordinates, points)
        found = points.view(-1, *shape)
        return found if back == tuple(range(1, 1 + len(back))) else found.permute(0, *back)

    def _end(self, value: Callable[[int], Any], g: int) -> BatchLoss:
        plan, program = self.plan, self.plan.program
        if self._loss is None or plan.loss_step is None:
            rows = value(program.loss).reshape(-1, 1).double().expand(g, 1)
            weights = rows.new_ones(1)
        else:
            step = plan.loss_step
            arguments = [filled(argument, value) for argument in step.arguments]
            many = list(flags_of(step, lambda slot: plan.kinds[slot] != Kind.SHARED))
            if not many[0]:  # nothing moves the loss
                arguments[0], many[0] = arguments[0].expand(g, *arguments[0].shape), True
            rows = self._loss.rows(tuple(arguments), tuple(many))
            weights = self._loss.weights
        if self._weights is None:
            self._weights = RowWeights(weights, self._is_sum)
        metrics = {name: torch.zeros(g, dtype=torch.float64) for name in self._metrics}
        if metrics:
            assert program.outputs is not None
            outputs = value(program.outputs)
            for index in range(g):
                one = outputs if plan.kinds[program.outputs] == Kind.SHARED else outputs[index]
                for name, metric in self._metrics.items():
                    metrics[name][index] = torch.as_tensor(metric(one, self._targets)).double()
        return BatchLoss(self.weight, self._weights.sums(rows), self._weights, self._count, metrics)


def _normalized(arguments: tuple[Any, ...], many: Any, g: int, statistics: Statistics) -> Tensor:
    """Return a batch norm's result with the statistics [g, C] given."""
    x, weight, bias = arguments[:3]
    spread = x if many[0] else x.expand(g, *x.shape)
    rows = [t if t is None or flag else t[None] for t, flag in ((weight, many[1]), (bias, many[2]))]
    return normalize_channels(spread, rows[0], rows[1], *statistics, arguments[7])
