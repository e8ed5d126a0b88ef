"""Figures of a loss grid: contours, a profile, a surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lsfast.plotting.style import BLUE, COLUMN, GREY, ORANGE, Target, new_figure, short, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.landscape import LossGrid


def loss_grid(grid: LossGrid, path: Target | None = None, title: str | None = None) -> Figure:
    """Plot a loss grid: labelled contours for two directions, a profile for one.

    Contour levels are round numbers, logarithmically spaced where the loss spans more than a factor of five. The origin
    and the smallest value are marked. Points whose loss is NaN or infinite are left hatched.

    Raises
    ------
    ValueError
        If the grid has more than two directions, or no finite value.
    """
    values, coordinates = _grid_arrays("plotting.loss_grid", grid)
    if values.ndim == 1:
        return _profile(values, coordinates[0], path, title)
    with style():
        from matplotlib.ticker import FuncFormatter

        figure = new_figure(COLUMN, 2.9)
        axes = figure.add_subplot()
        axes.patch.set(facecolor="0.88", hatch="////", edgecolor="0.55")
        masked = np.ma.masked_invalid(values.T)
        levels, norm = _levels(masked)
        x, y = coordinates
        fine = _between(norm)
        filled = axes.contourf(x, y, masked, levels=fine, norm=norm, cmap="cividis")
        lines = axes.contour(x, y, masked, levels=levels, norm=norm, colors="white", linewidths=0.6)
        axes.clabel(lines, levels[:: max(1, len(levels) // 8)], fmt=short, fontsize=6, colors="white")
        axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=2.6)
        axes.plot(0, 0, "+", color=ORANGE, markersize=8, markeredgewidth=1.4, label="origin", linestyle="none")
        i, j = np.unravel_index(np.nanargmin(np.where(np.isfinite(values), values, np.nan)), values.shape)
        axes.plot(
            x[i], y[j], "o", markersize=5, markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=1.2,
            label=f"minimum {short(values[i, j])}", linestyle="none",
        )  # fmt: skip
        axes.set_aspect("equal")
        axes.set_xlabel("along direction 1")
        axes.set_ylabel("along direction 2")
        bar = figure.colorbar(filled, ax=axes, ticks=levels, format=FuncFormatter(lambda v, _: short(v)), pad=0.02)
        bar.set_label("loss")
        bar.ax.minorticks_off()
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=1.2)
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)


def loss_surface(grid: LossGrid, path: Target | None = None, title: str | None = None) -> Figure:
    """Plot a loss grid of two directions as a surface in three dimensions, on a logarithmic axis where that helps.

    Points whose loss is NaN or infinite are left out.

    Raises
    ------
    ValueError
        If the grid does not have two directions, or has no finite value.
    """
    values, coordinates = _grid_arrays("plotting.loss_surface", grid)
    if values.ndim != 2:
        raise ValueError(f"plotting.loss_surface: grid must have two directions, got {values.ndim}")
    with style():
        from matplotlib.colors import LogNorm

        figure = new_figure(COLUMN, 2.7)
        figure.set_layout_engine("none")  # which does not see the labels of three-dimensional axes
        axes: Any = figure.add_axes((-0.06, 0.02, 1.04, 1.0), projection="3d")
        masked = np.ma.masked_invalid(values)
        levels, norm = _levels(masked)
        logarithmic = isinstance(norm, LogNorm)
        heights = (np.ma.log10(masked) if logarithmic else masked).filled(np.nan)
        x, y = np.meshgrid(*coordinates, indexing="ij")
        axes.plot_surface(x, y, heights, cmap="cividis", rcount=60, ccount=60, linewidth=0.1, edgecolor=(1, 1, 1, 0.25))
        ticks = _apart(levels, logarithmic)
        axes.set_zticks(np.log10(ticks) if logarithmic else ticks, [short(v) for v in ticks])
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("direction 1", labelpad=-4)
        axes.set_ylabel("direction 2", labelpad=-4)
        axes.set_zlabel("loss", labelpad=-3)
        axes.tick_params(pad=-2)
        axes.view_init(elev=30, azim=-55)
        axes.set_box_aspect((1, 1, 0.75), zoom=0.9)
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)


def _profile(values: Any, x: Any, path: Target | None, title: str | None) -> Figure:
    with style():
        figure = new_figure(COLUMN, 2.2)
        axes = figure.add_subplot()
        finite = np.isfinite(values)
        axes.plot(x, np.where(finite, values, np.nan), color=BLUE)
        lowest = int(np.nanargmin(np.where(finite, values, np.nan)))
        axes.plot(x[lowest], values[lowest], "o", color=ORANGE, markersize=4, label=f"minimum {short(values[lowest])}")
        axes.axvline(0, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), label="origin")
        for missing in x[~finite]:
            half = 0.5 * (x[-1] - x[0]) / max(len(x) - 1, 1)
            axes.axvspan(missing - half, missing + half, facecolor="0.88", edgecolor="0.55", hatch="////", linewidth=0)
        if values[finite].min() > 0 and values[finite].max() / values[finite].min() > 30:
            axes.set_yscale("log")
        axes.set_xlabel("along direction 1")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)


def _grid_arrays(function: str, grid: LossGrid) -> tuple[Any, list[Any]]:
    values = grid.values.cpu().double().numpy()
    if values.ndim > 2:
        raise ValueError(f"{function}: grid must have one or two directions, got {values.ndim}")
    if not np.isfinite(values).any():
        raise ValueError(f"{function}: grid must have a finite value, got none")
    return values, [axis.cpu().double().numpy() for axis in grid.coordinates]


def _levels(values: Any) -> tuple[Any, Any]:
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
        return levels, LogNorm(low, high)
    spread = (high - low) or abs(high) or 1.0
    levels = np.asarray(MaxNLocator(9).tick_values(low, low + spread))
    inside = levels[(levels > low) & (levels < low + spread)]
    return inside, Normalize(low, low + spread)


def _apart(levels: Any, logarithmic: bool) -> Any:
    """Return those of the levels whose labels do not touch: each a seventh of the span above the one before."""
    places = np.log10(levels) if logarithmic else levels
    kept = [0]
    for index in range(1, len(levels)):
        if places[index] - places[kept[-1]] >= (places[-1] - places[0]) / 7:
            kept.append(index)
    return levels[kept] if len(levels) else levels


def _between(norm: Any) -> Any:
    """Levels fine enough to look continuous, within the colour scale."""
    from matplotlib.colors import LogNorm

    low, high = float(norm.vmin), float(norm.vmax)
    if isinstance(norm, LogNorm):
        return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), 80)
    slack = 1e-9 * (high - low)
    return np.linspace(low - slack, high + slack, 80)
