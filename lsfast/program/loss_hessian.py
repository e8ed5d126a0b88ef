"""Products with the Hessian of a loss in the model's outputs: the middle factor of a GGN product.

Cross-entropy over class indices has a native kernel; every other loss is differentiated by ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn import functional

from lsfast._native import ops, register_fake


def loss_hessian_product(
    loss_fn: Any, loss: Callable[[Any, Any], Tensor], outputs: Tensor, targets: Any, tangents: Tensor
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
    """
    cross_entropy = _cross_entropy_options(loss_fn)
    if cross_entropy is not None and _is_over_class_indices(outputs, targets):
        return _cross_entropy_product(outputs, targets, tangents, *cross_entropy)
    # Reverse over reverse: some losses (huber) have no forward derivative of their gradient.
    gradient = grad(loss)
    pull = vjp(lambda z: gradient(z, targets), outputs)[1]
    result: Tensor = vmap(lambda tangent: pull(tangent)[0])(tangents)
    return result


def softmax_hessian_product(logits: Tensor, row_scale: Tensor, tangents: Tensor) -> Tensor:
    r"""Return :math:`s_i (\mathrm{diag}(p_i) - p_i p_i^T) u_{ji}`, :math:`p_i` the softmax of row i of the logits.

    Parameters
    ----------
    logits, row_scale, tangents
        [rows, classes], [rows] and [k, rows, classes], float32 or float64.

    Returns
    -------
    Tensor
        [k, rows, classes]. Not differentiable: operator products are constants to autograd.
    """
    result: Tensor = ops.softmax_hessian_product(logits.detach(), row_scale.detach(), tangents.detach())
    return result


def _cross_entropy_options(loss_fn: Any) -> tuple[Tensor | None, int, float, str] | None:
    """(class weights, ignored index, label smoothing, reduction) of a cross-entropy, None for another loss."""
    if type(loss_fn) is nn.CrossEntropyLoss:
        return loss_fn.weight, loss_fn.ignore_index, loss_fn.label_smoothing, loss_fn.reduction
    return (None, -100, 0.0, "mean") if loss_fn is functional.cross_entropy else None


def _is_over_class_indices(outputs: Tensor, targets: Any) -> bool:
    real = outputs.dtype in (torch.float32, torch.float64)
    return real and isinstance(targets, Tensor) and not targets.dtype.is_floating_point and outputs.dim() >= 2


def _cross_entropy_product(
    outputs: Tensor,
    targets: Tensor,
    tangents: Tensor,
    weight: Tensor | None,
    ignored: int,
    smoothing: float,
    reduction: str,
) -> Tensor:
    # A row's loss is a weighted sum of -log p_c; each has the Hessian diag(p) - p p^T, so only the weights' sum counts.
    classes = outputs.shape[1]
    flat = targets.reshape(-1)
    kept = flat != ignored
    class_weight = torch.ones(classes, dtype=outputs.dtype, device=outputs.device) if weight is None else weight
    own = class_weight[torch.where(kept, flat, 0)] * kept
    scale = (1.0 - smoothing) * own + smoothing / classes * class_weight.sum() * kept
    if reduction == "mean":
        scale = scale / own.sum()
    # Classes lie on axis 1: [rows, classes, ...] -> [rows * ..., classes].
    logits = outputs.movedim(1, -1)
    moved = tangents.movedim(2, -1)
    product = softmax_hessian_product(
        logits.reshape(-1, classes), scale.to(outputs.dtype), moved.reshape(len(tangents), -1, classes)
    )
    return product.reshape(moved.shape).movedim(-1, 2)


@register_fake("softmax_hessian_product")
def _(logits: Tensor, row_scale: Tensor, tangents: Tensor) -> Tensor:
    return torch.empty_like(tangents, memory_format=torch.contiguous_format)
