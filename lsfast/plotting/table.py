"""The figure of a precision table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lsfast.plotting.style import BLUE, COLUMN, GREY, Target, new_figure, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.studies.table import PrecisionTable


def precision(table: PrecisionTable, path: Target | None = None, title: str | None = None) -> Figure:
    """Plot each measure of a precision table over its schemes, one panel a measure; a line marks the first scheme."""
    with style():
        count = len(table.measures)
        figure = new_figure(max(COLUMN, 0.6 + 1.35 * count), 0.75 + 0.24 * len(table.schemes) + (0.2 if title else 0.0))
        panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        rows = np.arange(len(table.schemes))
        for column, (axes, measure) in enumerate(zip(panels, table.measures, strict=True)):
            values = table.values[:, column].cpu().numpy()
            finite = values[np.isfinite(values)]
            axes.axvline(values[0], color=GREY, linewidth=0.7, linestyle=(0, (3, 2)))
            axes.plot(values, rows, "o", color=BLUE, markersize=4.5, clip_on=False, zorder=3)
            for row in rows[~np.isfinite(values)]:
                axes.text(0.5, row, str(values[row]), transform=axes.get_yaxis_transform(), ha="center", va="center")
            if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 30:
                axes.set_xscale("log")
            elif len(finite):
                axes.ticklabel_format(axis="x", useOffset=False)
                axes.locator_params(axis="x", nbins=3)
                axes.margins(x=0.15)
            axes.set_xlabel(measure.replace("_", " "))
            axes.grid(axis="y", color="0.9", linewidth=0.6)
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(rows, table.schemes)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return written(figure, path)
