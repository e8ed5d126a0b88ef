"""Inner products and sums of long rows in float64, a slice of columns at a time: no copy of the rows in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_COLUMNS = 2**16


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products [p, q], float64, of the rows of x [p, n] with those of y [q, n]."""
    result = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
    for part in _slices(x.shape[1]):
        result += x[:, part].double() @ y[:, part].double().T
    return result


def combinations(coefficients: Tensor, x: Tensor) -> Tensor:
    """Return coefficients [k, c], float64, @ x [c, n], summed in float64, rounded once to the dtype of x: [k, n]."""
    result = x.new_empty(len(coefficients), x.shape[1])
    for part in _slices(x.shape[1]):
        result[:, part] = (coefficients.to(x.device) @ x[:, part].double()).to(x.dtype)
    return result


def _slices(n: int) -> Iterator[slice]:
    return (slice(first, first + _COLUMNS) for first in range(0, n, _COLUMNS))
