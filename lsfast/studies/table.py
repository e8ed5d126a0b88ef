"""The table a precision study returns."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsfast.results import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class PrecisionTable:
    """Measures by scheme.

    Attributes
    ----------
    schemes, measures
        Names of the rows and of the columns.
    values
        [schemes, measures] float64.

    Examples
    --------
    >>> table["nvfp4", "loss"]
    0.0231
    """

    schemes: tuple[str, ...]
    measures: tuple[str, ...]
    values: Tensor

    def __post_init__(self) -> None:
        expected = (len(self.schemes), len(self.measures))
        if self.values.shape != expected:
            raise ValueError(f"PrecisionTable: values must have shape {list(expected)}, got {list(self.values.shape)}")

    def __getitem__(self, key: tuple[str, str]) -> float:
        """Return the number of a (scheme, measure)."""
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"PrecisionTable: index by [scheme, measure], got {key!r}")
        for name, value, known in (("scheme", key[0], self.schemes), ("measure", key[1], self.measures)):
            if value not in known:
                raise KeyError(f"PrecisionTable: {name} must be one of {', '.join(known)}, got {value!r}")
        return float(self.values[self.schemes.index(key[0]), self.measures.index(key[1])])

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return scheme -> measure -> number."""
        rows = self.values.tolist()
        return {name: dict(zip(self.measures, row, strict=True)) for name, row in zip(self.schemes, rows, strict=True)}

    def to_text(self) -> str:
        """Return the table as aligned text."""
        cells = [["", *self.measures]]
        for name, row in self.to_dict().items():
            cells.append([name, *(f"{value:.4g}" for value in row.values())])
        return align(cells)

    def __str__(self) -> str:
        return self.to_text()

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plot one panel per measure, see `lsfast.plotting.precision`."""
        from lsfast import plotting

        return plotting.precision(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, whole or not at all."""
        content = {"schemes": self.schemes, "measures": self.measures, "values": self.values.tolist()}
        write_text(path, json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrecisionTable:
        """Read a table that `save` wrote.

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        try:
            content = json.loads(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"PrecisionTable.load: {path} must be JSON, got {error}") from error
        if not isinstance(content, Mapping) or not {"schemes", "measures", "values"} <= set(content):
            raise ValueError(f"PrecisionTable.load: {path} must hold schemes, measures and values")
        return cls(
            schemes=tuple(content["schemes"]),
            measures=tuple(content["measures"]),
            values=torch.tensor(content["values"], dtype=torch.float64),
        )


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of text, the first column aligned left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())
    return "\n".join(lines)
