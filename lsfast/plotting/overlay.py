"""What is drawn over a loss grid: the path of a training run, or the three states a plane goes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lsfast.plotting.grid_scale import COLOURS, GridArrays

if TYPE_CHECKING:
    from torch import Tensor

_MOST_MARKERS = 60  # more would be one thick line


class States(Protocol):
    """A `Trajectory` (it has `values` and `variance` too) or a `Plane`: states with coordinates [c, directions]."""

    @property
    def coordinates(self) -> Tensor:
        """Where the states lie."""


@dataclass(frozen=True)
class Overlay:
    """Coordinates [c, directions] of states; of a training run also their losses [c] and shares of variance."""

    coordinates: Any
    values: Any
    variance: Any


def overlay_arrays(function: str, trajectory: States, directions: int) -> Overlay:
    """Return the arrays of a trajectory, or of a plane through three states, that lies in so many directions."""
    if not hasattr(trajectory, "coordinates"):
        raise TypeError(
            f"{function}: trajectory must be what trajectory_directions or plane_through returned, got "
            f"{type(trajectory).__name__}"
        )
    arrays = {
        name: getattr(trajectory, name).detach().cpu().double().numpy()
        for name in ("coordinates", "values", "variance")
        if hasattr(trajectory, name)
    }
    found = arrays["coordinates"].shape[1]
    if found != directions:
        raise ValueError(f"{function}: trajectory must have the {directions} directions of the grid, got {found}")
    return Overlay(arrays["coordinates"], arrays.get("values"), arrays.get("variance"))


def axis_labels(found: GridArrays, overlay: Overlay | None) -> tuple[str, ...]:
    """Return the labels of the axes: of the directions, or which share of a run's variance they hold."""
    if overlay is None or overlay.variance is None:
        return found.labels
    return tuple(
        f"component {k} ({100 * share:.3g} % of variance)" for k, share in enumerate(overlay.variance.tolist())
    )


def draw_path(axes: Any, overlay: Overlay, norm: Any) -> None:
    """Draw checkpoints as a path, each in the colour of its own loss, the first and the last marked."""
    from matplotlib.patheffects import withStroke

    x, y = overlay.coordinates.T
    count = len(x)
    axes.plot(x, y, color="black", linewidth=2.0, alpha=0.55, solid_joinstyle="round")
    axes.plot(x, y, color="white", linewidth=1.0, solid_joinstyle="round")
    shown = np.unique(np.linspace(0, count - 1, min(count, _MOST_MARKERS)).round().astype(int))[1:-1]
    label = f"{count} checkpoints, in the colour of their loss{_outside(axes, x, y)}"
    axes.plot(
        [], [], "o-", color="0.6", markerfacecolor="0.6", markeredgecolor="black", markeredgewidth=0.5, markersize=3.6,
        linewidth=1.0, label=label,
    )  # fmt: skip
    ends = [(shown, "o", 12.0, None), ([0], "s", 34.0, "start"), ([count - 1], "D", 34.0, "end")]
    for index, marker, size, name in ends:
        axes.scatter(
            x[index], y[index], c=overlay.values[index], s=size, marker=marker, norm=norm, cmap=COLOURS,
            edgecolors="black", linewidths=0.5 if name is None else 0.8, zorder=3, label=name, plotnonfinite=True,
            path_effects=None if name is None else [withStroke(linewidth=2.4, foreground="white")],
        )  # fmt: skip


def draw_states(axes: Any, overlay: Overlay, norm: Any) -> None:
    """Mark the states a, b and c that a plane goes through."""
    from matplotlib.patheffects import withStroke

    x, y = overlay.coordinates.T
    axes.plot(
        x, y, "o", color="white", markersize=4.5, markeredgecolor="black", markeredgewidth=0.8, linestyle="none",
        label=f"a, b and c{_outside(axes, x, y)}",
    )  # fmt: skip
    for name, *place in zip("abc", x, y, strict=True):
        axes.annotate(
            name, place, xytext=(4, 3), textcoords="offset points", color="white", fontsize=8, fontweight="bold",
            path_effects=[withStroke(linewidth=1.6, foreground="black")],
        )  # fmt: skip


def _outside(axes: Any, x: Any, y: Any) -> str:
    """Say how many points lie outside the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    count = int(((x < left) | (x > right) | (y < bottom) | (y > top)).sum())
    return f" ({count} outside)" if count else ""
