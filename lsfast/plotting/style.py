"""What all figures share: size, colours, type, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsfast.results import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = str | os.PathLike[str]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6b6b6b"
COLUMN = 3.4  # inches: one column of a two-column page
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "savefig.dpi": 220,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "hatch.linewidth": 0.4,
}


@contextmanager
def style() -> Iterator[None]:
    """Set the type and line widths of figures, for the time of a ``with`` block."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def require_matplotlib() -> None:
    """Raise with the command that installs it, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('plots need matplotlib, which is not installed: pip install "lsfast[demo]"') from error


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width, height), layout="constrained")


def written(figure: Figure, path: Target | None) -> Figure:
    """Write the figure where a path is given, whole or not at all, and return it."""
    if path is not None:
        with written_whole(path) as file:
            figure.savefig(file, format=Path(path).suffix.removeprefix(".") or "png")
    return figure


def short(value: float) -> str:
    """Return a short decimal: 0.02, 1.5, 300, 1e-05."""
    return f"{value:.3g}"
