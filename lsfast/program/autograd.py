"""The autograd engine: curvature products by composing ``torch.func`` transforms. The oracle of every other engine.

The order of the transforms matters. ``vmap`` is outermost, ``vmap(jvp(grad))``: with vmap inside, the derivative of the
weight of layer norm and of train-mode batch norm is silently wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lsfast.data import batches
from lsfast.program.loss_hessian import Batch, Middle, loss_hessian_product

if TYPE_CHECKING:
    from lsfast.objective import Objective

_ROWS_AT_ONCE = 16  # vectors in one vmap: more cost memory and gain no speed


def _loss_of(
    objective: Objective, inputs: Any, targets: Any, buffers: Mapping[str, Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    def loss(parameters: Tensor) -> Tensor:
        named = {**objective.unflatten(parameters), **(buffers or {})}
        return objective.batch_loss(objective.outputs(named, inputs), targets)

    return loss


def _outputs_of(objective: Objective, inputs: Any) -> Callable[[Tensor], Tensor]:
    def outputs(parameters: Tensor) -> Tensor:
        result = objective.outputs(objective.unflatten(parameters), inputs)
        if not isinstance(result, Tensor):
            raise TypeError(
                "GGNOperator, FisherOperator, GramOperator: the loss must be given one tensor, got "
                f"{type(result).__name__}; pass output= to Objective"
            )
        return result

    return outputs


def batch_gradient(
    objective: Objective, parameters: Tensor, inputs: Any, targets: Any, buffers: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the gradient [n] of the loss of one batch, with buffers by name in place of the model's."""
    with differentiable():
        gradient: Tensor = grad(_loss_of(objective, inputs, targets, buffers))(parameters)
    return gradient.detach()


@contextmanager
def differentiable() -> Iterator[None]:
    """Attention by its formula: the fused kernels have no second derivative, those of modules in eval mode no first."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _PaddingIsConstant():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _PaddingIsConstant(TorchFunctionMode):
    """The padding row of an embedding has no gradient: with a tangent, as torch gives it one, H is not symmetric."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is functional.embedding:
            given = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | (kwargs or {})
            index = given.get("padding_idx")
            if index is not None:
                is_padding = given["input"] == index % len(given["weight"])
                result = torch.where(is_padding[..., None], result.detach(), result)
        return result


def _in_slices(rows: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([product(part).detach() for part in rows.split(_ROWS_AT_ONCE)])


def _pulled(pull: Callable[[Tensor], tuple[Tensor]], cotangents: Tensor) -> Tensor:
    result: Tensor = vmap(lambda row: pull(row)[0])(cotangents)
    return result


class Linearization:
    """Products with the derivatives of an objective at its parameters, for rows of vectors [k, n].

    The same methods as of the program engine's `lsfast.program.linearization.Linearization`, which describes them.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.parameters = objective.parameters

    def hvp(self, rows: Tensor) -> Tensor:
        """Return the Hessian products [k, n]."""
        return self._over_batches(
            rows, lambda inputs, targets: _in_slices(rows, lambda part: self._batch_hvp(part, inputs, targets))
        )

    def ggnvp(self, rows: Tensor) -> Tensor:
        """Return the GGN products [k, n]."""
        objective = self._objective

        def middle(batch: Batch, outputs: Tensor, targets: Any, tangents: Tensor) -> Tensor:
            return loss_hessian_product(
                objective.loss_fn, objective.batch_loss, outputs, targets, tangents, own_tangents=True
            )

        return self.outputs_product(rows, middle)

    def outputs_product(self, rows: Tensor, middle: Middle) -> Tensor:
        """Return the products J^T M J v [k, n] with a map M of the outputs of each batch."""
        index = itertools.count()
        objective = self._objective

        def in_slices(inputs: Any, targets: Any) -> Tensor:
            batch = Batch(next(index), objective.weight_of(inputs, targets))
            outputs = _outputs_of(objective, inputs)
            value, pull = vjp(outputs, self.parameters)[:2]

            def product(part: Tensor) -> Tensor:
                tangents = self._pushed(outputs, part)
                if tangents.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr():
                    tangents = (
                        tangents.clone()
                    )  # the outputs are parameters, and the map may take its argument's memory
                return _pulled(pull, middle(batch, value.detach(), targets, tangents))

            return _in_slices(rows, product)

        return self._over_batches(rows, in_slices)

    def jvp(self, rows: Tensor, flat: bool = False) -> Tensor:
        """Return the tangents of the outputs [k, *outputs], batches along axis 1; flat [k, outputs]."""
        objective, found = self._objective, []
        with objective.undisturbed(), differentiable():
            for inputs, _ in batches(objective.data):
                outputs = _outputs_of(objective, inputs)
                tangents = _in_slices(rows, partial(self._pushed, outputs))
                found.append(tangents.reshape(len(rows), -1) if flat else tangents)
        return torch.cat(found, 1)

    def vjp(self, cotangents: Tensor, flat: bool = False) -> Tensor:
        """Return J^T u [k, n] for each cotangent u of [k, *outputs], batches along axis 1; or flat."""
        total, first = cotangents.new_zeros(len(cotangents), self._objective.n), 0
        with self._objective.undisturbed(), differentiable():
            for inputs, _ in batches(self._objective.data):
                value, pull = vjp(_outputs_of(self._objective, inputs), self.parameters)[:2]
                size = value.numel() if flat else len(value)
                mine = cotangents[:, first : first + size]
                first += size
                if mine.shape[1] == size:
                    mine = mine.reshape(-1, *value.shape) if flat else mine
                    total += _in_slices(mine, partial(_pulled, pull))
        if first != cotangents.shape[1]:
            unit = "numbers" if flat else "rows"
            raise ValueError(f"vjp: cotangents must have {first} {unit} along axis 1, got {cotangents.shape[1]}")
        return total

    def _over_batches(self, rows: Tensor, product: Callable[[Any, Any], Tensor]) -> Tensor:
        with differentiable():
            total = self._objective.over_batches(product)
        return total.add_(rows, alpha=self._objective.weight_decay)

    def _pushed(self, outputs: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        tangents: Tensor = vmap(lambda row: jvp(outputs, (self.parameters,), (row,))[1])(rows)
        return tangents.detach()

    def _batch_hvp(self, rows: Tensor, inputs: Any, targets: Any) -> Tensor:
        gradient = grad(_loss_of(self._objective, inputs, targets))
        product: Tensor
        try:
            product = vmap(lambda row: jvp(gradient, (self.parameters,), (row,))[1])(rows)
        except RuntimeError:  # an operation whose gradient has no forward derivative: huber_loss, a double group norm
            pull = vjp(gradient, self.parameters)[1]
            product = vmap(lambda row: pull(row)[0])(rows)
        return product
