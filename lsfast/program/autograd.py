"""The autograd engine: curvature products by composing ``torch.func`` transforms. The oracle of every other engine.

The order of the transforms matters. ``vmap`` is outermost, ``vmap(jvp(grad))``: with vmap inside, the derivative of the
weight of layer norm and of train-mode batch norm is silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lsfast.data import batches
from lsfast.program.loss_hessian import loss_hessian_product

if TYPE_CHECKING:
    from lsfast.objective import Objective

_ROWS_AT_ONCE = 16  # vectors in one vmap: more cost memory and gain no speed


def _loss_of(objective: Objective, inputs: Any, targets: Any) -> Callable[[Tensor], Tensor]:
    def loss(parameters: Tensor) -> Tensor:
        return objective.batch_loss(objective.outputs(objective.unflatten(parameters), inputs), targets)

    return loss


def batch_gradient(objective: Objective, parameters: Tensor, inputs: Any, targets: Any) -> Tensor:
    """Return the gradient [n] of the loss of one batch."""
    with _differentiable_attention():
        gradient: Tensor = grad(_loss_of(objective, inputs, targets))(parameters)
    return gradient.detach()


def _differentiable_attention() -> Any:
    """Attention by its formula: the fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


class Linearization:
    """Products with the derivatives of an objective at its parameters, for rows of vectors [k, n].

    Over a data set every product is that of the mean (or sum) over all targets, whatever the batches.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._parameters = objective.parameters

    def hvp(self, rows: Tensor) -> Tensor:
        r"""Return the Hessian products :math:`\partial_t \nabla L(\theta + t v)` for each row v of [k, n]."""
        return self._over_batches(rows, self._batch_hvp)

    def ggnvp(self, rows: Tensor) -> Tensor:
        r"""Return the products :math:`J^T (\partial^2 \ell / \partial z^2) J v` for each row v of [k, n]."""
        return self._over_batches(rows, self._batch_ggnvp)

    def outputs_product(self, rows: Tensor, middle: Callable[[Tensor, Any, Tensor], Tensor]) -> Tensor:
        r"""Return :math:`J^T M J v` for each row v, ``middle(outputs, targets, tangents)`` the map M of each batch."""

        def product(part: Tensor, inputs: Any, targets: Any) -> Tensor:
            outputs = self._outputs_of(inputs)
            value, pull = vjp(outputs, self._parameters)[:2]
            cotangents = middle(value.detach(), targets, self._outputs_tangents(outputs, part))
            result: Tensor = vmap(lambda row: pull(row)[0])(cotangents)
            return result

        return self._over_batches(rows, product, decay=False)

    def jvp(self, rows: Tensor) -> Tensor:
        """Return the tangents J v of the outputs for each row v of [k, n]: [k, *outputs], batches along axis 1."""
        with self._objective.undisturbed(), _differentiable_attention():
            pairs = list(batches(self._objective.data))
            return torch.cat([self._outputs_tangents(self._outputs_of(inputs), rows) for inputs, _ in pairs], 1)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return J^T u for each cotangent u of [k, *outputs], batches joined along axis 1: [k, n]."""
        total, first = cotangents.new_zeros(len(cotangents), self._objective.n), 0
        with self._objective.undisturbed(), _differentiable_attention():
            for inputs, _ in batches(self._objective.data):
                value, pull = vjp(self._outputs_of(inputs), self._parameters)[:2]
                mine = cotangents[:, first : first + len(value)]
                first += len(value)
                if len(mine[0]) == len(value):
                    total += vmap(lambda row, pull=pull: pull(row)[0])(mine)
        if first != cotangents.shape[1]:
            raise ValueError(f"vjp: cotangents must have {first} rows along axis 1, got {cotangents.shape[1]}")
        return total.detach()

    def _over_batches(self, rows: Tensor, product: Callable[[Tensor, Any, Any], Tensor], decay: bool = True) -> Tensor:
        def in_slices(inputs: Any, targets: Any) -> Tensor:
            parts = [product(part, inputs, targets).detach() for part in rows.split(_ROWS_AT_ONCE)]
            return torch.cat(parts)

        with _differentiable_attention():
            total = self._objective.over_batches(in_slices)
        return total.add_(rows, alpha=self._objective.weight_decay) if decay else total

    def _batch_hvp(self, rows: Tensor, inputs: Any, targets: Any) -> Tensor:
        gradient = grad(_loss_of(self._objective, inputs, targets))
        product: Tensor
        try:
            product = vmap(lambda row: jvp(gradient, (self._parameters,), (row,))[1])(rows)
        except RuntimeError:  # an operation whose gradient has no forward derivative: huber_loss, a double group norm
            pull = vjp(gradient, self._parameters)[1]
            product = vmap(lambda row: pull(row)[0])(rows)
        return product

    def _batch_ggnvp(self, rows: Tensor, inputs: Any, targets: Any) -> Tensor:
        objective = self._objective
        outputs = self._outputs_of(inputs)
        tangents = self._outputs_tangents(outputs, rows)
        value, pull = vjp(outputs, self._parameters)[:2]
        cotangents = loss_hessian_product(objective.loss_fn, objective.batch_loss, value.detach(), targets, tangents)
        product: Tensor = vmap(lambda row: pull(row)[0])(cotangents)
        return product

    def _outputs_tangents(self, outputs: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        tangents: Tensor = vmap(lambda row: jvp(outputs, (self._parameters,), (row,))[1])(rows)
        return tangents.detach()

    def _outputs_of(self, inputs: Any) -> Callable[[Tensor], Tensor]:
        objective = self._objective

        def outputs(parameters: Tensor) -> Tensor:
            result = objective.outputs(objective.unflatten(parameters), inputs)
            if not isinstance(result, Tensor):
                raise TypeError(
                    f"GGNOperator: the loss must be given one tensor, got {type(result).__name__}; "
                    "pass output= to Objective"
                )
            return result

        return outputs
