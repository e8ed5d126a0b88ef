"""The program engine: products with the derivatives of an objective, the sum of those of its batches.

A batch is captured once for its shape and linearized once (`Point`). Points stay between products while they fit the
objective's memory limit, the others are made anew for each product; K vectors are taken in parts that fit it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.data import batches, plain, tensors_in
from lsfast.program.capture import capture, data_tensors, signature
from lsfast.program.errors import CaptureError
from lsfast.program.graph import Program, Step
from lsfast.program.loss_hessian import Batch, Middle
from lsfast.program.point import Layout, Point, Watch
from lsfast.program.precision import matmul_precision
from lsfast.program.replay import Replays
from lsfast.program.workspace import LARGEST, keep_memory

if TYPE_CHECKING:
    from lsfast.objective import Objective

_Product = Callable[["_Batch", Tensor, Tensor], None]


class _Batch:
    """A batch of the data: its weight, its data as it was seen first, and its point while that is held."""

    def __init__(self, index: int, inputs: Any, targets: Any, weight: float) -> None:
        self.weight = weight
        self.description = Batch(index, weight)
        self.point: Point | None = None
        self._take(inputs, targets)
        self._print = _fingerprint(self.leaves)

    def _take(self, inputs: Any, targets: Any) -> None:
        self.inputs, self.targets, self.leaves = inputs, targets, data_tensors(inputs, targets)

    def again(self, inputs: Any, targets: Any) -> bool:
        """Take the batch of a later pass; return whether it has the values of this one."""
        before = self.leaves
        self._take(inputs, targets)
        if len(before) == len(self.leaves) and all(a is b for a, b in zip(before, self.leaves, strict=True)):
            return True
        return _fingerprint(self.leaves) == self._print

    def release(self) -> None:
        """Let go of the data, which the next pass will bring again."""
        self.inputs, self.targets, self.leaves = None, None, []


def _fingerprint(leaves: list[Any]) -> list[Any]:
    """Return what tells batches apart: shapes, sums and the first and last few values of their tensors."""
    found: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            flat = leaf.detach().reshape(-1)
            ends = torch.cat([flat[:8], flat[-8:]]).tolist()
            found.append((tuple(leaf.shape), leaf.dtype, repr(flat.sum(dtype=torch.float64).item()), repr(ends)))
        else:
            found.append(repr(leaf))
    return found


class Linearization:
    """Products with the derivatives of an objective at its parameters, for rows of vectors [k, n].

    Over a data set `hvp`, `ggnvp` and `outputs_product` are those of the mean (or sum) over all targets, whatever the
    batches, and have the weight decay times v added; `jvp` and `vjp` are of the outputs of all batches, joined.

    Raises
    ------
    ValueError
        By every product: if the rows are not [k, n] in the parameters' dtype and device, the data has changed since the
        pass before, or the loss or the gradient is not finite (the first operation that made a NaN is named).
    TypeError
        By all but `hvp`: if what the loss is given is not one tensor.
    CaptureError
        By the first product: if the model cannot be captured.

    Examples
    --------
    >>> L = objective.linearize()
    >>> L.hvp(rows), L.ggnvp(rows)          # [k, n], [k, n]
    >>> L.vjp(L.jvp(rows))                  # J^T J rows, J the Jacobian of the outputs
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.parameters = objective.parameters
        slices = zip(objective.slices.items(), objective.shapes, strict=True)
        self._layout: Layout = {name: (part.start, shape) for (name, part), shape in slices}
        self._batches: list[_Batch] = []
        self._complete = False
        self._held = 0
        self._replays = Replays()
        if objective.device.type == "cpu":
            keep_memory(self)

    # -- products -----------------------------------------------------------------------------------------------------

    def hvp(self, rows: Tensor) -> Tensor:
        r"""Return the Hessian products :math:`\partial_t \nabla L(\theta + t v)` for each row v of [k, n]."""
        self._check("hvp", rows)
        return self._replayed("hvp", rows, lambda batch, part, out: _point(batch).hvp(part, out), hold=True)

    def ggnvp(self, rows: Tensor) -> Tensor:
        r"""Return the products :math:`J^T (\partial^2 \ell / \partial z^2) J v` for each row v of [k, n]."""

        def product(batch: _Batch, part: Tensor, out: Tensor) -> None:
            point = _with_outputs(_point(batch))
            point.vjp(point.loss_hessian(point.jvp(part), part), out)

        self._check("ggnvp", rows)
        return self._replayed("ggnvp", rows, product, hold=False)

    def outputs_product(self, rows: Tensor, middle: Middle) -> Tensor:
        r"""Return the products :math:`J^T M J v` for each row v of [k, n], J the Jacobian of the outputs z.

        Parameters
        ----------
        rows
            [k, n].
        middle
            ``middle(batch, outputs, targets, tangents)`` gives :math:`M u` [j, *z.shape] for the tangents u
            [j, *z.shape] of some of the rows, of which it may take the memory. M is that of the loss of this batch
            alone: batches are combined as their losses are.
        """

        def product(batch: _Batch, part: Tensor, out: Tensor) -> None:
            point = _with_outputs(_point(batch))
            tangents = point.jvp(part)
            if tangents.untyped_storage().data_ptr() == part.untyped_storage().data_ptr():
                tangents = tangents.clone()  # the outputs are parameters
            point.vjp(middle(batch.description, _given(point.outputs), batch.targets, tangents), out)

        self._check("outputs_product", rows)
        return self._mean(rows, product)

    def jvp(self, rows: Tensor, flat: bool = False) -> Tensor:
        """Return the tangents J v of the outputs for each row v of [k, n]: [k, *outputs], batches along axis 1.

        Flat, each is one vector of all outputs: [k, outputs]. Batches may then differ in the shape of a row.
        """
        self._check("jvp", rows)
        found = []
        with self._working():
            for batch in self._all_batches():
                with self._linearized(batch, hold=False):
                    point = _with_outputs(_point(batch))
                    tangents = torch.cat([point.jvp(part) for part in rows.split(self._at_once(point))])
                    found.append(tangents.reshape(len(rows), -1) if flat else tangents)
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def vjp(self, cotangents: Tensor, flat: bool = False) -> Tensor:
        """Return J^T u [k, n] for each cotangent u of [k, *outputs], batches joined along axis 1; or flat, as `jvp`."""
        total = cotangents.new_zeros(len(cotangents), self._objective.n)
        first = 0
        with self._working():
            for batch in self._all_batches():
                with self._linearized(batch, hold=False):
                    point = _with_outputs(_point(batch))
                    outputs = _given(point.outputs)
                    size = outputs.numel() if flat else outputs.shape[0]
                    mine = cotangents[:, first : first + size]
                    first += size
                    chunk = self._at_once(point)
                    out = torch.empty_like(total)
                    if mine.shape[1] < size:
                        continue
                    if flat:
                        mine = mine.reshape(-1, *outputs.shape)
                    for part, into in zip(mine.split(chunk), out.split(chunk), strict=True):
                        point.vjp(part, into)
                    total += out
        if first != cotangents.shape[1]:
            unit = "numbers" if flat else "rows"
            raise ValueError(f"vjp: cotangents must have {first} {unit} along axis 1, got {cotangents.shape[1]}")
        return total

    def _replayed(self, kind: str, rows: Tensor, product: _Product, hold: bool) -> Tensor:
        """Return the mean over batches; on a CUDA device by a graph, where all linearizations are at hand."""
        if rows.is_cuda and self._complete and _is_fixed(self._objective.data) and all(b.point for b in self._batches):
            return self._replays.run(kind, lambda given: self._mean(given, product, hold), rows)
        return self._mean(rows, product, hold)

    def _check(self, function: str, rows: Tensor) -> None:
        checks.like(function, "rows", rows, self._objective.dtype, self._objective.device)
        if rows.dim() != 2 or rows.shape[1] != self._objective.n:
            raise ValueError(f"{function}: rows must have shape [k, {self._objective.n}], got {list(rows.shape)}")

    # -- batches ------------------------------------------------------------------------------------------------------

    def _mean(self, rows: Tensor, product: _Product, hold: bool = False) -> Tensor:
        total: Tensor | None = None
        weights = 0.0
        with self._working():
            for batch in self._all_batches():
                weights += batch.weight
                if batch.weight == 0.0:
                    continue
                with self._linearized(batch, hold):
                    out = torch.empty_like(rows)
                    chunk = self._at_once(_point(batch))
                    for part, into in zip(rows.split(chunk), out.split(chunk), strict=True):
                        product(batch, part, into)
                if total is None:
                    total = out
                    first_weight = batch.weight
                    if first_weight != 1.0:
                        total.mul_(first_weight)
                else:
                    total.add_(out, alpha=batch.weight)
        result = self._objective.divided(total, weights)
        return result.add_(rows, alpha=self._objective.weight_decay)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """No gradients, the precision of matrix products, and nothing disturbed by reading the data."""
        objective = self._objective
        quiet = nullcontext() if self._complete and _is_fixed(objective.data) else objective.undisturbed()
        with torch.no_grad(), matmul_precision(objective.matmul_precision, objective.device), quiet:
            yield

    def _all_batches(self) -> Iterator[_Batch]:
        objective = self._objective
        if self._complete and _is_fixed(objective.data):
            yield from self._batches
            return
        seen = 0
        for inputs, targets in (plain(batch) for batch in batches(objective.data)):
            if seen == len(self._batches) and not self._complete:
                self._batches.append(_Batch(seen, inputs, targets, objective.weight_of(inputs, targets)))
            elif seen == len(self._batches) or not self._batches[seen].again(inputs, targets):
                raise ValueError(
                    f"Objective: data must be the same at every pass, batch {seen} has changed; is it shuffled?"
                )
            batch = self._batches[seen]
            yield batch
            if batch.point is None and not _is_fixed(objective.data):
                batch.release()
            seen += 1
        if self._complete and seen < len(self._batches):
            raise ValueError(f"Objective: data must be the same at every pass, got {seen} batches, then fewer")
        self._complete = True

    @contextmanager
    def _linearized(self, batch: _Batch, hold: bool) -> Iterator[None]:
        """Give the batch its point; keep it afterwards if there is room."""
        point = batch.point
        before = 0 if point is None else point.held_bytes()
        if point is None:
            point = self._point_of(batch)
            if batch.weight != 0.0 and not bool(torch.isfinite(point.loss)):  # of no targets it is 0 / 0
                raise ValueError(f"Objective: the loss must be finite, got {self._where_not_finite(batch)}")
        if hold and not _is_finite(point.hold()):
            raise ValueError(f"Objective: the gradient must be finite, got {self._where_not_finite(batch)}")
        batch.point = point
        self._held += point.held_bytes() - before
        try:
            yield
        finally:
            if self._held > self._objective.memory_limit // 2:
                batch.point = None
                self._held -= point.held_bytes()

    def _point_of(self, batch: _Batch, watch: Watch | None = None) -> Point:
        objective = self._objective
        program = program_of(objective, batch.inputs, batch.targets)
        named = dict(objective.model.named_parameters()) | dict(objective.model.named_buffers())
        others = {name: named[name].detach() for name in program.others}
        parameters = objective.unflatten(self.parameters)
        return Point(program, parameters, others, batch.leaves, self._layout, watch)

    def _at_once(self, point: Point) -> int:
        """Return how many vectors one pass takes: their tangents fit what the limit leaves, and blocks of memory."""
        free = self._objective.memory_limit - self._held
        rows = min(_ROWS_AT_ONCE, free // max(1, point.bytes_per_vector()))
        if self._objective.device.type == "cpu":
            rows = min(rows, LARGEST // max(1, point.largest_tangent()))
        return max(1, rows)

    def _where_not_finite(self, batch: _Batch) -> str:
        """Name the first operation that made a NaN of numbers, or made the gradient infinite."""

        def watch(step: Step, part: str, result: Any) -> None:
            wrong = [x for x in tensors_in(result) if x.is_floating_point() and x.isnan().any()]
            if wrong:
                of = "" if part == "value" else "the derivative of "
                raise _FirstNaN(f"NaN, first in {of}{step.operation}{step.where}")

        try:
            self._point_of(batch, watch).hold()
        except _FirstNaN as found:
            return str(found)
        return "an infinite number"


class _FirstNaN(Exception):
    """Ends a watched pass."""


_ROWS_AT_ONCE = 64  # vectors in one pass: more gain no speed


def _is_fixed(data: Any) -> bool:
    """Whether every pass over `data` sees the same tensors: one pair, or a list of pairs."""
    return isinstance(data, (tuple, list))


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


def _point(batch: _Batch) -> Point:
    assert batch.point is not None
    return batch.point


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _with_outputs(point: Point) -> Point:
    if point.program.outputs is None:
        raise TypeError(
            "GGNOperator, FisherOperator, GramOperator: the loss must be given one tensor; pass output= to Objective"
        )
    if not point.program.through_outputs:
        raise ValueError(
            "GGNOperator, FisherOperator, GramOperator: the loss must depend on the parameters through the model's "
            "outputs alone"
        )
    return point


def program_of(objective: Objective, inputs: Any, targets: Any) -> Program:
    """Return the program of a batch, captured once for every shape of batch and train/eval mode of the model.

    That it cannot be is found once too, and raised again.
    """
    inputs, targets = plain((inputs, targets))
    modes = tuple(module.training for module in objective.model.modules())
    key = (modes, signature(inputs, targets))
    if key not in objective.programs:
        try:
            objective.programs[key] = capture(
                objective.model, objective.batch_loss, objective.output, list(objective.names), inputs, targets
            )
        except CaptureError as error:
            objective.programs[key] = error
    found = objective.programs[key]
    if isinstance(found, CaptureError):
        raise found.with_traceback(None)
    return found
