"""Cross-entropy of rows of logits and its derivatives, by the kernels of ``csrc/curvature/cross_entropy.h``.

The rule of cross-entropy, the middle factor of its GGN product and that of its Fisher product all stand on this. Of a
row only the logarithm of its sum of exponentials is kept; no tensor of the size of the logits is made but results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import ops, register_fake

_Results = tuple[Tensor, Tensor, Tensor]


class CrossEntropyRows:
    r"""Rows of logits z with targets: their losses, and products with the derivatives of these in z.

    .. math:: \ell_i = \sum_c q_{ic} (\log \textstyle\sum_b e^{z_{ib}} - z_{ic}), \qquad
              g_i = m_i p_i - q_i, \qquad H_i = m_i (\mathrm{diag}\, p_i - p_i p_i^T),

    :math:`q_{ic} = f_i w_c ((1 - s)\, t_{ic} + s / C)` and :math:`m_i = \sum_c q_{ic}`, with class weights w, label
    smoothing s and targets t, one-hot or probabilities. :math:`f_i` is 0 for a target that is ignored, else 1, or for
    the mean 1 over what PyTorch divides by.

    Parameters
    ----------
    logits
        z: [C], [N, C] or [N, C, d1, ...], float32, float64 or bfloat16. Rows are numbered as in [N, d1, ...]. No copy
        is made where the classes or the rows of z are neighbours in memory.
    target
        Class indices, of the shape of z without its classes, or probabilities of the shape of z; None: q is 0, so that
        there is no loss and only Hessian products remain.
    class_weight, ignored, smoothing
        As in ``torch.nn.CrossEntropyLoss``.
    mean
        Whether rows are divided as for the mean over all.

    Attributes
    ----------
    loss, mass, log_sum, factor
        [rows] in float32 (float64 for float64 logits): :math:`\ell`, m, the logarithms, and f.

    References
    ----------
    Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, section 9 (the Hessian).

    Examples
    --------
    >>> rows = CrossEntropyRows(logits, labels, mean=True)
    >>> rows.loss.sum()  # torch.nn.functional.cross_entropy(logits, labels)
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor | None,
        class_weight: Tensor | None = None,
        ignored: int = -100,
        smoothing: float = 0.0,
        mean: bool = False,
    ) -> None:
        logits = logits.detach()
        self.shape = logits.shape
        self._axis = 0 if logits.dim() == 1 else 1
        self.classes = logits.shape[self._axis]
        self._last = logits.dim() <= 2 or logits.movedim(self._axis, -1).is_contiguous()
        self.row_shape = logits.shape[: self._axis] + logits.shape[self._axis + 1 :]
        self.count = self.row_shape.numel()
        inner = 1 if self._last else logits.shape[2:].numel()
        self._rows = (self.count if self._last else logits.shape[0], inner)
        self._real = torch.float64 if logits.dtype == torch.float64 else torch.float32
        weight = None if class_weight is None else class_weight.detach().to(self._real)
        index = probabilities = None
        if target is None or target.dtype.is_floating_point:
            probabilities = None if target is None else self._as_rows(target.detach().to(logits.dtype), 0)
            factor = torch.ones(self.count, dtype=self._real, device=logits.device)
            total = factor.sum()
        else:
            index = target.reshape(-1).long()
            kept = index != ignored
            factor = kept.to(self._real)
            total = factor.sum() if weight is None else (weight[torch.where(kept, index, 0)] * factor).sum()
            index = index.view(self._rows)
        # Divided here and not the loss: the derivatives then need no pass of their own for it.
        self.factor = factor / total if mean else factor
        first = self._as_rows(logits, 0)
        self._given = (first, index, probabilities, weight, self.factor.view(self._rows), float(smoothing))
        results: _Results = ops.cross_entropy_forward(*self._given)
        log_sum, mass, loss = results
        self._kept = (log_sum, mass)
        self.log_sum, self.mass, self.loss = log_sum.view(-1), mass.view(-1), loss.view(-1)

    def jvp(self, tangents: Tensor) -> Tensor:
        r"""Return :math:`g_i \cdot u_{ji}` for the rows of each u [*z.shape] of `tangents`: [k, rows]."""
        result: Tensor = ops.cross_entropy_tangent(*self._given, *self._kept, self._as_rows(tangents, 1))
        return result.view(len(tangents), self.count)

    def vjp(self, adjoints: Tensor, out: Tensor | None = None) -> Tensor:
        r"""Return :math:`a_{ji} g_i` for adjoints a [k, rows]: [k, *z.shape].

        `out` [k, *z.shape] lends its memory to the result where it lies as the logits do: use only what is returned.
        """
        adjoints = adjoints.to(self._real).reshape(len(adjoints), *self._rows)
        lent = self._lent(out)
        if lent is None:
            return self._from_rows(ops.cross_entropy_adjoint(*self._given, *self._kept, adjoints, None, None))
        ops.cross_entropy_adjoint_(*self._given, *self._kept, adjoints, None, lent)
        return self._from_rows(lent)

    def product(
        self, curvature: Tensor, tangents: Tensor, adjoints: Tensor | None = None, in_place: bool = False
    ) -> Tensor:
        r"""Return :math:`c_i (\mathrm{diag}\, p_i - p_i p_i^T) u_{ji} + a_{ji} g_i`: [k, *z.shape].

        Parameters
        ----------
        curvature, tangents, adjoints
            c [rows], u [k, *z.shape] and a [k, rows], None for zeros. The Hessian of the sum of rows has c = `mass`.
        in_place
            Write over `tangents` where they lie as the logits do: use only what is returned.
        """
        if adjoints is not None:
            adjoints = adjoints.to(self._real).reshape(len(adjoints), *self._rows)
        given = (*self._given, *self._kept, adjoints, curvature.to(self._real).reshape(self._rows))
        lent = self._lent(tangents) if in_place else None
        if lent is None:
            return self._from_rows(ops.cross_entropy_adjoint(*given, self._as_rows(tangents, 1)))
        ops.cross_entropy_adjoint_(*given, lent)
        return self._from_rows(lent)

    def _lent(self, out: Tensor | None) -> Tensor | None:
        """Return the memory of `out` as rows, None where it does not lie as the logits do."""
        rows = None if out is None else self._as_rows(out, 1)
        same = rows is not None and out is not None and rows.is_contiguous() and rows.data_ptr() == out.data_ptr()
        return rows if same else None

    def _as_rows(self, x: Tensor, lead: int) -> Tensor:
        """[*lead, *z.shape] -> [*lead, outer, classes, inner], a view where x lies as the logits do."""
        outer, inner = self._rows
        if self._last:
            x = x.movedim(lead + self._axis, -1)
        return x.reshape(*x.shape[:lead], outer, self.classes, inner)

    def _from_rows(self, x: Tensor) -> Tensor:
        """[k, outer, classes, inner] -> [k, *z.shape], a view."""
        if self._last:
            return x.view(len(x), *self.row_shape, self.classes).movedim(-1, 1 + self._axis)
        return x.view(len(x), *self.shape)


@register_fake("cross_entropy_forward")
def _(
    logits: Tensor,
    target: Tensor | None,
    probabilities: Tensor | None,
    class_weight: Tensor | None,
    factor: Tensor,
    smoothing: float,
) -> _Results:
    first, second, third = (torch.empty_like(factor, memory_format=torch.contiguous_format) for _ in range(3))
    return first, second, third


@register_fake("cross_entropy_tangent")
def _(
    logits: Tensor,
    target: Tensor | None,
    probabilities: Tensor | None,
    class_weight: Tensor | None,
    factor: Tensor,
    smoothing: float,
    log_sum: Tensor,
    mass: Tensor,
    tangents: Tensor,
) -> Tensor:
    return factor.new_empty(tangents.shape[0], *factor.shape)


@register_fake("cross_entropy_adjoint")
def _(
    logits: Tensor,
    target: Tensor | None,
    probabilities: Tensor | None,
    class_weight: Tensor | None,
    factor: Tensor,
    smoothing: float,
    log_sum: Tensor,
    mass: Tensor,
    adjoints: Tensor | None,
    curvature: Tensor | None,
    tangents: Tensor | None,
) -> Tensor:
    leading = adjoints if tangents is None else tangents
    assert leading is not None
    return logits.new_empty(leading.shape[0], *logits.shape)


@register_fake("cross_entropy_adjoint_")
def _(
    logits: Tensor,
    target: Tensor | None,
    probabilities: Tensor | None,
    class_weight: Tensor | None,
    factor: Tensor,
    smoothing: float,
    log_sum: Tensor,
    mass: Tensor,
    adjoints: Tensor | None,
    curvature: Tensor | None,
    tangents: Tensor,
) -> None:
    return None
