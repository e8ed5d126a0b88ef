"""Writes the tables of results files into README.md, between the lines that name a file and the end.

``<!-- bench/results/cpu.json -->`` opens the table of the file's rows, ``<!-- bench/results/cpu.json curvature -->``
that of its curvature rows, a column for each model.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def table(results: dict) -> str:
    """Return the rows of a results file but those of curvature as a Markdown table, with what they were measured on."""
    lines = ["| operation | size | against | ratio |", "|---|---|---|---|"]
    for row in results["rows"]:
        if row.get("room") != "curvature":
            lines.append(f"| {row['operation']} | {row['size']} | {row['reference']} | {_cell(row)} |")
    return "\n".join([*lines, "", measured_on(results["machine"])])


def curvature_table(results: dict) -> str:
    """Return the curvature rows as a Markdown table: what is measured down, models across."""
    rows = [row for row in results["rows"] if row.get("room") == "curvature"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    measures = sorted({(row["operation"], row["reference"]) for row in rows}, key=lambda key: _first(rows, key))
    lines = [f"| operation | against | {' | '.join(sizes)} |", "|---|---|" + "---|" * len(sizes)]
    for operation, reference in measures:
        cells = {
            row["size"]: _cell(row) for row in rows if (row["operation"], row["reference"]) == (operation, reference)
        }
        lines.append(f"| {operation} | {reference} | {' | '.join(cells.get(size, '') for size in sizes)} |")
    return "\n".join([*lines, "", measured_on(results["machine"])])


def _first(rows: list[dict], key: tuple[str, str]) -> int:
    return next(index for index, row in enumerate(rows) if (row["operation"], row["reference"]) == key)


def _cell(row: dict) -> str:
    return row.get("shown") or row.get("failure") or f"{row['ratio']:.2f}"


def measured_on(machine: dict) -> str:
    """Return the line that says what the rows were measured on."""
    where = (
        f"{machine['threads']} threads, {machine['cpu_capability']}" if machine["cuda"] is None else machine["device"]
    )
    return f"Measured with {where}, torch {machine['torch']}."


def scheme_table(rows: list[dict]) -> str:
    """Return the measured schemes as a Markdown table."""
    lines = [
        "| scheme | element | block | scale | bits per value | element range | SQNR, dB | saturated | flushed to 0 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['scheme']}` | {row['element']} | {row['block']} | {row['scale']} | {row['bits']:g} | "
            f"{row['smallest']:.3g} .. {row['largest']:.5g} | {row['sqnr']:.2f} | {row['saturated']:.2%} | "
            f"{row['flushed']:.2%} |"
        )
    return "\n".join(lines)


def with_tables(readme: str) -> str:
    """Return the README with every table made anew from its file."""

    def replaced(match: re.Match[str]) -> str:
        results = json.loads((ROOT / match[1]).read_text())
        if "schemes" in results:
            made = scheme_table(results["schemes"])
        else:
            made = curvature_table(results) if match[2] else table(results)
        return f"<!-- {match[1]}{match[2]} -->\n{made}\n<!-- end -->"

    opening = r"<!-- (bench/results/\S+\.json)( curvature|) -->\n"
    return re.sub(opening + ".*?<!-- end -->", replaced, readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text()))
