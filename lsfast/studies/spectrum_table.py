"""What a spectrum study returns: numbers, vectors, text and figures, and the folder they are kept in."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lsfast.results import finite, read_json, write_json, written_whole
from lsfast.spectrum import Eigenpairs, Estimate, SpectralDensity
from lsfast.studies.table import align

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS, DENSITY, VECTORS = "spectrum.json", "density.npz", "eigenvectors.safetensors"
FIGURES = ("density.png", "eigenvalues.png")
_FORMAT = "lsfast.SpectrumReport"
_TITLES = {"hessian": "Hessian", "ggn": "GGN", "fisher": "empirical Fisher"}
_MOST_ROWS = 10  # of parameters, in text


@dataclass(frozen=True, eq=False)
class SpectrumReport:
    """The spectrum of the curvature of an objective.

    Attributes
    ----------
    kind, n
        ``"hessian"``, ``"ggn"`` or ``"fisher"``, and the number of parameters.
    shapes
        Name -> shape of each parameter, in the order of a vector.
    loss, gradient_norm
        Of the objective.
    density, eigenpairs, parameter_traces
        Results of the lsfast functions of these names; the eigenpairs None and the traces empty if not asked for.
    settings, seconds, environment
        What was asked for, the wall-clock time of each stage, and what it ran on.
    """

    kind: str
    n: int
    shapes: dict[str, tuple[int, ...]]
    loss: float
    gradient_norm: float
    density: SpectralDensity
    eigenpairs: Eigenpairs | None
    parameter_traces: dict[str, Estimate[float]]
    settings: dict[str, Any]
    seconds: dict[str, float]
    environment: dict[str, str]

    @property
    def title(self) -> str:
        """The operator and its size, in words."""
        return f"{_TITLES[self.kind]}, {self.n} parameters"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of what `save` and `plot` write into a folder."""
        of_pairs = () if self.eigenpairs is None else (VECTORS, FIGURES[1])
        return (NUMBERS, DENSITY, FIGURES[0], *of_pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, as JSON can hold them: NaN and Inf are None."""
        pairs, traces = self.eigenpairs, self.parameter_traces
        found = [] if pairs is None else zip(pairs.values.tolist(), pairs.residuals.tolist(), strict=True)
        parameters = [
            {"name": name, "shape": shape, "trace": asdict(traces[name]) if name in traces else None}
            for name, shape in self.shapes.items()
        ]
        content = {
            "operator": self.kind,
            "n": self.n,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "trace": asdict(self.density.trace),
            "criteria": asdict(self.density.criteria()),
            "eigenvalues": [{"value": value, "residual": residual} for value, residual in found],
            "parameters": parameters,
            "probes": len(self.density.nodes),
            "settings": self.settings,
            "seconds": self.seconds,
            "environment": self.environment,
        }
        found_finite: dict[str, Any] = finite(content)
        return found_finite

    def to_text(self) -> str:
        """Return the main numbers as aligned text."""
        criteria = self.density.criteria()
        rows = [
            ["loss", f"{self.loss:.6g}", ""],
            ["gradient norm", f"{self.gradient_norm:.4g}", ""],
            ["trace", *_cells(self.density.trace)],
            ["Frobenius norm", *_cells(criteria.frobenius_norm)],
            ["smallest Ritz value", f"{criteria.smallest:.4g}", ""],
            ["largest Ritz value", f"{criteria.largest:.4g}", ""],
            ["share of negative eigenvalues", *_cells(criteria.negative_mass)],
            ["effective rank", *_cells(criteria.effective_rank)],
            ["bulk edge", f"{criteria.bulk_edge:.4g}", ""],
            ["outliers above it", *_cells(criteria.outliers)],
        ]
        blocks = [f"{self.title}, {len(self.density.nodes)} probes", _columns(rows)]
        if self.eigenpairs is not None:
            values, residuals = self.eigenpairs.values.tolist(), self.eigenpairs.residuals.tolist()
            table = [[f"eigenvalues ({self.settings.get('which', 'LM')})", "value", "residual"]]
            table += [
                [f"  {i}", f"{v:.6g}", f"{r:.1e}"] for i, (v, r) in enumerate(zip(values, residuals, strict=True), 1)
            ]
            blocks.append(align(table))
        if self.parameter_traces:
            largest = sorted(self.parameter_traces.items(), key=lambda item: -abs(item[1].value))
            table = [["traces by parameter", "trace", "", "per element"]]
            for name, estimate in largest[:_MOST_ROWS]:
                count = math.prod(self.shapes[name])
                table.append([f"  {name}", *_cells(estimate), f"{estimate.value / max(count, 1):.3g}"])
            left = len(largest) - _MOST_ROWS
            blocks.append(_columns(table) + (f"\n  and {left} smaller ones" if left > 0 else ""))
        return "\n\n".join(blocks)

    def __str__(self) -> str:
        return self.to_text()

    def plot(self, folder: str | os.PathLike[str] | None = None) -> list[Figure]:
        """Plot the density and, if there are any, the eigenvalues; into ``density.png`` and ``eigenvalues.png``.

        The axis of the density is symmetric-logarithmic for a Hessian, and logarithmic for a GGN or a Fisher, which
        have no negative eigenvalues (unless the loss is not convex in the outputs: then it is symmetric too).
        """
        from lsfast import plotting

        density, eigenvalues = (None if folder is None else Path(folder) / name for name in FIGURES)
        criteria, pairs = self.density.criteria(), self.eigenpairs
        positive = self.kind != "hessian" and criteria.largest > 0 and criteria.negative_mass.value == 0
        marks = None if pairs is None else pairs.values
        scale = "log" if positive else "symlog"
        figures = [plotting.spectral_density(self.density, density, marks, scale=scale, title=self.title)]
        if pairs is not None:
            figures.append(plotting.eigenvalues(pairs, eigenvalues, title=self.title))
        return figures

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``density.npz``, ``eigenvectors.safetensors`` (if there are any) and ``spectrum.json`` into a folder.

        Each file is written whole or not at all; the last one is the mark that all are there.

        Raises
        ------
        ImportError
            If there are eigenvectors and safetensors is not installed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.density.save(folder / DENSITY)
        if self.eigenpairs is not None:
            pairs = self.eigenpairs
            tensors = {"values": pairs.values, "vectors": pairs.vectors, "residuals": pairs.residuals}
            parameters = json.dumps([[name, list(shape)] for name, shape in self.shapes.items()])
            contents = require_safetensors().torch.save(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                {"format": _FORMAT, "operator": self.kind, "parameters": parameters},
            )
            with written_whole(folder / VECTORS) as file:
                file.write(contents)
        write_json(folder / NUMBERS, _FORMAT, self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SpectrumReport:
        """Read what `save` wrote into a folder.

        Raises
        ------
        ValueError
            If a file is torn or holds something else.
        """
        folder = Path(folder)

        def read(content: Any) -> dict[str, Any]:
            traces = {each["name"]: each["trace"] for each in content["parameters"] if each["trace"] is not None}
            estimates = {
                name: Estimate(*(math.nan if trace[part] is None else trace[part] for part in ("value", "stderr")))
                for name, trace in traces.items()
            }
            same = ("n", "loss", "gradient_norm", "settings", "seconds", "environment")
            return {
                "kind": content["operator"],
                "shapes": {each["name"]: tuple(each["shape"]) for each in content["parameters"]},
                "parameter_traces": estimates,
                "eigenpairs": bool(content["eigenvalues"]),
                **{name: content[name] for name in same},
            }

        numbers = read_json("SpectrumReport.load", folder / NUMBERS, _FORMAT, "numbers of a spectrum", read)
        numbers["eigenpairs"] = _eigenpairs(folder / VECTORS) if numbers["eigenpairs"] else None
        return cls(density=SpectralDensity.load(folder / DENSITY), **numbers)


def require_safetensors() -> Any:
    """Return the module, or raise with the command that installs it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            'eigenvectors are written by safetensors, which is not installed: pip install "lsfast[files]"'
        ) from error
    return safetensors


def _eigenpairs(path: Path) -> Eigenpairs:
    safetensors = require_safetensors()
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
        return Eigenpairs(tensors["values"], tensors["vectors"], tensors["residuals"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(
            f"SpectrumReport.load: path must be a whole file of eigenvectors, got {os.fspath(path)!r}: {error}"
        ) from None


def _cells(estimate: Estimate[float]) -> list[str]:
    """Return a value and its standard error as cells."""
    error = "" if math.isnan(estimate.stderr) else f"± {estimate.stderr:.2g}"
    return [f"{estimate.value:.4g}", error]


def _columns(rows: list[list[str]]) -> str:
    """Align rows, the standard errors on their left, where the sign is."""
    width = max(len(row[2]) for row in rows)
    return align([[*row[:2], row[2].ljust(width), *row[3:]] for row in rows])
