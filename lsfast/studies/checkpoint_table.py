"""The table that quantizing a checkpoint returns."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsfast.results import read_json, write_json
from lsfast.studies.table import align

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TensorError:
    """What a scheme did to a tensor, or to several together.

    Attributes
    ----------
    name, shape, scheme
        Of the tensor, and the name of the scheme.
    count
        Number of elements.
    bits
        Bits per value, all scales included.
    saturated, flushed
        Numbers of elements beyond the largest of their scale, and that were not zero and became zero.
    squared_error, squared_sum
        Sums of :math:`(Q(w) - w)^2` and of :math:`w^2`.
    largest
        The largest finite magnitude.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    count: int
    bits: float
    saturated: float
    flushed: float
    squared_error: float
    squared_sum: float
    largest: float

    @property
    def sqnr(self) -> float:
        """Ratio of signal to quantization noise in dB; Inf without error, NaN where the tensor is all zeros."""
        if math.isnan(self.squared_error) or math.isnan(self.squared_sum) or self.squared_sum == 0.0:
            return math.nan
        if self.squared_error == 0.0 or math.isinf(self.squared_error):
            return math.inf if self.squared_error == 0.0 else -math.inf
        return 10.0 * (math.log10(self.squared_sum) - math.log10(self.squared_error))


@dataclass(frozen=True)
class LeftOut:
    """A tensor that was not quantized, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class CheckpointTable:
    """Errors by tensor and scheme.

    Attributes
    ----------
    file
        Name of the file, without its folder.
    schemes
        Names of the schemes.
    rows
        One for each tensor and scheme, tensors in natural order of their names.
    left_out
        Tensors that were not quantized.

    Examples
    --------
    >>> table["layers.0.weight", "nvfp4"].sqnr
    20.68
    """

    file: str
    schemes: tuple[str, ...]
    rows: tuple[TensorError, ...]
    left_out: tuple[LeftOut, ...]

    def __getitem__(self, key: tuple[str, str]) -> TensorError:
        """Return the row of a (tensor, scheme)."""
        for row in self.rows:
            if (row.name, row.scheme) == key:
                return row
        raise KeyError(f"CheckpointTable: index by [tensor, scheme] of the table, got {key!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the quantized tensors."""
        return tuple(dict.fromkeys(row.name for row in self.rows))

    def total(self, scheme: str) -> TensorError:
        """Return what a scheme did to all quantized tensors together."""
        rows = [row for row in self.rows if row.scheme == scheme]
        if not rows:
            raise KeyError(f"CheckpointTable: scheme must be one of {', '.join(self.schemes)}, got {scheme!r}")
        count = sum(row.count for row in rows)
        return TensorError(
            name="total",
            shape=(count,),
            scheme=scheme,
            count=count,
            bits=sum(row.bits * row.count for row in rows) / count,
            saturated=math.fsum(row.saturated for row in rows),
            flushed=math.fsum(row.flushed for row in rows),
            squared_error=math.fsum(row.squared_error for row in rows),
            squared_sum=math.fsum(row.squared_sum for row in rows),
            largest=max(row.largest for row in rows),
        )

    def to_text(self) -> str:
        """Return the table as aligned text: a line for each tensor and scheme, totals, and what was left out."""
        totals = [self.total(name) for name in self.schemes]
        header = ["tensor", "shape", "scheme", "SQNR dB", "saturated %", "flushed %", "bits/value"]
        shapes = ["x".join(map(str, row.shape)) for row in self.rows] + [str(row.count) for row in totals]
        table = [header, *(_cells(row, shape) for row, shape in zip((*self.rows, *totals), shapes, strict=True))]
        lines = align(table).splitlines()
        rule = "-" * max(map(len, lines))
        body = [lines[0], rule, *lines[1 : 1 + len(self.rows)], rule, *lines[1 + len(self.rows) :]]
        if self.left_out:
            count = sum(math.prod(each.shape) for each in self.left_out)
            body += ["", f"left out: {len(self.left_out)} tensors, {count} values"]
            cells = [[f"  {each.name}", "x".join(map(str, each.shape)), each.reason] for each in self.left_out]
            body += _left_aligned(cells)
        return "\n".join(body)

    def __str__(self) -> str:
        return self.to_text()

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plot the error of every tensor, see `lsfast.plotting.checkpoint`."""
        from lsfast import plotting

        return plotting.checkpoint(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, whole or not at all."""
        content = {
            "file": self.file,
            "schemes": self.schemes,
            "totals": [_with_sqnr(self.total(name)) for name in self.schemes],
            "rows": [_with_sqnr(row) for row in self.rows],
            "left_out": [dataclasses.asdict(each) for each in self.left_out],
        }
        write_json(path, "lsfast.CheckpointTable", content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CheckpointTable:
        """Read a table that `save` wrote.

        Raises
        ------
        ValueError
            If the file is torn or holds something else.
        """

        def read(content: Any) -> CheckpointTable:
            rows = [{name: value for name, value in row.items() if name != "sqnr"} for row in content["rows"]]
            return cls(
                file=content["file"],
                schemes=tuple(content["schemes"]),
                rows=tuple(TensorError(**{**row, "shape": tuple(row["shape"])}) for row in rows),
                left_out=tuple(LeftOut(**{**each, "shape": tuple(each["shape"])}) for each in content["left_out"]),
            )

        return read_json("CheckpointTable.load", path, "lsfast.CheckpointTable", "a table of a checkpoint", read)


def _cells(row: TensorError, shape: str) -> list[str]:
    percent = [f"{100.0 * part / row.count:.2f}" for part in (row.saturated, row.flushed)]
    return [row.name, shape, row.scheme, f"{row.sqnr:.2f}", *percent, f"{row.bits:.3f}"]


def _with_sqnr(row: TensorError) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "sqnr": row.sqnr}


def _left_aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
