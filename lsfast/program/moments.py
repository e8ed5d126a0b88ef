r"""Mean and variance of channels over all data at many points: what recomputed batch norms normalize by.

Of an affine value x = x_0 + sum_k c_k x_k both are polynomials in the coordinates, with c_0 = 1:

.. math:: \bar x(c) = \sum_i c_i \bar x_i, \qquad \mathrm{var}\, x(c) = \sum_{ij} c_i c_j \mathrm{cov}(x_i, x_j)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of one batch.

    Attributes
    ----------
    count
        Numbers of each channel.
    mean, variance
        [g, C] float64; the variance biased.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Return the moments of x [g, B, C, *]."""
        variance, mean = torch.var_mean(x, [1, *range(3, x.dim())], correction=0)
        return Moments(_numbers(x), mean.double(), variance.double())


class RowMoments:
    """Of an affine value, given its rows [1 + d, B, C, *]."""

    def __init__(self, rows: Tensor) -> None:
        self._count = _numbers(rows)
        parts = rows.movedim(2, 0).flatten(2).double()  # [C, 1 + d, numbers]
        self._means = parts.mean(2)
        centred = parts - self._means[:, :, None]
        self._covariances = centred @ centred.mT / self._count

    def at(self, coordinates: Tensor) -> Moments:
        """Return the moments at points [g, d]."""
        c = torch.cat([coordinates.new_ones(len(coordinates), 1), coordinates], 1).double()
        variance = torch.einsum("gi,cij,gj->gc", c, self._covariances, c)
        return Moments(self._count, c @ self._means.T, variance.clamp_min(0.0))


def joint(parts: list[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and variance [g, C] of all batches together (Chan, Golub, LeVeque 1983)."""
    count = sum(part.count for part in parts)
    mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(0)
    between = [(part.variance + (part.mean - mean).square()) * (part.count / count) for part in parts]
    return mean, torch.stack(between).sum(0)


def _numbers(x: Tensor) -> int:
    return int(x[0].numel() // max(1, x.shape[2]))
