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


def with_tables(readme: str) -> str:
    """Return the README with every table made anew from its file."""

    def replaced(match: re.Match[str]) -> str:
        results = json.loads((ROOT / match[1]).read_text())
        return f"<!-- {match[1]} -->\n{table(results)}\n<!-- end -->"

    return re.sub(r"<!-- (bench/results/\S+\.json) -->\n.*?<!-- end -->", replaced, readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text()))
