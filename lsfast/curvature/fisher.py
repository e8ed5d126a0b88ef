"""The Fisher information matrix of an objective, empirical or by Monte Carlo, as a symmetric operator."""

from __future__ import annotations

from torch import Tensor

from lsfast import checks
from lsfast.curvature.fisher_factor import FisherFactor
from lsfast.curvature.operators import _ObjectiveOperator
from lsfast.objective import Objective


class FisherOperator(_ObjectiveOperator):
    r"""The Fisher :math:`F = \sum_i c_i\, g_i g_i^T`, :math:`g_i` the gradient of the loss of one target.

    The loss is read as :math:`L = \sum_i c_i \ell_i` over all targets i of the data. F is positive semidefinite and
    does not depend on how the data is split into batches (by Monte Carlo: its expectation; the draws of a batch depend
    on the batch's index). What a target is:

    - cross-entropy: each position of the targets that is not ignored. :math:`\ell_i = -\log p_i[y_i]`; :math:`c_i` is
      the class weight of :math:`y_i`, for the mean over the sum of these weights. With label smoothing or class
      probabilities :math:`\ell_i = -\sum_c (q_{ic} / m_i) \log p_{ic}`, where q is the label times the class weights
      and :math:`m_i` its sum, and :math:`c_i` has :math:`m_i` for weight: one gradient for each target still, that of
      its smoothed label.
    - NLL: the same, of the log-probabilities that the model gives.
    - losses over elements (mse, l1, huber, binary cross-entropy, ...): each row of the outputs. :math:`\ell_i` is the
      sum over its elements, their weights included; :math:`c_i` for the mean is 1 over the number of all elements.
    - any other callable: each row of the outputs, of which it must be a sum or mean; :math:`c_i` for the mean is 1 over
      the count of the objective.

    Parameters
    ----------
    objective
        What is differentiated; its parameters at this moment are kept.
    kind
        ``"empirical"``: the targets of the data. ``"mc"``: targets drawn from the model, whose expectation is the
        Fisher proper, for these losses the GGN: classes of the softmax for cross-entropy, Bernoulli outcomes of each
        element for binary cross-entropy with logits, Gaussian targets of variance 1/2 about the outputs for mse.
        :math:`c_i` stays that of the given targets.
    samples
        Targets drawn for each given one, over which F is averaged; 1 for the empirical Fisher.
    seed
        Of the draws, which depend on (seed, index of the batch, sample) alone and are kept: all products are with one
        matrix. They take the memory of one number a target (an element for the losses over elements) and sample.

    Raises
    ------
    TypeError
        If `objective` is no objective; by a product, if what the loss is given is not one tensor.
    ValueError
        If `kind` is neither, `samples` is below 1 or not 1 for the empirical Fisher, or targets cannot be drawn for the
        loss.

    Notes
    -----
    A weight decay adds its multiple of the identity, as to the GGN. The empirical Fisher is no approximation of the
    Hessian in general; see Kunstner et al.

    Examples
    --------
    >>> F = lsfast.FisherOperator(objective)
    >>> F @ torch.randn(F.shape[0])
    >>> lsfast.FisherOperator(objective, kind="mc", samples=4, seed=1).apply(torch.randn(8, F.shape[0]))

    References
    ----------
    Kunstner, Balles & Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent", NeurIPS
    2019. Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020.
    """

    def __init__(self, objective: Objective, kind: str = "empirical", samples: int = 1, seed: int = 0) -> None:
        super().__init__(objective)
        checks.one_of("FisherOperator", "kind", kind, ("empirical", "mc"))
        checks.positive_integer("FisherOperator", "samples", samples)
        if kind == "empirical" and samples != 1:
            raise ValueError(f"FisherOperator: samples must be 1 for the empirical Fisher, got {samples}")
        checks.seed("FisherOperator", seed)
        self._factor = FisherFactor(objective.loss_fn, objective.batch_loss, objective.reduction, kind, samples, seed)

    def _apply(self, rows: Tensor) -> Tensor:
        return self._linearization.outputs_product(rows, self._factor)

    def _finite_difference_defect(self, v: Tensor, product: Tensor, scale: Tensor) -> float:
        return float("nan")  # no derivative of a gradient
