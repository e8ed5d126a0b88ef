"""Index sets nested in an axis of any length, and interpolation on a grid from each set to the next finer one.

Interpolation is along one axis after the other, by polynomials through the nearest six values (four where six are not
finite): exact for polynomials of degree 5 in each coordinate. It never takes a value that is NaN or Inf, nor crosses
one: a point with such neighbours has their value if both agree, and is unknown otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_INTERVALS = 8  # of the coarsest set
SMOOTH, LINEAR = (6, 4), (2,)  # values a polynomial goes through, the first that finds them all finite


def nested_levels(steps: list[int]) -> list[list[Tensor]]:
    """Return for each level the indices along each axis: at most nine, then with each interval halved, up to all."""
    axes = []
    for count in steps:
        sets = [torch.tensor(sorted({0, count - 1}))]
        while len(sets[-1]) < count:
            sets.append(torch.cat([sets[-1], (sets[-1][1:] + sets[-1][:-1]) // 2]).unique())
        coarsest = max(i for i, indices in enumerate(sets) if len(indices) <= _FIRST_INTERVALS + 1)
        axes.append(sets[coarsest:])
    depth = max(len(sets) for sets in axes)
    return [[sets[min(level, len(sets) - 1)] for sets in axes] for level in range(depth)]


def refined(
    values: Tensor, known: Tensor, axes: list[Tensor], coarse: list[Tensor], fine: list[Tensor], widths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Interpolate values on the grid of the `coarse` indices to that of the `fine` ones, and say which are known.

    `axes` are the coordinates, float64, that the indices are into.
    """
    for k, (axis, old, new) in enumerate(zip(axes, coarse, fine, strict=True)):
        if len(old) == len(new):
            continue
        rows, sure = values.movedim(k, -1), known.movedim(k, -1)
        shape = (*rows.shape[:-1], len(new))
        place = torch.searchsorted(new, old)
        between = torch.ones(len(new), dtype=torch.bool).index_fill_(0, place, False)
        whole, whole_sure = rows.new_empty(shape), sure.new_empty(shape)
        whole[..., place], whole_sure[..., place] = rows, sure
        left = torch.searchsorted(old, new[between]) - 1
        added = _between(rows, sure, axis[old], axis[new[between]], left, widths)
        whole[..., between], whole_sure[..., between] = added
        values, known = whole.movedim(-1, k), whole_sure.movedim(-1, k)
    return values, known


def _between(
    values: Tensor, known: Tensor, x: Tensor, targets: Tensor, left: Tensor, widths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Values at `targets`, each between the coordinates x[left] and x[left + 1], from values [.., c] at x [c]."""
    finite = known & values.isfinite()
    before, after = values[..., left], values[..., left + 1]
    # Between two of the same NaN or Inf lies that; a polynomial takes its place only where one is found.
    same = (before == after) | (before.isnan() & after.isnan())
    found = known[..., left] & known[..., left + 1] & ~before.isfinite() & same
    result = torch.where(found, before, torch.nan)
    for width in sorted({min(width, len(x)) for width in widths}, reverse=True):
        for shift in sorted(range(1 - width // 2, width - width // 2), key=abs):
            if bool(found.all()):
                return result, found
            start = left + 1 - width // 2 + shift
            start = start.clamp_max(len(x) - width).clamp_min(0)
            nodes = start[:, None] + torch.arange(width)
            usable = finite[..., nodes].all(-1) & ~found & ((start <= left) & (start + width > left + 1))
            weights = _lagrange(x[nodes], targets)
            total = torch.zeros_like(result)
            for i in range(width):  # one after the other: the same bits for any number of threads
                total += values[..., nodes[:, i]] * weights[:, i]
            result = torch.where(usable, total, result)
            found |= usable
    return result, found


def _lagrange(nodes: Tensor, targets: Tensor) -> Tensor:
    """Weights [t, w] of the polynomials through nodes [t, w], at targets [t]."""
    weights = torch.ones_like(nodes)
    for i in range(nodes.shape[1]):
        for j in range(nodes.shape[1]):
            if i != j:
                weights[:, i] *= (targets - nodes[:, j]) / (nodes[:, i] - nodes[:, j])
    return weights
