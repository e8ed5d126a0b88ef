r"""Sums of an evaluation over batches: the loss at each point, its standard error, and metrics.

With contributions l and weights w of the rows of batch b, and c_b its weight in the whole (s_b = c_b / sum w):

.. math:: m = \sum_b s_b \sum_r l_{br} / \sum_b c_b, \qquad
          se^2 = \frac{R}{R - 1} \sum_{b,r} s_b^2 (l_{br} - m w_{br})^2 / (\sum_b c_b)^2

the error of a ratio estimate (Cochran 1977, eq. 2.46), with R the rows of weight other than 0. For a sum over the data
s_b = 1, w = 1, and the last division is not made. Squares are taken about the first batch's loss: nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchLoss:
    """What a batch gives at g points.

    Attributes
    ----------
    weight
        c, of its loss in the whole.
    rows, weights
        [g, R] and [R] float64: contributions and weights of its rows.
    count
        Rows of its targets, which metrics are averaged by.
    metrics
        name -> [g].
    """

    weight: float
    rows: Tensor
    weights: Tensor
    count: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Totals:
    """Sums over batches for g points."""

    def __init__(self, g: int, metrics: list[str], is_sum: bool, device: torch.device) -> None:
        self._is_sum = is_sum
        self._total, self._centre, self._squares, self._cross = torch.zeros(4, g, dtype=torch.float64, device=device)
        self._weight, self._weights_squared, self._rows = torch.zeros(3, g, dtype=torch.float64, device=device)
        self._seen = torch.zeros(g, dtype=torch.bool, device=device)
        self._metrics = {name: torch.zeros(g, dtype=torch.float64) for name in metrics}
        self._counted = torch.zeros(g, dtype=torch.float64)

    def add(self, chunk: slice, batch: BatchLoss) -> None:
        """Add a batch at the points of a chunk."""
        rows, weights = batch.rows, batch.weights
        if self._is_sum:
            weights = torch.ones_like(weights)
        scale = 1.0 if self._is_sum else batch.weight / weights.sum()
        loss = rows.sum(1)
        seen, centre = self._seen[chunk], self._centre[chunk]
        torch.where(seen, centre, loss / weights.sum(), out=centre)
        self._total[chunk] += scale * loss
        off = rows - centre[:, None] * weights
        self._squares[chunk] += scale**2 * off.square().sum(1)
        self._cross[chunk] += scale**2 * (off @ weights)
        self._weights_squared[chunk] += scale**2 * weights.square().sum()
        self._weight[chunk] += scale * weights.sum() if self._is_sum else batch.weight
        self._rows[chunk] += (weights != 0).sum()
        seen.fill_(True)
        for name, value in batch.metrics.items():
            self._metrics[name][chunk] += batch.count * value
        self._counted[chunk] += batch.count

    @property
    def values(self) -> Tensor:
        """[g] the loss at each point."""
        if not bool(self._seen.any()):
            raise ValueError("Objective: data must count more than zero targets, got none")
        found: Tensor = self._total if self._is_sum else self._total / self._weight
        return found

    @property
    def stderr(self) -> Tensor:
        """[g] the standard errors, NaN where there is one row."""
        off = self._total / self._weight - self._centre
        squares = self._squares - 2.0 * off * self._cross + off.square() * self._weights_squared
        error = (squares.clamp_min(0.0) * self._rows / (self._rows - 1.0)).sqrt()
        error = torch.where(self._rows > 1, error, float("nan"))
        return error if self._is_sum else error / self._weight

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Name -> [g], means over the rows of all batches."""
        return {name: total / self._counted for name, total in self._metrics.items()}
