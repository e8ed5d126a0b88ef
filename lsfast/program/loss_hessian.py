"""Products with the Hessian of a loss in the model's outputs: the middle factor of a GGN product.

A middle factor is a symmetric matrix M on the outputs z of a batch, known by its products M u with each u of the
tangents [k, *z.shape], ``middle(batch, outputs, targets, tangents)``; an engine's ``outputs_product`` makes J^T M J of
it.

Cross-entropy has a native kernel; every other loss is differentiated by ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn import functional

from lsfast.program.cross_entropy import CrossEntropyRows


@dataclass(frozen=True)
class Batch:
    """What a middle factor is told of a batch: its place in the data, and what its loss is divided by."""

    index: int
    count: float


Middle = Callable[[Batch, Tensor, Any, Tensor], Tensor]


def loss_hessian_product(
    loss_fn: Any,
    loss: Callable[[Any, Any], Tensor],
    outputs: Tensor,
    targets: Any,
    tangents: Tensor,
    own_tangents: bool = False,
) -> Tensor:
    r"""Return :math:`(\partial^2 \ell / \partial z^2)\, u` for each u of `tangents`.

    Parameters
    ----------
    loss_fn
        The loss as the user gave it: what it is decides the way.
    loss
        ``loss(outputs, targets)``, the scalar of a batch.
    outputs, tangents
        z, of any shape, and [k, *z.shape].
    own_tangents
        Whether the caller gives up its tangents, so that the product may take their memory.
    """
    options = cross_entropy_options(loss_fn)
    if options is not None and has_cross_entropy_kernel(outputs, targets):
        weight, ignored, smoothing, reduction = options
        rows = CrossEntropyRows(outputs, targets, weight, ignored, smoothing, mean=reduction == "mean")
        return rows.product(rows.mass, tangents, in_place=own_tangents)
    # Reverse over reverse: some losses (huber) have no forward derivative of their gradient.
    gradient = grad(loss)
    pull = vjp(lambda z: gradient(z, targets), outputs)[1]
    result: Tensor = vmap(lambda tangent: pull(tangent)[0])(tangents)
    return result


def cross_entropy_options(loss_fn: Any) -> tuple[Tensor | None, int, float, str] | None:
    """(class weights, ignored index, label smoothing, reduction) of a cross-entropy, None for another loss."""
    if type(loss_fn) is nn.CrossEntropyLoss:
        return loss_fn.weight, loss_fn.ignore_index, loss_fn.label_smoothing, loss_fn.reduction
    return (None, -100, 0.0, "mean") if loss_fn is functional.cross_entropy else None


def has_cross_entropy_kernel(outputs: Tensor, targets: Any) -> bool:
    """Whether the kernels take these outputs."""
    return outputs.dtype.is_floating_point and isinstance(targets, Tensor)
