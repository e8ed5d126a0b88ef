"""The page of a grid study: its numbers, figures and a surface to turn, in one HTML file that needs no network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from lsfast.plotting.interactive import interactive_surface
from lsfast.studies.grid_table import CONTOURS, HEATMAP, PROFILE, SURFACE, GridReport
from lsfast.studies.html import figure, page, table

_KINDS = {
    "random": "Random Gaussian directions{normalized}.",
    "eigen": "Eigenvectors of the Hessian with the eigenvalues of largest magnitude, of length 1.",
    "trajectory": "Principal components of the checkpoints of a training run, seen from the last one: the origin.",
}
_CAPTIONS = {
    CONTOURS: "Contours at round values of the loss.",
    HEATMAP: "The same values, each a cell around its point.",
    SURFACE: "The same values as a surface.",
    PROFILE: "The loss along the direction, with a band of one standard error over the data.",
}


def grid_page(report: GridReport, folder: Path) -> str:
    """Return the page; the figures are read from `folder`."""
    environment = report.environment
    figures = "\n".join(figure(folder / name, _CAPTIONS[name]) for name in report.figures)
    checkpoints = report.checkpoints()
    run = f"<h2>Checkpoints</h2>\n<p>{_RUN}</p>\n{table(checkpoints)}" if checkpoints else ""
    settings = [[name, _shown(value)] for name, value in report.settings.items() if value not in (None, [])]
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    body = f"""<h1>{escape(report.title)}</h1>
<p>{_directions(report)}{_missing(report)}</p>
<p class="faint">lsfast {escape(environment["lsfast"])}, torch {escape(environment["torch"])},
{escape(environment["instruction set"])} kernels, {escape(str(report.settings.get("device")))}</p>
{table([["", "", "standard error", ""], *report.summary()])}
{_interactive(report)}
<div class="figures">
{figures}
</div>
{table(report.axes())}
{run}
<h2>How it was run</h2>
{table([["", ""], *settings])}
{table([["", ""], *([name, str(value)] for name, value in environment.items())])}
<p class="faint">Seconds: {escape(seconds)}. The values are in <code>grid.npz</code>, read by
<code>lsfast.LossGrid.load</code>; the numbers of this page in <code>grid.json</code>.</p>"""
    return page(report.title, body)


_RUN = (
    "Where each lies in the plane, its own loss, and the loss of its projection onto the plane. Where the two differ, "
    "the plane does not show what the run saw."
)


def _directions(report: GridReport) -> str:
    chosen = report.settings.get("normalize")
    normalized = {"filter": ", each filter scaled to the norm of its weights", "none": ", not scaled"}.get(
        str(chosen), f", scaled by {chosen}" if chosen else ""
    )
    return escape(_KINDS[report.kind].format(normalized=normalized))


def _missing(report: GridReport) -> str:
    """Say what is not shown, and why."""
    count, points = report.grid.nonfinite, report.grid.values.numel()
    text = ""
    if report.grid.evaluations < points:
        text += f" {report.grid.evaluations} of {points} points were evaluated (dots), the others interpolated."
    if count:
        text += f" The loss is NaN or infinite at {count} of {points} points: hatched in the figures, gaps in surfaces."
    if not report.figures:
        why = "there is no finite value" if count == points else f"there are {report.grid.values.dim()} directions"
        text += f" No figure is drawn: {why}."
    return text


def _interactive(report: GridReport) -> str:
    if SURFACE not in report.figures:
        return ""
    try:
        return interactive_surface(report.grid, report.run)
    except ImportError as error:
        return f'<p class="faint">{escape(str(error))}</p>'


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
