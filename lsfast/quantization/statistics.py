"""What quantization lost: counts and sums that `lsfast.fake_quantize` gathers while it rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsfast.formats import QuantScheme

GRANULARITIES = ("none", "tensor", "row", "block")  # in the order of csrc's Granularity


@dataclass(frozen=True)
class QuantStatistics:
    r"""What was lost in rounding a tensor, each of its rows or each of its blocks.

    Attributes
    ----------
    count
        Elements, float64: [] for a tensor; for rows the shape of x without the axis; for blocks the shape of x with
        the axis (and, for two-dimensional blocks, the one before it) counted in blocks. So for all below.
    saturated
        Elements beyond the largest number of their scale.
    flushed
        Elements that are not zero and became zero.
    squared_error, squared_sum
        :math:`\sum (y - x)^2` and :math:`\sum x^2`, with x after the Hadamard transform where there is one.
    largest
        The largest finite magnitude of x.
    """

    count: Tensor
    saturated: Tensor
    flushed: Tensor
    squared_error: Tensor
    squared_sum: Tensor
    largest: Tensor

    @property
    def sqnr(self) -> Tensor:
        r"""The signal-to-quantization-noise ratio :math:`10 \log_{10}(\sum x^2 / \sum (y - x)^2)` in dB."""
        return 10 * torch.log10(self.squared_sum / self.squared_error)

    @staticmethod
    def of_sums(sums: Tensor, counts: Tensor) -> QuantStatistics:
        """Return the statistics of the sums [..., 5] that the operator fills."""
        return QuantStatistics(counts.to(sums.device), *(part.contiguous() for part in sums.unbind(-1)))


def statistics_shape(
    shape: Sequence[int], scheme: QuantScheme, axis: int, granularity: str
) -> tuple[tuple[int, ...], Tensor]:
    """Return the shape of the statistics of a tensor of some shape, and how many elements each covers."""
    if granularity == "tensor":
        return (), torch.tensor(float(math.prod(shape)), dtype=torch.float64)
    if granularity == "row":
        rows = (*shape[:axis], *shape[axis + 1 :])
        return rows, torch.full(rows, float(shape[axis]), dtype=torch.float64)
    if scheme.block is None or scheme.block == "tensor":
        raise ValueError(f"fake_quantize: statistics='block' needs a scheme with blocks, got {scheme.name!r}")
    height, length = scheme.block if isinstance(scheme.block, tuple) else (1, scheme.block)
    sides = {axis: shape[axis] if isinstance(length, str) else length}
    if height > 1:
        sides[axis - 1] = height
    counts = torch.ones((), dtype=torch.float64)
    for dim, size in enumerate(shape):
        side = sides.get(dim, 1)
        blocks = -(-size // side)
        covered = torch.full((blocks,), float(side), dtype=torch.float64)
        covered[-1] = size - (blocks - 1) * side
        counts = counts[..., None] * covered
    return tuple(counts.shape), counts
