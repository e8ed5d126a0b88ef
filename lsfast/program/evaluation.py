"""An objective's loss at many points by the program engine: chunks of points at once, batch after batch.

For each batch what no point moves is computed once, and the products of the layers that are linear in the point
(plan.py). A chunk of points then runs the remaining steps with a leading axis of points. Losses are summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsfast.data import batches, plain, tensors_in
from lsfast.program.chunk import BatchAtPoints, Metrics
from lsfast.program.errors import CaptureError
from lsfast.program.fold import folded
from lsfast.program.graph import Program
from lsfast.program.linearization import program_of
from lsfast.program.moments import joint
from lsfast.program.one_by_one import one_by_one
from lsfast.program.plan import Kind, Plan, make_plan
from lsfast.program.point_sets import Points
from lsfast.program.precision import matmul_precision
from lsfast.program.totals import Totals, joined
from lsfast.program.workspace import keep_memory

if TYPE_CHECKING:
    from lsfast.objective import Objective


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

    def _shared_value(self, name: str) -> Tensor:
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
            coordinates = self.points.coordinates
            carry = coordinates is not None and coordinates.shape[1] <= _MOST_DIRECTIONS
            if self.metrics and whole.outputs is None:
                raise ValueError("evaluate: metrics need one tensor that the loss is given; pass output= to Objective")
            self._plans[id(program)] = (
                program,
                make_plan(whole, moving, rows, self.recompute, bool(self.metrics), carry),
            )
        return self._plans[id(program)][1]

    def points_at_once(self) -> int:
        """Return how many points make a chunk, from the first batch: its values fit blocks of cache and the limit."""
        objective = self.objective
        inputs, targets = plain(next(iter(batches(objective.data))))
        plan = self.plan_of(inputs, targets)
        peak, largest = plan.bytes_of_point(objective.dtype.itemsize)
        block = _BLOCK[objective.device.type] // (_SMALLER_APART if plan.apart else 1)
        copies = sum(1 for _ in batches(objective.data)) if self.recompute else 1
        limit = objective.memory_limit // 2 // max(1, copies * peak)
        return int(max(1, min(_MOST, block // max(1, largest), limit)))

    def run(self, at_once: int, progress: Callable[[int], object] | None = None) -> Totals:
        """Evaluate at all points, `at_once` together."""
        objective, g = self.objective, self.points.count
        totals = Totals(g, list(self.metrics), objective.reduction == "sum", objective.device)
        with torch.no_grad(), matmul_precision(objective.matmul_precision, objective.device), objective.undisturbed():
            if self.recompute:
                every = [self._batch(*pair) for pair in batches(objective.data)]
                for first in range(0, g, at_once):
                    chunk = slice(first, min(first + at_once, g))
                    self._together([batch for batch in every if batch is not None], chunk, totals)
                    if progress is not None:
                        progress(chunk.stop - chunk.start)
                return totals
            done, parts = 0, 0
            count = sum(1 for _ in batches(objective.data)) if progress is not None else 1
            for pair in batches(objective.data):
                batch, found = self._batch(*pair), []
                for first in range(0, g, at_once):
                    chunk = slice(first, min(first + at_once, g))
                    if batch is not None:
                        found.append(batch.run(chunk))
                    parts += chunk.stop - chunk.start
                    if progress is not None and parts // count > done:
                        progress(parts // count - done)
                        done = parts // count
                if found:
                    totals.add(slice(0, g), joined(found))
        return totals

    def _batch(self, inputs: Any, targets: Any) -> BatchAtPoints | None:
        inputs, targets = plain((inputs, targets))
        weight = self.objective.weight_of(inputs, targets)
        if weight == 0.0:
            return None
        plan = self.plan_of(inputs, targets)
        is_sum = self.objective.reduction == "sum"
        return BatchAtPoints(plan, self.points, inputs, targets, weight, self._shared_value, self.metrics, is_sum)

    def _together(self, found: list[BatchAtPoints], chunk: slice, totals: Totals) -> None:
        """Run a chunk over all batches side by side: at each batch norm they wait for the statistics of all."""
        running = [batch.steps(chunk) for batch in found]
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
            answer = joint(asked)


_WORTH_A_CAPTURE = 4  # points
_MOST_DIRECTIONS = 8  # of more, products of the first layer with each cost more than those of the points
_MOST = 256
_BLOCK = {"cpu": 8 << 20, "cuda": 256 << 20}  # bytes of the largest value of a chunk
_SMALLER_APART = 32  # where points are taken one by one inside, a chunk only shares the overhead of the other steps
