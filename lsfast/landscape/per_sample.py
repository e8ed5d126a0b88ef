"""Losses and gradients of single rows of the data, each by itself, for many rows at once.

``vmap`` over the rows is outermost (see `lsfast.program.autograd` for why). A row is what axis 0 of every tensor of the
inputs and of the targets counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from lsfast.data import batches
from lsfast.objective import Objective
from lsfast.program.autograd import batch_gradient, differentiable

_VECTORS = 6  # of [n] for a row at once: its gradient, its step, its point, its parameters and what they are made with
_MOST_ROWS = 256
_CACHED_BYTES = 32 * 2**20  # gradients at once on a CPU: larger memory is handed back and page-faulted at every use


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch, taken together: their tensors, and how a row becomes a batch of one."""

    objective: Objective
    leaves: list[Tensor]  # each [rows, ...]
    rebuild: Callable[[list[Tensor]], tuple[Any, Any]]
    counted: Tensor  # [rows] bool: whether a row has a target at all

    def gradients(self, parameters: Tensor) -> Tensor:
        """Return the gradient [rows, n] of each row's loss at `parameters` [n]."""

        def gradient(*row: Tensor) -> Tensor:
            return batch_gradient(self.objective, parameters, *self.rebuild(list(row)))

        found = _each(gradient, self.leaves)
        return found.add_(parameters, alpha=self.objective.weight_decay)

    def losses(self, points: Tensor) -> Tensor:
        """Return each row's loss [rows], float64: at its own point of [rows, n], or all at one [n]."""
        own = points.dim() == 2

        def loss(*row: Tensor) -> Tensor:
            at, leaves = (row[0], row[1:]) if own else (points, row)
            inputs, targets = self.rebuild(list(leaves))
            outputs = self.objective.outputs(self.objective.unflatten(at), inputs)
            return self.objective.batch_loss(outputs, targets)

        with torch.no_grad(), differentiable():  # the fused kernels of attention have no rule for rows either
            found = _each(loss, [points, *self.leaves] if own else self.leaves).double()
        decay = self.objective.weight_decay
        return found + 0.5 * decay * points.double().square().sum(-1) if decay else found


def rows_of(objective: Objective) -> Iterator[Rows]:
    """Yield the rows of the data in order, as many at once as fit the objective's memory limit.

    Raises
    ------
    ValueError
        If the model's batch norm makes rows depend on each other, or tensors of a batch differ along axis 0.
    """
    for name, module in objective.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"sharpness: per_sample must not be given for batch norm over the batch, got it at {name!r}; "
                "call model.eval()"
            )
    at_once = 0
    for inputs, targets in batches(objective.data):
        values, structure = tree_flatten((inputs, targets))
        places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        leaves = [values[i] for i in places]
        counts = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves}
        if len(counts) != 1:
            raise ValueError(
                f"sharpness: per_sample must have tensors of one length along axis 0, got {sorted(counts)}"
            )

        def rebuild(row: list[Tensor], values: Any = values, places: Any = places, structure: Any = structure) -> Any:
            whole = list(values)
            for i, leaf in zip(places, row, strict=True):
                whole[i] = leaf[None]
            return tree_unflatten(whole, structure)

        at_once = at_once or _rows_at_once(objective, *rebuild([leaf[0] for leaf in leaves]))
        for parts in zip(*(leaf.split(at_once) for leaf in leaves), strict=True):
            each = [rebuild([part[i] for part in parts]) for i in range(len(parts[0]))]
            counted = torch.tensor([objective.weight_of(*pair) > 0.0 for pair in each], device=objective.device)
            yield Rows(objective, list(parts), rebuild, counted)


def row_values(objective: Objective, of: Callable[[Rows], Tensor], advance: Callable[[int], object]) -> Tensor:
    """Return ``of(rows)`` [..., rows] for all rows of the data, joined along the last axis; 0 where none is counted."""
    found = []
    with objective.undisturbed():
        for rows in rows_of(objective):
            found.append(torch.where(rows.counted, of(rows), 0.0))
            advance(len(rows.counted))
    return torch.cat(found, -1)


def _each(function: Callable[..., Tensor], mapped: list[Tensor]) -> Tensor:
    """Call a function for each row of some tensors: by vmap, or one by one where an operation has no rule for it."""
    try:
        result: Tensor = vmap(function)(*mapped)
    except RuntimeError:
        result = torch.stack([function(*row) for row in zip(*mapped, strict=True)])
    return result


def _rows_at_once(objective: Objective, inputs: Any, targets: Any) -> int:
    """How many rows fit the memory limit, from what the forward pass of one keeps for its backward."""
    kept: dict[int, int] = {}
    parameters = objective.parameters.requires_grad_()
    own = parameters.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective.batch_loss(objective.outputs(objective.unflatten(parameters), inputs), targets)
    # The backward needs the tangents of what was kept beside it, and room to work in.
    each = 3 * sum(kept.values()) + _VECTORS * objective.n * objective.dtype.itemsize
    most = _MOST_ROWS
    if objective.device.type == "cpu":
        most = min(most, _CACHED_BYTES // (objective.n * objective.dtype.itemsize))
    return max(1, min(most, objective.memory_limit // each))
