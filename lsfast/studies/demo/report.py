"""The demo's report: one HTML file with its pictures inside, readable offline, on light and dark screens."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lsfast.studies.demo.analysis import FIGURES, Analysis, figure_path
from lsfast.studies.demo.captions import caption, model_text
from lsfast.studies.html import figure, page, table


def html_report(analyses: Sequence[Analysis], facts: dict[str, Any], folder: Path) -> str:
    """Return the page; the figures are read from `folder`."""
    environment, settings = facts["environment"], facts["settings"]
    schemes = analyses[0].table.schemes
    names = ", ".join(analysis.name for analysis in analyses)
    sections = "\n".join(_section(analysis, settings, folder) for analysis in analyses)
    body = f"""<h1>How curved, what shape, and what low precision does to both</h1>
<p>Models trained on handwritten digits ({escape(names)}), each analysed in eval mode. The loss is the cross-entropy of
the first {settings["images"]} of the {facts["train_images"]} training images; accuracies are of the
{facts["test_images"]} test images. The analyses are public functions of
lsfast, named beside each picture; the same seed gives the same numbers again.</p>
<p class="faint">lsfast {escape(environment["lsfast"])}, torch {escape(environment["torch"])},
{escape(environment["instruction set"])} kernels, {escape(facts["device"])}; seed {facts["seed"]};
{facts["seconds"]:.0f} s; {escape(facts["date"])}</p>
{table(_overview(analyses))}
<p>Test accuracy with the weights in each format:</p>
{table([["", *schemes], *([a.name, *(f"{a.table[s, 'test_accuracy']:.3f}" for s in schemes)] for a in analyses)])}
{sections}
<h2>How it was run</h2>
{table([["", ""], *([name, str(value)] for name, value in environment.items())])}
<p class="faint">Settings: {escape(", ".join(f"{name} {_shown(value)}" for name, value in settings.items()))}.
All numbers are in <code>results.json</code>.</p>"""
    return page("lsfast demo", body)


def _overview(analyses: Sequence[Analysis]) -> list[list[str]]:
    rows = [["", "parameters", "test accuracy", "loss", "largest eigenvalue", "smallest", "trace"]]
    for found in analyses:
        rows.append(
            [
                found.name,
                f"{found.parameters:,}",
                f"{found.test_accuracy:.3f}",
                f"{found.loss:.4f}",
                f"{float(found.eigenpairs.values.max()):.4g}",
                f"{found.density.criteria().smallest:.3g}",
                f"{found.trace.value:.4g} ± {found.trace.stderr:.2g}",
            ]
        )
    return rows


def _section(analysis: Analysis, settings: dict[str, Any], folder: Path) -> str:
    figures = "\n".join(
        figure(figure_path(folder, analysis.name, name), caption(analysis, name, settings), full=name == "precision")
        for name in FIGURES
    )
    eigenvalues = [["", *(f"{index + 1}" for index in range(len(analysis.eigenpairs.values)))]]
    eigenvalues.append(["eigenvalue", *(f"{value:.5g}" for value in analysis.eigenpairs.values.tolist())])
    eigenvalues.append(["residual |Hv - λv|", *(f"{value:.1e}" for value in analysis.eigenpairs.residuals.tolist())])
    precision = [["", *(measure.replace("_", " ") for measure in analysis.table.measures)]]
    precision += [[name, *(f"{value:.4g}" for value in row.values())] for name, row in analysis.table.to_dict().items()]
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in analysis.seconds.items())
    return f"""<h2 id="{escape(analysis.name)}">{escape(analysis.name)}</h2>
<p>{model_text(analysis)}</p>
<div class="figures">
{figures}
</div>
{table(eigenvalues)}
{table(precision)}
<p class="faint">Seconds: {escape(seconds)}.</p>"""


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
