"""A loss grid as a surface that is turned with the mouse: HTML with plotly's script inside, which needs no network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lsfast.plotting.grid_scale import apart, grid_arrays, is_logarithmic, levels_and_norm
from lsfast.plotting.overlay import Overlay, States, axis_labels, overlay_arrays
from lsfast.plotting.style import ORANGE, short

if TYPE_CHECKING:
    from lsfast.landscape import LossGrid

_HEIGHT = 560  # pixels
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1b1f24"}


def require_plotly() -> Any:
    """Return the module, or raise with the command that installs it."""
    try:
        import plotly.offline
    except ImportError as error:
        raise ImportError(
            'interactive surfaces need plotly, which is not installed: pip install "lsfast[interactive]"'
        ) from error
    return plotly


def interactive_surface(grid: LossGrid, trajectory: States | None = None) -> str:
    """Return HTML that shows a loss grid of two directions as a surface to be turned and read off with the mouse.

    plotly's script, about 5 MB, is part of it. Points whose loss is NaN or infinite are gaps.

    Parameters
    ----------
    grid
        Of two directions.
    trajectory
        As of `loss_grid`; checkpoints and states are at their own losses, where they have them.

    Raises
    ------
    ImportError
        Without plotly.
    ValueError
        As `loss_surface`.
    """
    content = surface_description(grid, trajectory)
    script: str = require_plotly().offline.get_plotlyjs()
    described = json.dumps(content, allow_nan=False).replace("<", "\\u003c")  # nothing in it ends the script
    return (
        f'<div id="surface" class="scene" style="height:{_HEIGHT}px"></div>\n<script>{script}</script>\n'
        f'<script>const surface = {described};\nPlotly.newPlot("surface", surface.data, surface.layout, '
        "{responsive: true, displaylogo: false});</script>"
    )


def surface_description(grid: LossGrid, trajectory: States | None = None) -> dict[str, Any]:
    """Return the traces and the layout of plotly's figure."""
    found = grid_arrays("plotting.interactive_surface", grid, (2,), least=2)
    overlay = None if trajectory is None else overlay_arrays("plotting.interactive_surface", trajectory, 2)
    levels, norm = levels_and_norm(found.masked)
    logarithmic = is_logarithmic(norm)
    shown = np.ma.log10(found.masked) if logarithmic else found.masked
    x, y = found.coordinates
    names = axis_labels(found, overlay)
    lowest = found.lowest
    data: list[dict[str, Any]] = [
        {
            "type": "surface",
            "x": x.tolist(),
            "y": y.tolist(),
            "z": found.masked.T.tolist(),  # masked ones become null
            "surfacecolor": shown.T.tolist(),
            "colorscale": "Cividis",
            "lighting": {"ambient": 0.85, "diffuse": 0.35, "specular": 0.05},
            "name": "loss",
            "colorbar": {
                "title": {"text": "loss"},
                "tickvals": (np.log10(levels) if logarithmic else levels).tolist(),
                "ticktext": [short(level) for level in levels],
                "thickness": 14,
                "len": 0.75,
            },
            "hovertemplate": f"{names[0]}: %{{x:.4g}}<br>{names[1]}: %{{y:.4g}}<br>loss: %{{z:.5g}}<extra></extra>",
        },
        _points(
            f"minimum {short(found.values[lowest])}",
            [[x[lowest[0]]], [y[lowest[1]]], [found.values[lowest]]],
            {"color": ORANGE, "symbol": "circle-open", "size": 7},
        ),
    ]
    if overlay is not None and overlay.values is not None:
        data.append(_path(overlay))
    axes = {"xaxis": {"title": {"text": names[0]}}, "yaxis": {"title": {"text": names[1]}}}
    ticks = apart(levels, logarithmic)
    vertical = {
        "title": {"text": "loss"},
        "type": "log" if logarithmic else "linear",
        "tickvals": ticks.tolist(),
        "ticktext": [short(tick) for tick in ticks],
    }
    scene = {**axes, "zaxis": vertical, "aspectmode": "manual", "aspectratio": {"x": 1, "y": 1, "z": 0.75}}
    layout = {
        "scene": scene | {"camera": {"eye": {"x": 1.25, "y": -1.7, "z": 1.0}}},
        "font": _FONT,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"x": 0.01, "y": 0.99},
        "showlegend": True,
        "height": _HEIGHT,
        "paper_bgcolor": "rgba(0,0,0,0)",
    }
    return {"data": data, "layout": layout}


def _points(name: str, places: Any, marker: dict[str, Any]) -> dict[str, Any]:
    x, y, z = ([float(v) if np.isfinite(v) else None for v in axis] for axis in places)
    return {"type": "scatter3d", "mode": "markers", "name": name, "x": x, "y": y, "z": z, "marker": marker}


def _path(overlay: Overlay) -> dict[str, Any]:
    """Return the trace of a training run, at the loss of each checkpoint."""
    x, y = overlay.coordinates.T
    points = _points(f"{len(x)} checkpoints", [x, y, overlay.values], {"color": "black", "size": 3})
    return points | {"mode": "lines+markers", "line": {"color": ORANGE, "width": 4}}
