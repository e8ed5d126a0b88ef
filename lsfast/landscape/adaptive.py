"""Adaptive grids: a coarse grid, refined where interpolation from it disagrees with check points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lsfast.landscape.cells import Cells
from lsfast.landscape.interpolation import LINEAR, SMOOTH, nested_levels, refined

_FLOOR = 0.1  # of the range: the least height that disagreements are relative to
_ROUNDINGS = 16  # by how many units in the last place of the largest loss a loss may be off anyway


def adapt(
    evaluate: Callable[[Tensor], Tensor], coordinates: Sequence[Tensor], tolerance: float
) -> tuple[Tensor, Tensor, float]:
    """Find the values on a grid by evaluating as few as `tolerance` asks for.

    On each level the grid of that level is known, evaluated or interpolated, and predicts the points of the next one
    (each interval halved). Of each cell in question the centre is evaluated. Where it disagrees with the prediction,
    all points of the cell are; also of a neighbour, where a point on the face to it disagrees. Their parts are in
    question on the next level. Cells whose centres agree are done: their points are interpolated.

    Parameters
    ----------
    evaluate
        Of flat indices [g] into the grid, returns the values [g]; it is given each index once.
    coordinates
        Along each direction, increasing; their dtype is that of the arithmetic in `evaluate`.
    tolerance
        Of the height above the lowest value found, or of a tenth of the range where that is more: what a value and its
        prediction may differ by. NaN and Inf agree with themselves.

    Returns
    -------
    tuple
        The values on the whole grid; where they were evaluated; the largest disagreement of a centre that was accepted,
        in the units of `tolerance` (0 if all points were evaluated).
    """
    axes = [axis.double() for axis in coordinates]
    epsilon = torch.finfo(coordinates[0].dtype).eps
    levels = nested_levels([len(axis) for axis in axes])
    values = torch.full([len(axis) for axis in axes], torch.nan, dtype=torch.float64)
    evaluated = torch.zeros_like(values, dtype=torch.bool)
    accepted = torch.zeros_like(values)  # disagreements

    def ask(wanted: Tensor, points: tuple[Tensor, ...]) -> None:
        chosen = torch.zeros_like(evaluated)
        chosen[points] = wanted
        values[chosen] = evaluate(chosen.flatten().nonzero()[:, 0])
        evaluated[chosen] = True

    coarsest = torch.meshgrid(*levels[0], indexing="ij")
    ask(torch.ones_like(coarsest[0], dtype=torch.bool), coarsest)
    questioned = torch.ones(Cells(levels[0], levels[0]).shape, dtype=torch.bool)
    for level in range(len(levels) - 1):
        coarse, fine = levels[level], levels[level + 1]
        cells = Cells(coarse, fine)
        points = torch.meshgrid(*fine, indexing="ij")
        failed = torch.zeros_like(questioned)
        asked, before = torch.zeros_like(points[0], dtype=torch.bool), values[points]
        while True:
            filled, known = _filled(values, evaluated, axes, levels[: level + 1], SMOOTH)
            expected, sure = refined(filled, known, axes, coarse, fine, SMOOTH)
            allowed, found = _allowed(values, evaluated, tolerance, epsilon)[points], values[points]
            bad = evaluated[points] & ~_agree(expected, found, allowed)
            bad |= asked & ~_agree(before, found, allowed)  # points of the coarse grid: a prediction of before
            failed |= cells.touching(bad)
            asked = (cells.centres(questioned) | cells.closure(failed) | ~sure) & ~evaluated[points]
            if not bool(asked.any()):
                break
            before = expected
            ask(asked, points)
        passed = cells.centres(questioned & ~failed) & found.isfinite()
        accepted[points] = torch.where(passed, (expected - found).abs(), accepted[points])
        questioned = cells.children(failed)
    whole, _ = _filled(values, evaluated, axes, levels, SMOOTH)
    if bool(evaluated.all()):
        return whole, evaluated, 0.0
    relative = (accepted / _allowed(values, evaluated, tolerance, epsilon))[evaluated & values.isfinite()]
    return whole, evaluated, tolerance * max(relative.tolist(), default=0.0)


def completed(values: Tensor, evaluated: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """Return values with those that were not evaluated interpolated linearly, NaN beside NaN."""
    if bool(evaluated.all()):
        return values
    return _filled(
        values, evaluated, [axis.double() for axis in coordinates], nested_levels(list(values.shape)), LINEAR
    )[0]


def _filled(
    values: Tensor, evaluated: Tensor, axes: list[Tensor], levels: list[list[Tensor]], widths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return values on the grid of the last level, interpolated where they were not evaluated, and which are known."""
    points = torch.meshgrid(*levels[0], indexing="ij")
    filled, known = values[points], evaluated[points]
    for coarse, fine in zip(levels[:-1], levels[1:], strict=True):
        points = torch.meshgrid(*fine, indexing="ij")
        expected, sure = refined(filled, known, axes, coarse, fine, widths)
        if widths == SMOOTH:
            gaps = values[points] - expected
            expected = expected + Cells(coarse, fine).corrections(gaps, evaluated[points] & gaps.isfinite())
        filled, known = torch.where(evaluated[points], values[points], expected), evaluated[points] | sure
    return filled, known


def _allowed(values: Tensor, evaluated: Tensor, tolerance: float, epsilon: float) -> Tensor:
    """Return the largest disagreement accepted at each point: `tolerance` of the height, or what rounding may cause."""
    finite = values[evaluated & values.isfinite()]
    if len(finite) == 0:
        return torch.ones_like(values)
    low, high = float(finite.min()), float(finite.max())
    rounding = max(_ROUNDINGS * epsilon * max(abs(low), abs(high)), torch.finfo(torch.float64).tiny)
    return (tolerance * (values - low).clamp_min(_FLOOR * (high - low))).clamp_min(rounding)


def _agree(expected: Tensor, found: Tensor, allowed: Tensor) -> Tensor:
    same = (expected == found) | (expected.isnan() & found.isnan())
    return same | ((expected - found).abs() <= allowed)
