"""The figure of a quantized checkpoint: the error of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lsfast.plotting.style import BLUE, COLUMN, ORANGE, Target, new_figure, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.studies.checkpoint_table import CheckpointTable

_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#000000")  # Okabe and Ito's
_MARKERS = "osD^vX"
_MOST_LABELS = 48


def checkpoint(table: CheckpointTable, path: Target | None = None, title: str | None = None) -> Figure:
    """Plot the signal-to-quantization-noise ratio of every tensor, the first on top, one mark for each scheme.

    A dashed line is what a scheme did to all of them together. What has no finite ratio is written at the right edge.
    """
    with style():
        names = table.names
        shown = min(len(names), _MOST_LABELS)
        legend_rows = -(-len(table.schemes) // 3)
        figure = new_figure(1.6 * COLUMN, 0.8 + 0.16 * max(shown, 4) + 0.17 * legend_rows + (0.2 if title else 0.0))
        axes = figure.add_subplot()
        positions = np.arange(len(names))
        for index, scheme in enumerate(table.schemes):
            values = np.array([row.sqnr for row in table.rows if row.scheme == scheme])
            colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
            finite = np.isfinite(values)
            axes.plot(
                values[finite], positions[finite], marker, color=colour, markersize=4 if len(names) <= 60 else 2.5,
                label=scheme, zorder=3,
            )  # fmt: skip
            for row in positions[~finite]:
                axes.text(
                    1.01, row, str(values[row]), transform=axes.get_yaxis_transform(), color=colour, fontsize=6,
                    va="center",
                )  # fmt: skip
            total = table.total(scheme).sqnr
            if np.isfinite(total):
                axes.axvline(total, color=colour, linewidth=0.7, linestyle=(0, (3, 2)), alpha=0.8)
        every = -(-len(names) // _MOST_LABELS)
        axes.set_yticks(positions[::every], [_short(name) for name in names[::every]])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, labelsize=6)
        axes.grid(axis="y", color="0.92", linewidth=0.5)
        axes.margins(x=0.08)
        axes.set_xlabel("signal to quantization noise (dB); to the left is worse")
        figure.legend(loc="outside lower center", ncols=min(3, len(table.schemes)), frameon=False, handlelength=1.2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        return written(figure, path)


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
