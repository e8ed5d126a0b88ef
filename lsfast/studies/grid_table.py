"""What a grid study returns: numbers, text, figures and a page, and the folder they are kept in."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsfast.landscape import LossGrid, Trajectory
from lsfast.results import finite, read_json, write_json
from lsfast.studies.table import align

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS, GRID, PAGE = "grid.json", "grid.npz", "report.html"
CONTOURS, HEATMAP, SURFACE, PROFILE = "contours.png", "heatmap.png", "surface.png", "profile.png"
_FORMAT = "lsfast.GridReport"
_MOST_ROWS = 10  # of checkpoints, in text


@dataclass(frozen=True, eq=False)
class Run:
    """Where the c checkpoints of a training run lie in the plane of a grid: what of a `Trajectory` is kept.

    Attributes
    ----------
    variance, coordinates, values, projected
        As of `lsfast.Trajectory`.
    """

    variance: Tensor
    coordinates: Tensor
    values: Tensor
    projected: Tensor

    @classmethod
    def of(cls, trajectory: Trajectory) -> Run:
        """Return what is kept of a trajectory."""
        return cls(trajectory.variance, trajectory.coordinates, trajectory.values, trajectory.projected)


@dataclass(frozen=True, eq=False)
class GridReport:
    """The loss around the parameters of an objective.

    Attributes
    ----------
    kind, n
        ``"random"``, ``"eigen"`` or ``"trajectory"``: the kind of the directions; and the number of parameters.
    loss, loss_stderr
        At the origin of the grid, under its scheme, and the standard error of that mean over the data.
    grid
        Of the loss.
    run
        The checkpoints of a trajectory, else None.
    settings, seconds, environment
        What was asked for, the wall-clock time of each stage, and what it ran on.
    """

    kind: str
    n: int
    loss: float
    loss_stderr: float
    grid: LossGrid
    run: Run | None
    settings: dict[str, Any]
    seconds: dict[str, float]
    environment: dict[str, str]

    @property
    def title(self) -> str:
        """What was evaluated, in words."""
        shape = " x ".join(str(len(axis)) for axis in self.grid.coordinates)
        scheme = self.settings.get("scheme")
        return f"Loss grid, {shape} points, {self.n} parameters" + (f" in {scheme}" if scheme else "")

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures: none for more than two directions, or where no loss is finite."""
        shape = self.grid.values.shape
        if len(shape) > 2 or not self.grid.values.isfinite().any():
            return ()
        if len(shape) == 1:
            return (PROFILE,)
        return (CONTOURS, HEATMAP, SURFACE) if min(shape) > 1 else (HEATMAP,)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of what `plot`, `save_page` and `save` write into a folder."""
        return (PAGE, *self.figures, GRID, NUMBERS)

    def extreme(self, smallest: bool) -> dict[str, Any] | None:
        """Return the smallest or largest finite loss, its standard error and its coordinates; None: there is none."""
        values = self.grid.values
        if not values.isfinite().any():
            return None
        found = torch.where(values.isfinite(), values, math.inf if smallest else -math.inf)
        place = torch.unravel_index(found.argmin() if smallest else found.argmax(), values.shape)
        at = [float(axis[i]) for axis, i in zip(self.grid.coordinates, place, strict=True)]
        return {"value": float(values[place]), "stderr": float(self.grid.stderr[place]), "at": at}

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers but the grid's own, as JSON can hold them: NaN and Inf are None."""
        content = {
            "directions": self.kind,
            "n": self.n,
            "loss": {"value": self.loss, "stderr": self.loss_stderr},
            "minimum": self.extreme(smallest=True),
            "maximum": self.extreme(smallest=False),
            "shape": list(self.grid.values.shape),
            "points": self.grid.values.numel(),
            "evaluations": self.grid.evaluations,
            "nonfinite": self.grid.nonfinite,
            "error": self.grid.error,
            "axes": [
                {"label": label, "from": float(axis[0]), "to": float(axis[-1]), "points": len(axis)}
                for label, axis in zip(self.grid.labels, self.grid.coordinates, strict=True)
            ],
            "trajectory": None
            if self.run is None
            else {name: values.tolist() for name, values in asdict(self.run).items()},
            "settings": self.settings,
            "seconds": self.seconds,
            "environment": self.environment,
        }
        return dict(finite(content))

    def summary(self) -> list[list[str]]:
        """Return the main numbers as rows of name, value, standard error and place."""
        rows = [["loss at the origin", f"{self.loss:.6g}", _error(self.loss_stderr), ""]]
        for name, found in (("minimum", self.extreme(smallest=True)), ("maximum", self.extreme(smallest=False))):
            if found is not None:
                at = ", ".join(f"{x:.3g}" for x in found["at"])
                rows.append([name, f"{found['value']:.6g}", _error(found["stderr"]), f"at ({at})"])
        points, evaluations = self.grid.values.numel(), self.grid.evaluations
        rows.append(["points", str(points), "", ""])
        if self.settings.get("tolerance") is not None:
            rows.append(["evaluated", str(evaluations), "", ""])
            rows.append(["interpolation error", f"{self.grid.error:.2g}", "", "relative"])
        rows.append(["not finite", str(self.grid.nonfinite), "", ""])
        return rows

    def axes(self) -> list[list[str]]:
        """Return a row for each direction, under a head: its label, its ends and its number of points."""
        rows = [["directions", "from", "to", "points"]]
        for label, axis in zip(self.grid.labels, self.grid.coordinates, strict=True):
            rows.append([f"  {label}", f"{float(axis[0]):.4g}", f"{float(axis[-1]):.4g}", str(len(axis))])
        return rows

    def checkpoints(self, most: int | None = None) -> list[list[str]]:
        """Return a row for each checkpoint, under a head: its place, its loss and the loss of its projection."""
        if self.run is None:
            return []
        rows = [["checkpoints", *(f"along {k}" for k in range(self.run.coordinates.shape[1])), "loss", "projected"]]
        count = len(self.run.values)
        indices = range(count)
        shown = list(indices) if most is None or count <= most else [*indices[: most // 2], *indices[-most // 2 :]]
        for before, i in zip([-1, *shown], shown, strict=False):
            if i > before + 1:
                rows.append([f"  and {i - before - 1} between", *[""] * (len(rows[0]) - 1)])
            place = [f"{x:.3g}" for x in self.run.coordinates[i].tolist()]
            rows.append(
                [f"  {i + 1}", *place, f"{float(self.run.values[i]):.5g}", f"{float(self.run.projected[i]):.5g}"]
            )
        return rows

    def to_text(self) -> str:
        """Return the main numbers as aligned text."""
        rows = self.summary()
        widths = [max(len(row[column]) for row in rows) for column in (2, 3)]
        summary = align([[*row[:2], row[2].ljust(widths[0]), row[3].ljust(widths[1])] for row in rows])
        blocks = [self.title, summary, align(self.axes())]
        if self.run is not None:
            blocks.append(align(self.checkpoints(_MOST_ROWS)))
        return "\n\n".join(blocks)

    def __str__(self) -> str:
        return self.to_text()

    def plot(self, folder: str | os.PathLike[str] | None = None) -> list[Figure]:
        """Draw `figures`, into a folder if one is given: contours and a heat map with the trajectory, and a surface."""
        kinds = {CONTOURS: "contour", HEATMAP: "heatmap", SURFACE: "surface", PROFILE: "profile"}
        return [
            self.grid.plot(
                None if folder is None else Path(folder) / name,
                kind=kinds[name],
                trajectory=None if name == SURFACE else self.run,
            )
            for name in self.figures
        ]

    def save_page(self, folder: str | os.PathLike[str]) -> None:
        """Write ``report.html`` beside the figures that `plot` wrote into the folder, with them inside."""
        from lsfast.results import write_text
        from lsfast.studies.grid_page import grid_page

        write_text(Path(folder) / PAGE, grid_page(self, Path(folder)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``grid.npz`` and ``grid.json`` into a folder, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.grid.save(folder / GRID)
        write_json(folder / NUMBERS, _FORMAT, self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> GridReport:
        """Read what `save` wrote into a folder.

        Raises
        ------
        ValueError
            If a file is torn or holds something else.
        """
        folder = Path(folder)

        def number(value: float | None) -> float:
            return math.nan if value is None else float(value)

        def read(content: Any) -> dict[str, Any]:
            held, loss = content["trajectory"], content["loss"]
            tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in (held or {}).items()}
            return {
                "kind": content["directions"],
                "loss": number(loss["value"]),
                "loss_stderr": number(loss["stderr"]),
                "run": Run(**tensors) if held else None,
                **{name: content[name] for name in ("n", "settings", "seconds", "environment")},
            }

        numbers = read_json("GridReport.load", folder / NUMBERS, _FORMAT, "numbers of a loss grid", read)
        return cls(grid=LossGrid.load(folder / GRID), **numbers)


def _error(stderr: float) -> str:
    return "" if math.isnan(stderr) else f"± {stderr:.2g}"
