"""The figure of a loss grid as a surface in three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lsfast.plotting.grid_scale import COLOURS, apart, grid_arrays, is_logarithmic, levels_and_norm, points_text
from lsfast.plotting.style import COLUMN, GREY, Target, new_figure, short, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.landscape import LossGrid


def loss_surface(grid: LossGrid, path: Target | None = None, title: str | None = None) -> Figure:
    """Plot a loss grid of two directions as a surface in three dimensions, on a logarithmic axis where that helps.

    Points whose loss is NaN or infinite are left out and counted.

    Raises
    ------
    ValueError
        If the grid does not have two directions with two points or more along each, or has no finite value.
    """
    found = grid_arrays("plotting.loss_surface", grid, (2,), least=2)
    with style():
        figure = new_figure(COLUMN, 2.7)
        figure.set_layout_engine("none")  # which does not see the labels of three-dimensional axes
        axes: Any = figure.add_axes((-0.06, 0.02, 1.04, 0.98), projection="3d")
        levels, norm = levels_and_norm(found.masked)
        logarithmic = is_logarithmic(norm)
        heights = (np.ma.log10(found.masked) if logarithmic else found.masked).filled(np.nan)
        x, y = np.meshgrid(*found.coordinates, indexing="ij")
        axes.plot_surface(x, y, heights, cmap=COLOURS, rcount=60, ccount=60, linewidth=0.1, edgecolor=(1, 1, 1, 0.25))
        ticks = apart(levels, logarithmic)
        axes.set_zticks(np.log10(ticks) if logarithmic else ticks, [short(v) for v in ticks])
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=4)
        first, second = (label.split(" (")[0] for label in found.labels)  # there is no room for more
        axes.set_xlabel(first, labelpad=-4)
        axes.set_ylabel(second, labelpad=-4)
        axes.set_zlabel("loss", labelpad=-3)
        axes.tick_params(pad=-2)
        axes.view_init(elev=30, azim=-55)
        axes.set_box_aspect((1, 1, 0.75), zoom=0.9)
        if found.not_finite:
            text = points_text(found.not_finite, "not finite, left out")
            figure.text(0.02, 0.02, text, fontsize=7, color=GREY)
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)
