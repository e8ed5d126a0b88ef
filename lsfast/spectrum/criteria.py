"""Criteria on a spectrum: single numbers that summarize a spectral density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsfast.estimate import Estimate, estimate_number


@dataclass(frozen=True)
class Criteria:
    """Numbers read from the nodes lambda_i and weights w_i of a spectral density.

    An Estimate is the mean over probes of the criterion of each probe's own quadrature. Nodes whose magnitude is below
    64 epsilon times the spectral norm, epsilon being that of the operator's dtype, are rounding and count as 0:
    neither negative nor positive.

    Attributes
    ----------
    smallest, largest
        Extreme nodes over all probes. Nodes lie inside the spectrum, so these are inner bounds.
    spectral_norm
        Largest magnitude of a node.
    extreme_ratio
        r_e = |smallest / largest|; infinite when the largest is 0.
    negative_mass
        Sum of w_i over negative nodes: the fraction of eigenvalues below 0.
    negative_ratio
        Sum over negative nodes of w_i |lambda_i|^(1/2), over the same sum of positive nodes.
    negative_ratio_powered
        K_H of "Loss Landscape Analysis": the same with the weight inside the power, |w_i lambda_i|^(1/2). It depends
        on the number of nodes and is given for comparison.
    effective_rank
        n (sum w |lambda|)^2 / sum w lambda^2: r for a spectrum with r equal eigenvalues and zeros.
    frobenius_norm
        (n sum w lambda^2)^(1/2); its standard error to first order from that of the sum.
    bulk_edge
        b + (b - a), where a and b are the 5% and 95% quantiles of the mean distribution of eigenvalues.
    outliers
        Number of nodes above `bulk_edge`: a converged isolated eigenvalue is one node of every probe, a repeated one
        too. Counted under full reorthogonalization, where no copies appear.
    bulk_condition
        95% quantile of |lambda| over its 5% quantile; infinite if that is 0.
    """

    smallest: float
    largest: float
    spectral_norm: float
    extreme_ratio: float
    negative_mass: Estimate[float]
    negative_ratio: Estimate[float]
    negative_ratio_powered: Estimate[float]
    effective_rank: Estimate[float]
    frobenius_norm: Estimate[float]
    bulk_edge: float
    outliers: Estimate[float]
    bulk_condition: Estimate[float]


def weighted_quantile(values: Tensor, weights: Tensor, level: float) -> float:
    """Return the least value with at least `level` of the weight at or below it."""
    order = values.flatten().argsort()
    below = weights.flatten()[order].cumsum(0)
    place = int(torch.searchsorted(below, level * float(below[-1])))
    return float(values.flatten()[order[min(place, order.numel() - 1)]])


def criteria_of(nodes: Tensor, weights: Tensor, n: int, epsilon: float) -> Criteria:
    """Criteria of the quadratures ``nodes, weights`` [probes, m] of an operator on vectors of length n."""
    seen = weights > 0
    smallest, largest = float(nodes[seen].min()), float(nodes[seen].max())
    norm = max(abs(smallest), abs(largest))
    magnitude = torch.where(nodes.abs() > 64 * epsilon * norm, nodes.abs(), 0.0)
    negative, positive = (nodes < 0) & (magnitude > 0), (nodes > 0) & (magnitude > 0)

    def ratio(terms: Tensor) -> Tensor:
        """Sum over negative nodes over sum over positive ones; 0 if there is neither."""
        below, above = (terms * negative).sum(1), (terms * positive).sum(1)
        return torch.where(below == 0, 0.0, below / above)

    first, second = (weights * magnitude).sum(1), (weights * magnitude**2).sum(1)
    squares = estimate_number(second, n)
    frobenius = squares.value**0.5
    a, b = weighted_quantile(nodes, weights, 0.05), weighted_quantile(nodes, weights, 0.95)
    edge = b + (b - a)
    condition = [
        (weighted_quantile(m, w, 0.95), weighted_quantile(m, w, 0.05)) for m, w in zip(magnitude, weights, strict=True)
    ]
    return Criteria(
        smallest=smallest,
        largest=largest,
        spectral_norm=norm,
        extreme_ratio=abs(smallest / largest) if largest != 0 else float("inf"),
        negative_mass=estimate_number((weights * negative).sum(1)),
        negative_ratio=estimate_number(ratio(weights * magnitude.sqrt())),
        negative_ratio_powered=estimate_number(ratio((weights * magnitude).sqrt())),
        effective_rank=estimate_number(torch.where(second > 0, n * first**2 / second, 0.0)),
        frobenius_norm=Estimate(frobenius, squares.stderr / (2 * frobenius) if frobenius > 0 else 0.0),
        bulk_edge=edge,
        outliers=estimate_number((seen & (nodes > edge)).sum(1)),
        bulk_condition=estimate_number(
            torch.tensor([high / low if low > 0 else float("inf") for high, low in condition], dtype=torch.float64)
        ),
    )
