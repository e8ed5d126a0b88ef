"""An objective's loss at points one after the other, each by a call of the model: what any model can do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lsfast.data import batch_count, batches, class_weights, is_elementwise, is_known_loss, tensors_in
from lsfast.program.point_sets import Points
from lsfast.program.totals import BatchLoss, RowWeights, Totals

if TYPE_CHECKING:
    from lsfast.objective import Objective


def one_by_one(
    objective: Objective,
    points: Points,
    metrics: Mapping[str, Callable[[Any, Any], Any]],
    progress: Callable[[int], object] | None,
) -> Totals:
    """Return the totals at all points; each batch of the data is read once for all of them."""
    totals = Totals(points.count, list(metrics), objective.reduction == "sum", objective.device)
    by_row = _by_row(objective.loss_fn)
    with torch.no_grad(), objective.undisturbed():
        count = batch_count(objective.data) if progress is not None else 1
        evaluated = 0
        for inputs, targets in batches(objective.data):
            weight = objective.weight_of(inputs, targets)
            for index in range(points.count):
                if weight > 0.0:
                    outputs = objective.outputs(points.one(index), inputs)
                    loss = objective.batch_loss(outputs, targets)
                    rows = next((x.shape[0] for x in tensors_in(targets) if x.dim() > 0), 1)
                    found = {name: torch.as_tensor(metric(outputs, targets)).double().reshape(1)
                             for name, metric in metrics.items()}  # fmt: skip
                    contributions, weights = by_row(outputs, targets, loss)
                    row_weights = RowWeights(weights, totals.is_sum)
                    totals.add(
                        slice(index, index + 1),
                        BatchLoss(weight, row_weights.sums(contributions), row_weights, rows, found),
                    )
                evaluated += 1
                if progress is not None and evaluated % count == 0:
                    progress(1)
    return totals


_ByRow = Callable[[Any, Any, Tensor], tuple[Tensor, Tensor]]


def _by_row(loss_fn: Any) -> _ByRow:
    """Return what takes the loss of a batch apart: contributions [1, R] and weights [R] of its rows.

    A loss that PyTorch does not know is one row.
    """
    if not is_known_loss(loss_fn):
        return lambda outputs, targets, loss: (loss.double().reshape(1, 1), loss.new_ones(1).double())
    if isinstance(loss_fn, nn.Module):
        unreduced: Any = copy.copy(loss_fn)
        unreduced.reduction = "none"
    else:
        unreduced = partial(loss_fn, reduction="none")
    weight, ignored = getattr(loss_fn, "weight", None), getattr(loss_fn, "ignore_index", -100)

    def rows(outputs: Any, targets: Any, loss: Tensor) -> tuple[Tensor, Tensor]:
        found = unreduced(outputs, targets).double()
        if is_elementwise(loss_fn):
            flat = found.reshape(found.shape[0] if found.dim() else 1, -1)
            return flat.sum(1)[None], torch.full_like(flat[:, 0], flat.shape[1])
        return found.reshape(1, -1), class_weights(targets, weight, ignored)

    return rows
