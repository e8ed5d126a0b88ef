"""The figure of a loss along one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lsfast import checks
from lsfast.plotting.grid_scale import (
    GridArrays,
    edges,
    grid_arrays,
    hatch_span,
    not_finite_patch,
    vertical_line,
)
from lsfast.plotting.overlay import Overlay, States, axis_labels, overlay_arrays
from lsfast.plotting.style import BLUE, COLUMN, GREY, ORANGE, Target, new_figure, short, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.landscape import LossGrid

_GREEN = "#009E73"


def loss_profile(
    grid: LossGrid,
    path: Target | None = None,
    title: str | None = None,
    metric: str | None = None,
    trajectory: States | None = None,
) -> Figure:
    """Plot a loss grid of one direction, with a band of one standard error over the data.

    Coordinates that run from 0 to 1 are those of a line between two states (`lsfast.interpolate`, `lsfast.barrier`):
    both are marked, and joined by the dashed line from which a barrier is measured. Else the origin and the smallest
    value are marked. The axis is logarithmic where the loss spans more than a factor of 30. Points whose loss is NaN or
    infinite are hatched and counted.

    Parameters
    ----------
    grid
        Of one direction.
    path
        Where to write the figure; None: nowhere.
    title
        Above the axes.
    metric
        Name of one of the grid's metrics, drawn on an axis of its own.
    trajectory
        Of the grid's direction: checkpoints are marked at their own losses.

    Raises
    ------
    ValueError
        If the grid has another number of directions, no finite value, no such metric, or another direction than the
        trajectory.
    """
    found = grid_arrays("plotting.loss_profile", grid, (1,))
    if metric is not None:
        checks.one_of("plotting.loss_profile", "metric", metric, tuple(found.metrics))
    overlay = None if trajectory is None else overlay_arrays("plotting.loss_profile", trajectory, 1)
    with style():
        figure = new_figure(COLUMN, 2.35 + (0.2 if title else 0.0))
        axes = figure.add_subplot()
        _draw_loss(axes, found)
        finite = found.values[np.isfinite(found.values)]
        if finite.min() > 0 and finite.max() / finite.min() > 30:
            axes.set_yscale("log")
        if overlay is not None:
            _draw_checkpoints(axes, overlay)
        axes.set_xlim(*edges_of_axis(found.coordinates[0]))
        axes.set_xlabel(axis_labels(found, overlay)[0])
        axes.set_ylabel("loss")
        handles, _ = axes.get_legend_handles_labels()
        if metric is not None:
            handles += _draw_metric(axes, found, metric)
        if found.not_finite:
            handles.append(not_finite_patch(found.not_finite))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False, handlelength=1.4, columnspacing=1.2
        )
        figure.set_figheight(figure.get_figheight() + 0.16 * (-(-len(handles) // 2) - 1))
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)


def edges_of_axis(x: Any) -> tuple[float, float]:
    """Return limits that leave a margin of one in fifty on both sides."""
    margin = 0.02 * (x[-1] - x[0]) or 0.5
    return float(x[0] - margin), float(x[-1] + margin)


def _draw_loss(axes: Any, found: GridArrays) -> None:
    """Draw the loss with its band, the points that are not finite, and what is marked."""
    (x,), values = found.coordinates, found.values
    finite = np.isfinite(values)
    shown = np.where(finite, values, np.nan)
    alone = finite & ~np.convolve(finite, [1, 0, 1])[1:-1].astype(bool)  # no line reaches a point without neighbours
    axes.plot(x, shown, color=BLUE, label="loss", zorder=3)
    axes.plot(x[alone], shown[alone], ".", color=BLUE, markersize=3, zorder=3)
    if found.stderr is not None and np.isfinite(found.stderr[finite]).any():
        band = np.nan_to_num(found.stderr)
        lower = shown - band
        if values[finite].min() > 0:  # a logarithmic axis has no place below zero
            lower = np.maximum(lower, 0.1 * values[finite].min())
        axes.fill_between(x, lower, shown + band, color=BLUE, alpha=0.25, linewidth=0, label="±1 standard error")
    cells = edges(x)
    for index in np.flatnonzero(~finite):
        hatch_span(axes, cells[index], cells[index + 1])
    if len(x) > 2 and x[0] == 0.0 and x[-1] == 1.0:
        barrier = np.nanmax(shown - ((1 - x) * shown[0] + x * shown[-1])) if finite[[0, -1]].all() else np.nan
        label = f"straight line, barrier {short(barrier)}"
        axes.plot(x[[0, -1]], shown[[0, -1]], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label=label)
        axes.plot(
            x[[0, -1]], shown[[0, -1]], "o", color=ORANGE, markersize=4.5, zorder=4, clip_on=False,
            label=f"ends {short(values[0])}, {short(values[-1])}",
        )  # fmt: skip
        return
    (lowest,) = found.lowest
    axes.plot(
        x[lowest], values[lowest], "o", color=ORANGE, markersize=4, zorder=4, linestyle="none",
        label=f"minimum {short(values[lowest])}",
    )  # fmt: skip
    if x[0] <= 0 <= x[-1]:
        vertical_line(axes, 0.0, "origin")
    if found.evaluated is not None and not found.evaluated.all():
        at = found.evaluated & finite
        label = f"{int(found.evaluated.sum())} of {len(x)} points evaluated"
        axes.plot(x[at], values[at], ".", color=BLUE, markersize=3.2, zorder=3, linestyle="none", label=label)


def _draw_checkpoints(axes: Any, overlay: Overlay) -> None:
    axes.plot(
        overlay.coordinates[:, 0], overlay.values, "s", color="black", markersize=2.6, zorder=4, linestyle="none",
        label=f"{len(overlay.values)} checkpoints",
    )  # fmt: skip


def _draw_metric(axes: Any, found: GridArrays, metric: str) -> list[Any]:
    """Draw a metric on an axis of its own at the right and return its entry in the legend."""
    right = axes.twinx()
    values = found.metrics[metric]
    (line,) = right.plot(
        found.coordinates[0], np.where(np.isfinite(values), values, np.nan), color=_GREEN, linestyle=(0, (5, 1.5)),
        label=metric,
    )  # fmt: skip
    right.spines["right"].set(visible=True, color=_GREEN)
    right.tick_params(axis="y", colors=_GREEN)
    right.set_ylabel(metric, color=_GREEN)
    return [line]
