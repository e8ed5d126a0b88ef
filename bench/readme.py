"""Writes the table of a results file into README.md, between the lines that name the file and the end."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def table(results: dict) -> str:
    """Return the rows of a results file as a Markdown table, with what they were measured on."""
    machine = results["machine"]
    lines = ["| operation | size | against | ratio |", "|---|---|---|---|"]
    for row in results["rows"]:
        lines.append(f"| {row['operation']} | {row['size']} | {row['reference']} | {row['ratio']:.2f} |")
    lines += ["", f"Measured with {machine['threads']} threads, {machine['cpu_capability']}, torch {machine['torch']}."]
    return "\n".join(lines)


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
        made = scheme_table(results["schemes"]) if "schemes" in results else table(results)
        return f"<!-- {match[1]} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (bench/results/\S+\.json) -->\n.*?<!-- end -->", replaced, readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text()))
