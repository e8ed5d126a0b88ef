"""The loss on a grid of points around the parameters, in any number of directions."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lsfast import checks, formats
from lsfast.checkpoint import Checkpoint
from lsfast.landscape.adaptive import adapt, completed
from lsfast.landscape.axes import grid_axes
from lsfast.landscape.directions import Directions
from lsfast.landscape.identity import describe
from lsfast.landscape.mesh import Mesh
from lsfast.landscape.result import LossGrid
from lsfast.landscape.segments import segment_norms
from lsfast.objective import Evaluation, Metric, Objective

__all__ = ["LossGrid", "loss_grid"]


def loss_grid(
    objective: Objective,
    directions: Directions,
    steps: int | Sequence[int] = 51,
    extent: float | Sequence[Sequence[float]] = 1.0,
    coordinates: Sequence[Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_norm: str = "eval",
    scheme: str | formats.QuantScheme | None = None,
    seed: int | None = None,
    subset: int | None = None,
    tolerance: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> LossGrid:
    r"""Evaluate the loss on a grid of points in the directions given.

    .. math:: V_{ij\ldots} = L(\theta + x_i d_0 + y_j d_1 + \ldots)

    Every point is formed from theta itself, so nothing drifts, and the model's own parameters are not touched.

    Parameters
    ----------
    objective
        The loss. theta is `directions.origin`, or its parameters where that is None.
    directions
        One or more; their buffers move along.
    steps
        Points along each direction; one integer stands for all directions.
    extent
        A number e > 0: from -e to e in every direction, both included; or one pair (low, high) for each direction,
        such as ``((-1, 1), (-0.5, 0.5))``. An odd symmetric axis holds exactly 0; a single step is the middle.
    coordinates
        In place of steps and extent: the coordinates along each direction, any finite numbers in any order.
    metrics
        name -> ``metric(outputs, targets)``, a mean over a batch, evaluated at every point beside the loss.
    batch_norm
        ``"eval"``: by the running statistics; ``"recompute"``: by those of all the data at each point.
    scheme
        A number format, or its name, that the weights are rounded to at each point.
    seed
        For a scheme with stochastic rounding.
    subset
        So many rows of the data in place of all, drawn once: ``objective.subset(subset)``.
    tolerance
        Evaluate only as many points as interpolation needs. A coarse grid is refined where the value at the centre of a
        cell differs from its interpolation (of degree 5 in each coordinate) by more than `tolerance` times the height
        of the loss there above the lowest found, or a tenth of the range found where that is more. `error` is the
        largest such disagreement that was accepted, in the same units: where the loss varies on the scale of the cells
        that were accepted, others may be larger, and a peak between all points that were looked at, the coarsest being
        a sixteenth of an axis apart, is not seen. Nothing is interpolated across NaN or Inf; what lies between equal
        ones is taken to be the same. Coordinates must increase. Metrics and standard errors are interpolated linearly.
    checkpoint
        A file to resume from: written about once a second while points are evaluated, in up to 64 groups (with each the
        data are walked over once). A run that was killed and is called again gives the bits it would have given.
    progress
        Show a bar with the time left: at most, with a tolerance.

    Returns
    -------
    LossGrid
        With the coordinates rounded to the parameters' dtype, as they were used.

    Raises
    ------
    TypeError, ValueError
        Before any evaluation, if steps are not positive integers, an axis would be empty (low >= high) or not finite,
        there is not one of each for every direction, or a direction is 0, not finite, or of another model, dtype or
        device. Before the grid is begun, if `checkpoint` is torn or of another grid (the message says what differs).

    Warns
    -----
    RuntimeWarning
        If values are NaN or Inf: how many.

    References
    ----------
    Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018.
    Interpolating refinement: Donoho: Interpolating Wavelet Transforms. Stanford, 1992.

    Examples
    --------
    >>> grid = lsfast.loss_grid(objective, lsfast.random_directions(objective), steps=(5, 3))
    >>> grid.values.shape
    torch.Size([5, 3])
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"loss_grid: objective must be an Objective, got {type(objective).__name__}")
    _check_directions(objective, directions)
    count = len(directions.vectors)
    axes = grid_axes("loss_grid", steps, extent, coordinates, count, objective.dtype)
    metrics = dict(metrics or {})
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(f"loss_grid: metrics must map names to callables, got {type(metric).__name__} for {name!r}")
    checks.one_of("loss_grid", "batch_norm", batch_norm, ("eval", "recompute"))
    scheme = formats.scheme(scheme) if scheme is not None else None
    if seed is not None:
        checks.seed("loss_grid", seed)
    if tolerance is not None:
        _check_tolerance(tolerance, axes)
    if checkpoint is not None:
        Checkpoint("loss_grid", checkpoint, {})  # its folder must exist
    if subset is not None:
        objective = objective.subset(checks.positive_integer("loss_grid", "subset", subset))
    theta = objective.parameters if directions.origin is None else directions.origin
    with _bar(progress, math.prod(len(axis) for axis in axes)) as advance:

        def evaluate(
            points: Tensor, together: int | None, told: Callable[[int], object] | None = advance
        ) -> Evaluation:
            """Evaluate at coordinates [g, d], so many points together."""
            return objective.evaluate(
                theta, directions.vectors, points.to(objective.device), metrics, None, batch_norm, scheme, seed,
                directions.buffers, together, told,
            )  # fmt: skip

        file, together = None, None
        if checkpoint is not None:
            settings = {
                "batch norm": batch_norm, "scheme": scheme, "seed": seed, "metrics": sorted(metrics), "subset": subset,
                "tolerance": tolerance, "dtype": objective.dtype, "device": objective.device.type,
            }  # fmt: skip
            quietly = partial(evaluate, told=None)
            description, together = describe(quietly, theta, directions, axes, settings)
            file = Checkpoint("loss_grid", checkpoint, description)
        mesh = Mesh(evaluate, axes, list(metrics), file, together, advance)
        if tolerance is None:
            evaluated, error = torch.ones([len(axis) for axis in axes], dtype=torch.bool), 0.0
            mesh.at(torch.arange(evaluated.numel()))
            values = mesh.named("loss")
        else:
            values, evaluated, error = adapt(mesh.at, axes, tolerance)
            advance(evaluated.numel() - int(evaluated.sum()))
        mesh.save()
    found = {name: completed(mesh.named(f"metric {name}"), evaluated, axes) for name in metrics}
    stderr = completed(mesh.named("stderr"), evaluated, axes)
    grid = LossGrid(values, axes, found, directions.labels, stderr, evaluated, error)
    if grid.nonfinite:
        warnings.warn(
            f"loss_grid: {grid.nonfinite} of {values.numel()} values are NaN or Inf", RuntimeWarning, stacklevel=2
        )
    return grid


def _check_directions(objective: Objective, directions: Directions) -> None:
    if not isinstance(directions, Directions):
        raise TypeError(f"loss_grid: directions must be Directions, got {type(directions).__name__}")
    vectors = checks.like("loss_grid", "directions", directions.vectors, objective.dtype, objective.device)
    if vectors.shape[1] != objective.n:
        raise ValueError(f"loss_grid: directions must be of {objective.n} parameters, got {vectors.shape[1]}")
    ends = torch.tensor([0, objective.n], device=objective.device)
    for k, norm in enumerate(segment_norms(vectors, ends)[:, 0].tolist()):
        if not 0.0 < norm < math.inf:
            raise ValueError(f"loss_grid: directions must have norms that are finite and not 0, got {norm} for {k}")


def _check_tolerance(tolerance: object, axes: Sequence[Tensor]) -> None:
    if checks.finite_number("loss_grid", "tolerance", tolerance) <= 0.0:
        raise ValueError(f"loss_grid: tolerance must be a finite number > 0, got {tolerance}")
    for axis in axes:
        for before, after in zip(axis[:-1].tolist(), axis[1:].tolist(), strict=True):
            if not before < after:
                raise ValueError(f"loss_grid: coordinates must increase for a tolerance, got {before} before {after}")


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], object]]:
    """Give the callback that is told how many points are done, with a progress bar or nothing."""
    if not shown:
        yield lambda points: None
        return
    from tqdm import tqdm  # noqa: PLC0415

    with tqdm(total=total, desc="loss grid", unit="point", leave=None) as bar:
        yield bar.update
