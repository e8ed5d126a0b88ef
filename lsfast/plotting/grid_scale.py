"""What the figures of a loss grid share: its arrays in the order of the axes, round levels, the scale of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lsfast.plotting.style import GREY

if TYPE_CHECKING:
    from lsfast.landscape import LossGrid

COLOURS = "cividis"
_NOT_FINITE: dict[str, Any] = {"facecolor": "0.88", "hatch": "////", "edgecolor": "0.55"}


@dataclass(frozen=True)
class GridArrays:
    """A loss grid as float64 arrays, its coordinates increasing; those it does not have are None."""

    values: Any
    coordinates: tuple[Any, ...]
    labels: tuple[str, ...]
    stderr: Any
    evaluated: Any
    metrics: dict[str, Any]

    @property
    def masked(self) -> Any:
        """The values without those that are not finite."""
        return np.ma.masked_invalid(self.values)

    @property
    def not_finite(self) -> int:
        """How many values are not finite."""
        return int((~np.isfinite(self.values)).sum())

    @property
    def lowest(self) -> tuple[int, ...]:
        """Where the smallest finite value is."""
        finite = np.where(np.isfinite(self.values), self.values, np.inf)
        return tuple(int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape))


def grid_arrays(function: str, grid: LossGrid, directions: tuple[int, ...], least: int = 1) -> GridArrays:
    """Return the arrays of a grid with as many directions as allowed and at least so many points along each."""
    count = len(grid.coordinates)
    if count not in directions:
        words = " or ".join(("one", "two")[each - 1] for each in directions)
        allowed = f"{words} direction{'' if directions == (1,) else 's'}"
        raise ValueError(f"{function}: grid must have {allowed}, got {count}")
    order = [np.argsort(axis.cpu().double().numpy(), kind="stable") for axis in grid.coordinates]
    if min(map(len, order)) < least:
        shape = " x ".join(str(len(axis)) for axis in order)
        raise ValueError(f"{function}: grid must have {least} points or more along each direction, got {shape}")

    def sorted_like(x: Any, dtype: Any = np.float64) -> Any:
        return None if x is None else x.cpu().numpy().astype(dtype)[np.ix_(*order)]

    values = sorted_like(grid.values)
    if not np.isfinite(values).any():
        raise ValueError(f"{function}: grid must have a finite value, got none")
    coordinates = tuple(axis.cpu().double().numpy()[index] for axis, index in zip(grid.coordinates, order, strict=True))
    labels = tuple(grid.labels) or tuple(f"direction {k}" for k in range(count))
    metrics = {name: sorted_like(metric) for name, metric in grid.metrics.items()}
    evaluated = sorted_like(grid.evaluated, bool)
    return GridArrays(values, coordinates, labels, sorted_like(grid.stderr), evaluated, metrics)


def levels_and_norm(values: Any) -> tuple[Any, Any]:
    """Return round contour levels (about 6 to 12) and the colour scale: logarithmic where the loss spans a factor 5."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 5:
        decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            levels = np.array([step * 10.0**decade for decade in decades for step in steps])
            levels = levels[(levels > low) & (levels < high)]
            if len(levels) <= 12:
                break
        return levels[:: -(-len(levels) // 12)], LogNorm(low, high)
    spread = (high - low) or abs(high) or 1.0
    levels = np.asarray(MaxNLocator(9).tick_values(low, low + spread))
    inside = levels[(levels > low) & (levels < low + spread)]
    return inside, Normalize(low, low + spread)


def fine_levels(norm: Any) -> Any:
    """Return levels fine enough to look continuous, within the colour scale."""
    low, high = float(norm.vmin), float(norm.vmax)
    if is_logarithmic(norm):
        return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), 80)
    slack = 1e-9 * (high - low)
    return np.linspace(low - slack, high + slack, 80)


def is_logarithmic(norm: Any) -> bool:
    """Whether a colour scale is logarithmic."""
    from matplotlib.colors import LogNorm

    return isinstance(norm, LogNorm)


def apart(levels: Any, logarithmic: bool, most: int = 7) -> Any:
    """Return those of the levels whose labels do not touch: each 1/`most` of the span above the one before."""
    places = np.log10(levels) if logarithmic else levels
    kept = [0]
    for index in range(1, len(levels)):
        if places[index] - places[kept[-1]] >= (places[-1] - places[0]) / most:
            kept.append(index)
    return levels[kept] if len(levels) else levels


def edges(centres: Any) -> Any:
    """Return the edges of cells around points: half-way between them, the outer cells symmetric about theirs."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def points_text(count: int, what: str) -> str:
    """Return "1 point not finite", "3 points not finite"."""
    return f"{count} point{'' if count == 1 else 's'} {what}"


def not_finite_patch(count: int) -> Any:
    """Return the entry of a legend for points that are not finite."""
    from matplotlib.patches import Patch

    return Patch(**_NOT_FINITE, linewidth=0, label=points_text(count, "not finite"))


def hatch_background(axes: Any) -> None:
    """Hatch what nothing is drawn over."""
    axes.patch.set(**_NOT_FINITE)


def hatch_span(axes: Any, low: float, high: float) -> None:
    """Hatch an interval of the horizontal axis."""
    axes.axvspan(low, high, **_NOT_FINITE, linewidth=0)


def vertical_line(axes: Any, x: float, label: str) -> None:
    """Mark a coordinate."""
    axes.axvline(x, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), label=label)
