"""What the demo computes of one trained model, and the figures it draws of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import lsfast
from lsfast import plotting
from lsfast.studies.demo import models
from lsfast.studies.demo.digits import Digits
from lsfast.studies.demo.settings import Settings
from lsfast.studies.precision import Measure, accuracy
from lsfast.studies.table import PrecisionTable
from lsfast.weights import quantizable_parameters

STAGES = {
    "training": 2,
    "spectral density": 5,
    "eigenvalues": 3,
    "trace": 1,
    "loss surface": 5,
    "precision": 4,
    "figures": 2,
}
"""stage -> its share of the time, for the overall progress bar."""
FIGURES = ("contours", "surface", "spectrum", "bulk", "precision")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found of one model.

    Attributes
    ----------
    name, parameters
        The model and its number of parameters n.
    loss, train_accuracy, test_accuracy
        Cross-entropy on the images analysed; shares of right answers on all training and all test images.
    quantized
        Names of the weights the schemes apply to.
    density, eigenpairs, trace, grid, table
        Results of the lsfast functions of these names.
    seconds
        stage -> wall-clock time.
    """

    name: str
    parameters: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    quantized: tuple[str, ...]
    density: lsfast.SpectralDensity
    eigenpairs: lsfast.Eigenpairs
    trace: lsfast.Estimate[float]
    grid: lsfast.LossGrid
    table: PrecisionTable
    seconds: dict[str, float] = field(default_factory=dict)


def analyse(
    name: str,
    digits: Digits,
    settings: Settings,
    seed: int,
    out: Path,
    stage_begins: Callable[[str], object],
    progress: bool,
) -> Analysis:
    """Train one model, analyse its loss, write its figures ``<name>-<figure>.png`` into `out`."""
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(title: str) -> Iterator[None]:
        stage_begins(title)
        started = time.perf_counter()
        yield
        seconds[title] = time.perf_counter() - started

    with stage("training"):
        model = models.train(name, digits, seed)
    data = digits.train_images[: settings.images], digits.train_labels[: settings.images]
    objective = lsfast.Objective(model, nn.CrossEntropyLoss(), data)
    test = lsfast.Objective(model, nn.CrossEntropyLoss(), (digits.test_images, digits.test_labels))
    hessian = lsfast.HessianOperator(objective)
    with stage("spectral density"):
        density = lsfast.spectral_density(
            hessian, probes=settings.probes, steps=settings.lanczos_steps, seed=seed, progress=progress
        )
    with stage("eigenvalues"):
        eigenpairs = lsfast.eigsh(hessian, k=settings.eigenvalues, which="LM")
    with stage("trace"):
        trace = lsfast.trace(hessian, num_products=settings.trace_products, seed=seed)
    with stage("loss surface"):
        directions = lsfast.random_directions(objective, count=2, normalize="filter", seed=seed)
        steps = (settings.grid_steps, settings.grid_steps)
        grid = lsfast.loss_grid(objective, directions, steps=steps, extent=settings.extent, progress=progress)
    with stage("precision"):
        measures: dict[str, str | Measure] = {
            "weight_error": "weight_error",
            "loss": "loss",
            "test_accuracy": lambda moved: _accuracy_at(test, moved.parameters),
            "largest_eigenvalue": "largest_eigenvalue",
            "sharpness": "sharpness",
        }
        table = lsfast.precision_study(objective, settings.schemes, measures, seed=seed, progress=progress)
    analysis = Analysis(
        name=name,
        parameters=objective.n,
        loss=float(objective.loss()),
        train_accuracy=models.accuracy(model, digits.train_images, digits.train_labels),
        test_accuracy=models.accuracy(model, digits.test_images, digits.test_labels),
        quantized=quantizable_parameters(objective),
        density=density,
        eigenpairs=eigenpairs,
        trace=trace,
        grid=grid,
        table=table,
        seconds=seconds,
    )
    with stage("figures"):
        _draw(analysis, out)
    return analysis


def figure_path(out: Path, name: str, figure: str) -> Path:
    """Return where a figure of a model lies."""
    return out / f"{name}-{figure}.png"


def _accuracy_at(test: lsfast.Objective, parameters: Tensor) -> float:
    return accuracy(test.at(parameters))


def _draw(analysis: Analysis, out: Path) -> None:
    for figure, scale in (("spectrum", "linear"), ("bulk", "symlog")):
        path = figure_path(out, analysis.name, figure)
        plotting.spectral_density(analysis.density, path, eigenvalues=analysis.eigenpairs.values, scale=scale)
    plotting.loss_grid(analysis.grid, figure_path(out, analysis.name, "contours"))
    plotting.loss_surface(analysis.grid, figure_path(out, analysis.name, "surface"))
    plotting.precision(analysis.table, figure_path(out, analysis.name, "precision"))


def as_dict(analysis: Analysis) -> dict[str, object]:
    """Return every number of an analysis, for JSON."""
    criteria = analysis.density.criteria()
    negative = analysis.density.function_trace(lambda nodes: nodes.clamp(max=0.0))
    values = analysis.grid.values
    lowest = int(torch.where(values.isfinite(), values, torch.inf).argmin())
    return {
        "parameters": analysis.parameters,
        "loss": analysis.loss,
        "train_accuracy": analysis.train_accuracy,
        "test_accuracy": analysis.test_accuracy,
        "quantized_weights": list(analysis.quantized),
        "largest_eigenvalue": float(analysis.eigenpairs.values.max()),
        "eigenvalues": analysis.eigenpairs.values.tolist(),
        "eigenvalue_residuals": analysis.eigenpairs.residuals.tolist(),
        "trace": {"value": analysis.trace.value, "stderr": analysis.trace.stderr},
        "spectral_density": {
            "nodes": analysis.density.nodes.tolist(),
            "weights": analysis.density.weights.tolist(),
            "trace": {"value": analysis.density.trace.value, "stderr": analysis.density.trace.stderr},
            "negative_trace": {"value": negative.value, "stderr": negative.stderr},
            "effective_rank": {"value": criteria.effective_rank.value, "stderr": criteria.effective_rank.stderr},
            "smallest_node": criteria.smallest,
            "largest_node": criteria.largest,
        },
        "loss_surface": {
            "coordinates": [axis.tolist() for axis in analysis.grid.coordinates],
            "values": values.tolist(),
            "minimum": float(values.flatten()[lowest]),
            "maximum": float(values[values.isfinite()].max()),
        },
        "precision": analysis.table.to_dict(),
        "seconds": analysis.seconds,
    }
