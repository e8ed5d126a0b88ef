"""Figures of a loss grid in a plane, from above: contours, a heat map, the path of a training run over either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lsfast import checks
from lsfast.plotting.grid_scale import (
    COLOURS,
    GridArrays,
    apart,
    edges,
    fine_levels,
    grid_arrays,
    hatch_background,
    is_logarithmic,
    levels_and_norm,
    not_finite_patch,
)
from lsfast.plotting.overlay import States, axis_labels, draw_path, draw_states, overlay_arrays
from lsfast.plotting.profile import loss_profile
from lsfast.plotting.style import COLUMN, ORANGE, Target, new_figure, short, style, written
from lsfast.plotting.surface import loss_surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.landscape import LossGrid

KINDS = ("contour", "heatmap", "surface", "profile")
_SIDE = 2.2  # inches of the longer side of the axes
_RATIO = 2.0  # the largest one of the sides at which units are equal along both


def figure_of(
    grid: LossGrid, path: Target | None = None, kind: str | None = None, trajectory: States | None = None
) -> Figure:
    """Draw a loss grid; what `LossGrid.plot` calls.

    Parameters
    ----------
    grid
        Of one or two directions.
    path
        Where to write the figure; its ending chooses the format. None: nowhere.
    kind
        ``"contour"``, ``"heatmap"`` or ``"surface"`` of two directions, ``"profile"`` of one; None: the first that
        fits.
    trajectory
        A `Trajectory` or `Plane` whose directions the grid is over: drawn on top, see `loss_grid`.

    Raises
    ------
    ValueError
        If the grid has more than two directions, other ones than the kind or the trajectory, or no finite value.

    Examples
    --------
    >>> run = lsfast.trajectory_directions(objective, checkpoints)
    >>> grid = lsfast.loss_grid(objective, run, extent=((-1, 9), (-1, 2)))
    >>> grid.plot("run.png", kind="heatmap", trajectory=run)
    """
    if kind is None:
        kind = "profile" if len(grid.coordinates) == 1 else "contour"
    checks.one_of("LossGrid.plot", "kind", kind, KINDS)
    if kind == "surface":
        if trajectory is not None:
            raise ValueError("LossGrid.plot: trajectory must be drawn as a contour, heatmap or profile, got a surface")
        return loss_surface(grid, path)
    if kind == "profile":
        return loss_profile(grid, path, trajectory=trajectory)
    return _seen_from_above("LossGrid.plot", grid, path, None, trajectory, contours=kind == "contour")


def loss_grid(
    grid: LossGrid,
    path: Target | None = None,
    title: str | None = None,
    trajectory: States | None = None,
) -> Figure:
    """Plot a loss grid: labelled contours for two directions, for one what `loss_profile` draws.

    Contour levels are round numbers, logarithmically spaced where the loss spans more than a factor of five. The origin
    and the smallest value are marked. Points whose loss is NaN or infinite are left hatched and counted. Points of an
    adaptive grid that were evaluated, not interpolated, are dots.

    Parameters
    ----------
    grid
        Of one or two directions.
    path
        Where to write the figure; None: nowhere.
    title
        Above the axes.
    trajectory
        What `lsfast.trajectory_directions` or `lsfast.plane_through` returned, if the grid is over its plane. The
        checkpoints are a path with their start and end marked, each in the colour of its own loss: where it differs
        from the colour around it, the checkpoint lies off the plane. The axes name their shares of the variance. The
        three states of a plane are marked a, b and c.

    Raises
    ------
    ValueError
        If the grid has more than two directions, fewer than two points along one of two, no finite value, or other
        directions than the trajectory.
    """
    if len(grid.coordinates) == 1:
        return loss_profile(grid, path, title, trajectory=trajectory)
    return _seen_from_above("plotting.loss_grid", grid, path, title, trajectory, contours=True)


def loss_heatmap(
    grid: LossGrid,
    path: Target | None = None,
    title: str | None = None,
    trajectory: States | None = None,
) -> Figure:
    """Plot a loss grid of two directions as cells of colour, each around its point.

    The colours are logarithmic where the loss spans more than a factor of five. Points whose loss is NaN or infinite
    are hatched and counted.

    Parameters
    ----------
    grid, path, title, trajectory
        As of `loss_grid`.

    Raises
    ------
    ValueError
        If the grid does not have two directions, those of the trajectory, or has no finite value.
    """
    return _seen_from_above("plotting.loss_heatmap", grid, path, title, trajectory, contours=False)


def _seen_from_above(
    function: str,
    grid: LossGrid,
    path: Target | None,
    title: str | None,
    trajectory: States | None,
    contours: bool,
) -> Figure:
    found = grid_arrays(
        function, grid, (1, 2) if function == "plotting.loss_grid" else (2,), least=2 if contours else 1
    )
    overlay = None if trajectory is None else overlay_arrays(function, trajectory, 2)
    with style():
        from matplotlib.ticker import FuncFormatter

        x, y = found.coordinates if contours else map(edges, found.coordinates)
        wide, high = x[-1] - x[0], y[-1] - y[0]
        equal = bool(wide <= _RATIO * high and high <= _RATIO * wide)
        side = _SIDE * min(1.0, high / wide if equal else 0.8)
        figure = new_figure(COLUMN, side + 0.55 + (0.2 if title else 0.0))
        axes = figure.add_subplot()
        hatch_background(axes)
        levels, norm = levels_and_norm(found.masked)
        if contours:
            filled: Any = axes.contourf(x, y, found.masked.T, levels=fine_levels(norm), norm=norm, cmap=COLOURS)
            lines = axes.contour(x, y, found.masked.T, levels=levels, norm=norm, colors="white", linewidths=0.6)
        else:
            filled = axes.pcolormesh(x, y, found.masked.T, norm=norm, cmap=COLOURS, rasterized=True)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        _mark_points(axes, found, origin=overlay is None)
        if overlay is not None:
            (draw_states if overlay.values is None else draw_path)(axes, overlay, norm)
        if equal:
            axes.set_aspect("equal")
        horizontal, vertical = axis_labels(found, overlay)
        axes.set_xlabel(horizontal)
        axes.set_ylabel(vertical.replace(" (", "\n("))
        ticks = apart(levels, is_logarithmic(norm), most=int(6 * side))
        beside = axes.inset_axes((1.03, 0.0, 0.05, 1.0))  # as high as the axes are, whatever their aspect
        bar = figure.colorbar(filled, cax=beside, ticks=ticks, format=FuncFormatter(lambda v, _: short(v)))
        bar.set_label("loss")
        bar.ax.minorticks_off()
        _add_legend(figure, axes, found)
        if title:
            axes.set_title(title, loc="left")
        if contours:
            figure.draw_without_rendering()  # lays out: where labels overlap depends on the size of the axes
            _label_contours(lines)
        return written(figure, path)


def _label_contours(lines: Any) -> None:
    """Label contours with their levels, where the labels do not overlap: from the outside in."""
    texts = lines.clabel(lines.levels, fmt=short, fontsize=6, inline=False)
    boxes: list[Any] = []
    kept = set()
    for level in lines.levels[::-1]:
        own = [text.get_window_extent() for text in texts if text.get_text() == short(level)]
        if own and not any(box.overlaps(other) for box in own for other in boxes):
            kept.add(level)
            boxes += own
    for text in texts:
        text.remove()
    lines.clabel(sorted(kept), fmt=short, fontsize=6, colors="white")


def _mark_points(axes: Any, found: GridArrays, origin: bool) -> None:
    """Mark the origin, if it lies within, the smallest value and, if others were interpolated, evaluated points."""
    x, y = found.coordinates
    if origin and x[0] <= 0 <= x[-1] and y[0] <= 0 <= y[-1]:
        axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=2.6)
        axes.plot(0, 0, "+", color=ORANGE, markersize=8, markeredgewidth=1.4, label="origin", linestyle="none")
    i, j = found.lowest
    axes.plot(
        x[i], y[j], "o", markersize=5, markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=1.2,
        label=f"minimum {short(found.values[i, j])}", linestyle="none", clip_on=False, zorder=5,
    )  # fmt: skip
    if found.evaluated is not None and not found.evaluated.all():
        rows, columns = np.nonzero(found.evaluated)
        label = f"{len(rows)} of {found.values.size} points evaluated"
        size = float(np.clip(54 / max(found.values.shape), 0.8, 2.2))  # a third of the distance of points
        axes.plot(x[rows], y[columns], ".", color="white", markersize=size, markeredgewidth=0, label=label)


def _add_legend(figure: Figure, axes: Any, found: GridArrays) -> None:
    """Add the legend below the axes, two entries to a row, and the height it takes."""
    handles, _ = axes.get_legend_handles_labels()
    if found.not_finite:
        handles.append(not_finite_patch(found.not_finite))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, handlelength=1.2, columnspacing=1.2
    )
    for handle in legend.legend_handles:
        if handle is not None and str(handle.get_label()).endswith("evaluated"):  # white dots, on white paper
            handle.set(color="0.6", markersize=4)
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(handles) // 2))
