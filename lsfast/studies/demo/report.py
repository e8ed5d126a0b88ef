"""The demo's report: one HTML file with its pictures inside, readable offline, on light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lsfast.studies.demo.analysis import FIGURES, Analysis, figure_path
from lsfast.studies.demo.captions import caption, model_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #5a6472; --paper: #fff; --line: #d9dee5; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --faint: #9aa5b4; --paper: #14171b; --line: #333a44; --card: #1c2127; }
}
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { margin: 2.6rem 0 .4rem; font-size: 1.3rem; }
p { max-width: 46rem; } .faint { color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .35rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } thead th { font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.1rem; }
figure { margin: 0; padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure.full { grid-column: 1 / -1; } figure.full img { max-width: 52rem; }
img { display: block; width: 100%; margin: 0 auto; background: #fff; border-radius: .3rem; }
figcaption { font-size: .87rem; margin-top: .7rem; } code { font-size: .88em; }
"""


def html_report(analyses: Sequence[Analysis], facts: dict[str, Any], folder: Path) -> str:
    """Return the page; the figures are read from `folder`."""
    environment, settings = facts["environment"], facts["settings"]
    schemes = analyses[0].table.schemes
    names = ", ".join(analysis.name for analysis in analyses)
    sections = "\n".join(_section(analysis, settings, folder) for analysis in analyses)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>lsfast demo</title><style>{_STYLE}</style></head>
<body>
<h1>How curved, what shape, and what low precision does to both</h1>
<p>Models trained on handwritten digits ({escape(names)}), each analysed in eval mode. The loss is the cross-entropy of
the first {settings["images"]} of the {facts["train_images"]} training images; accuracies are of the
{facts["test_images"]} test images. The analyses are public functions of
lsfast, named beside each picture; the same seed gives the same numbers again.</p>
<p class="faint">lsfast {escape(environment["lsfast"])}, torch {escape(environment["torch"])},
{escape(environment["instruction set"])} kernels, {escape(facts["device"])}; seed {facts["seed"]};
{facts["seconds"]:.0f} s; {escape(facts["date"])}</p>
{_table(_overview(analyses))}
<p>Test accuracy with the weights in each format:</p>
{_table([["", *schemes], *([a.name, *(f"{a.table[s, 'test_accuracy']:.3f}" for s in schemes)] for a in analyses)])}
{sections}
<h2>How it was run</h2>
{_table([["", ""], *([name, str(value)] for name, value in environment.items())])}
<p class="faint">Settings: {escape(", ".join(f"{name} {_shown(value)}" for name, value in settings.items()))}.
All numbers are in <code>results.json</code>.</p>
</body></html>
"""


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
        _figure(figure_path(folder, analysis.name, figure), caption(analysis, figure, settings), figure == "precision")
        for figure in FIGURES
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
{_table(eigenvalues)}
{_table(precision)}
<p class="faint">Seconds: {escape(seconds)}.</p>"""


def _figure(path: Path, text: str, full: bool) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = ' class="full"' if full else ""
    alternative = escape(path.stem.replace("-", ", "))
    return (
        f'<figure{kind}><img alt="{alternative}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table>{header}<tbody>\n{lines}\n</tbody></table></div>'


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
