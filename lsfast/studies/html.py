"""Reports as one HTML file with its pictures inside, readable offline, on light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

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
.scene { background: #fff; border: 1px solid var(--line); border-radius: .5rem; margin: 1rem 0; }
"""


def page(title: str, body: str) -> str:
    """Return a whole page; `title` is text, `body` HTML."""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body>
{body}
</body></html>
"""


def figure(path: Path, text: str, full: bool = False) -> str:
    """Return a PNG, embedded, with its caption (HTML); `full`: as wide as the page."""
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = ' class="full"' if full else ""
    alternative = escape(path.stem.replace("-", ", "))
    return (
        f'<figure{kind}><img alt="{alternative}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text, the first row its head (none if that is empty)."""
    head, *body = rows
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table>{header}<tbody>\n{lines}\n</tbody></table></div>'
