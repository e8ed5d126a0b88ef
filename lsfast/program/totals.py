r"""Sums of an evaluation over batches: the loss at each point, its standard error, and metrics.

With contributions l and weights w of the rows of batch b, and c_b its weight in the whole (s_b = c_b / sum w):

.. math:: m = \sum_b s_b \sum_r l_{br} / \sum_b c_b, \qquad
          se^2 = \frac{R}{R - 1} \sum_{b,r} s_b^2 (l_{br} - m w_{br})^2 / (\sum_b c_b)^2

the error of a ratio estimate (Cochran 1977, eq. 2.46), with R the rows of weight other than 0. For a sum over the data
s_b = 1, w = 1, and the last division is not made. Squares are taken about the first batch's loss: nothing cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class RowWeights:
    """The weights w [R] of a batch's rows, float64, and what sums need of them."""

    def __init__(self, weights: Tensor, is_sum: bool) -> None:
        self.weights = torch.ones_like(weights) if is_sum else weights
        self.total, self.squares = float(self.weights.sum()), float(self.weights.square().sum())
        self.rows = int((self.weights != 0).sum())
        self._uniform = bool((self.weights == self.weights[0]).all())

    def sums(self, rows: Tensor) -> Tensor:
        """Return, for contributions l [g, R], [3, g]: their sum, and of l - m w its squares and its products with w.

        m is this batch's own mean, sum l / sum w.
        """
        if self._uniform:
            variance, mean = torch.var_mean(rows, 1, correction=0)
            return torch.stack([mean, variance, torch.zeros_like(mean)]).mul_(rows.shape[1])
        loss = rows.sum(1)
        apart = rows - (loss / self.total)[:, None] * self.weights
        return torch.stack([loss, apart.square().sum(1), apart @ self.weights])


@dataclass(frozen=True)
class BatchLoss:
    """What a batch gives at g points.

    Attributes
    ----------
    weight
        c, of its loss in the whole.
    sums
        [3, g], see `RowWeights.sums`.
    weights
        Of the rows.
    count
        Rows of its targets, which metrics are averaged by.
    metrics
        name -> [g].
    """

    weight: float
    sums: Tensor
    weights: RowWeights
    count: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


def joined(parts: Sequence[BatchLoss]) -> BatchLoss:
    """Return what one batch gives at the points of several chunks."""
    first = parts[0]
    metrics = {name: torch.cat([part.metrics[name] for part in parts]) for name in first.metrics}
    return BatchLoss(first.weight, torch.cat([part.sums for part in parts], 1), first.weights, first.count, metrics)


class Totals:
    """Sums over batches for g points."""

    def __init__(self, g: int, metrics: list[str], is_sum: bool, device: torch.device) -> None:
        self.is_sum = is_sum
        self._total, self._squares, self._cross, self._centre = torch.zeros(4, g, dtype=torch.float64, device=device)
        self._batches = torch.zeros(g, dtype=torch.int64)  # seen
        self._weight, self._weights_squared, self._rows = torch.zeros(3, g, dtype=torch.float64)
        self._metrics = {name: torch.zeros(g, dtype=torch.float64) for name in metrics}
        self._counted = torch.zeros(g, dtype=torch.float64)

    def add(self, chunk: slice, batch: BatchLoss) -> None:
        """Add a batch at a range of points."""
        loss, squares, cross = batch.sums
        w = batch.weights
        scale = 1.0 if self.is_sum else batch.weight / w.total
        mean = loss / w.total
        if self._batches[chunk.start] == 0:
            self._centre[chunk] = mean
        off = mean - self._centre[chunk]
        self._total[chunk] += scale * loss
        self._squares[chunk] += scale**2 * (squares + 2.0 * off * cross + off.square() * w.squares)
        self._cross[chunk] += scale**2 * (cross + off * w.squares)
        self._batches[chunk] += 1
        self._weight[chunk] += w.total if self.is_sum else batch.weight
        self._weights_squared[chunk] += scale**2 * w.squares
        self._rows[chunk] += w.rows
        for name, value in batch.metrics.items():
            self._metrics[name][chunk] += batch.count * value
        self._counted[chunk] += batch.count

    @property
    def values(self) -> Tensor:
        """[g] the loss at each point."""
        if not bool(self._batches.any()):
            raise ValueError("Objective: data must count more than zero targets, got none")
        found: Tensor = self._total if self.is_sum else self._total / self._weight.to(self._total.device)
        return found

    @property
    def stderr(self) -> Tensor:
        """[g] the standard errors, NaN where there is one row."""
        device = self._total.device
        weight, weights_squared, rows = (x.to(device) for x in (self._weight, self._weights_squared, self._rows))
        off = self._total / weight - self._centre
        apart = self._squares - 2.0 * off * self._cross + off.square() * weights_squared
        error = (apart.clamp_min(0.0) * rows / (rows - 1.0)).sqrt()
        error = torch.where(rows > 1, error, float("nan"))
        return error if self.is_sum else error / weight

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Name -> [g], means over the rows of all batches."""
        return {name: total / self._counted for name, total in self._metrics.items()}
