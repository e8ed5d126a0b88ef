"""The middle factor of a Fisher product: rank one for each target, by the derivative of its own loss in the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional

from lsfast.data import is_elementwise
from lsfast.program.cross_entropy import CrossEntropyRows
from lsfast.program.loss_hessian import Batch, cross_entropy_options, has_cross_entropy_kernel
from lsfast.seeds import generator

_ELEMENTS = 2**22  # probabilities held at once when classes are drawn


class FisherFactor:
    r"""Middle factors :math:`u \mapsto \sum_i c_i\, \ell'_i (\ell'_i \cdot u_i)` over the targets i of a batch.

    The loss of a batch is :math:`\sum_i c_i \ell_i`, each :math:`\ell_i` the loss of one target and :math:`\ell'_i` its
    derivative in the outputs, with the target given ("empirical") or drawn from the model ("mc").

    Parameters
    ----------
    loss_fn, loss
        The loss as the user gave it, and ``loss(outputs, targets)``, the scalar of a batch.
    reduction
        ``"mean"`` or ``"sum"``.
    kind, samples, seed
        As in `FisherOperator`.

    Raises
    ------
    ValueError
        For ``"mc"``, if targets cannot be drawn for this loss.
    """

    def __init__(
        self, loss_fn: Any, loss: Callable[[Any, Any], Tensor], reduction: str, kind: str, samples: int, seed: int
    ) -> None:
        self._loss_fn, self._loss, self._mean = loss_fn, loss, reduction == "mean"
        self._kind, self._samples, self._seed = kind, samples, seed
        self._drawn: dict[int, list[Tensor]] = {}
        if kind == "mc" and cross_entropy_options(loss_fn) is None and not _is_mse(loss_fn) and not _is_bce(loss_fn):
            raise ValueError(
                "FisherOperator: kind='mc' needs a loss whose targets can be drawn (cross_entropy, "
                f"binary_cross_entropy_with_logits or mse_loss), got {_name(loss_fn)}"
            )

    def __call__(self, batch: Batch, outputs: Tensor, targets: Any, tangents: Tensor) -> Tensor:
        """Return the factor's product with each of `tangents` [k, *z.shape], whose memory it may take."""
        options = cross_entropy_options(self._loss_fn)
        if options is not None:
            if not has_cross_entropy_kernel(outputs, targets):
                return self(batch, outputs.float(), targets, tangents.float()).to(tangents.dtype)
            weight, ignored, smoothing, _ = options
            rows = CrossEntropyRows(outputs, targets, weight, ignored, smoothing, self._mean)
            if self._kind == "empirical":
                return _rank_one(rows, torch.where(rows.mass != 0, 1 / rows.mass, 0), tangents)
            return self._drawn_classes(batch, outputs, rows, tangents)
        if self._kind == "mc":
            return self._drawn_elements(batch, outputs, targets, tangents)
        gradient = grad(self._loss)(outputs, targets)
        if type(self._loss_fn) is nn.NLLLoss or self._loss_fn is functional.nll_loss:
            product: Tensor = -gradient * tangents
            return product  # the derivative of a target is -1 at its class; its weight is the gradient's
        count = outputs.numel() if is_elementwise(self._loss_fn) else batch.count
        return _rank_one_by_row(gradient, count if self._mean else 1.0, tangents)

    def _drawn_classes(self, batch: Batch, outputs: Tensor, given: CrossEntropyRows, tangents: Tensor) -> Tensor:
        samples = self._samples_of(batch, lambda stream: _draw_classes(outputs, stream))
        total: Tensor | None = None
        for classes in samples:
            # A target without weight is left out, as the loss leaves it out.
            target = torch.where(given.mass != 0, classes, -100).view(given.row_shape)
            last = classes is samples[-1]
            rows = CrossEntropyRows(outputs, target)
            part = _rank_one(rows, given.mass / self._samples, tangents, in_place=last)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _drawn_elements(self, batch: Batch, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        scale = 1.0 / outputs.numel() if self._mean else 1.0
        is_mse = _is_mse(self._loss_fn)
        # The derivative of the loss of target y is factor (mean - y); a weight's root makes its square the weight.
        mean, factor = (0.0, 2.0) if is_mse else (outputs.sigmoid(), _bce_weight(self._loss_fn, targets).sqrt())
        total: Tensor | None = None
        for sample in self._samples_of(batch, lambda stream: _draw_elements(outputs, is_mse, stream)):
            slope = (mean - sample) * factor
            part = _rank_one_by_row(slope, scale / self._samples, tangents)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _samples_of(self, batch: Batch, draw: Callable[[torch.Generator], Tensor]) -> list[Tensor]:
        """Draw the samples of a batch, once: a rounding of the outputs in a later product cannot change them."""
        if batch.index not in self._drawn:
            streams = [generator(self._seed, batch.index, sample) for sample in range(self._samples)]
            self._drawn[batch.index] = [draw(stream) for stream in streams]
        return self._drawn[batch.index]


def _rank_one(rows: CrossEntropyRows, scale: Tensor, tangents: Tensor, in_place: bool = True) -> Tensor:
    """Return s_i g_i (g_i . u_i) for the rows of the tangents u, g the gradients of the rows' losses."""
    return rows.vjp(rows.jvp(tangents) * scale, out=tangents if in_place else None)


def _rank_one_by_row(gradient: Tensor, scale: float, tangents: Tensor) -> Tensor:
    """Return s g_i (g_i . u_i), i along the first axis of the outputs."""
    count = gradient.shape[0] if gradient.dim() > 0 else 1
    g = gradient.reshape(count, -1)
    dots = torch.einsum("nd,knd->kn", g, tangents.reshape(len(tangents), *g.shape)) * scale
    return (dots[..., None] * g).view(tangents.shape)


def _draw_classes(logits: Tensor, stream: torch.Generator) -> Tensor:
    """One class for each row, [rows], with the probabilities of its softmax: by the inverse of their sum."""
    rows = logits.movedim(1, -1) if logits.dim() > 1 else logits
    rows = rows.reshape(-1, rows.shape[-1])
    uniform = torch.rand(len(rows), 1, generator=stream, dtype=torch.float64).to(logits.device)
    drawn = []
    for part, number in zip(*(x.split(max(1, _ELEMENTS // rows.shape[1])) for x in (rows, uniform)), strict=True):
        upper = part.double().softmax(1).cumsum(1)
        drawn.append(torch.searchsorted(upper, number * upper[:, -1:], right=True))
    return torch.cat(drawn).flatten().clamp_max(rows.shape[1] - 1)


def _draw_elements(outputs: Tensor, is_mse: bool, stream: torch.Generator) -> Tensor:
    """Gaussian targets of variance 1/2 less the outputs, or Bernoulli outcomes of log-odds z; in the shape of z."""
    if is_mse:
        noise = torch.empty(outputs.shape, dtype=outputs.dtype).normal_(std=0.5**0.5, generator=stream)
        return noise.to(outputs.device)
    uniform = torch.rand(outputs.shape, generator=stream, dtype=torch.float64)
    return (uniform.to(outputs.device) < outputs.double().sigmoid()).to(outputs.dtype)


def _bce_weight(loss_fn: Any, targets: Tensor) -> Tensor:
    weight, pos_weight = getattr(loss_fn, "weight", None), getattr(loss_fn, "pos_weight", None)
    result = torch.ones_like(targets) if pos_weight is None else 1 + (pos_weight - 1) * targets
    return result if weight is None else result * weight


def _is_mse(loss_fn: Any) -> bool:
    return type(loss_fn) is nn.MSELoss or loss_fn is functional.mse_loss


def _is_bce(loss_fn: Any) -> bool:
    return type(loss_fn) is nn.BCEWithLogitsLoss or loss_fn is functional.binary_cross_entropy_with_logits


def _name(loss_fn: Any) -> str:
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))
