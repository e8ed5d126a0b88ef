"""The loss of a model around its weights, in directions of a kind, in one call and one folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lsfast import checks
from lsfast.checkpoint import Checkpoint
from lsfast.curvature import HessianOperator
from lsfast.env import environment
from lsfast.formats import QuantScheme
from lsfast.formats import scheme as scheme_of
from lsfast.landscape import Directions, Trajectory, loss_grid, random_directions, trajectory_directions
from lsfast.objective import Objective
from lsfast.studies.directions import eigen_directions
from lsfast.studies.grid_table import GridReport, Run
from lsfast.studies.timing import timed

if TYPE_CHECKING:
    import os

DIRECTIONS = ("random", "eigen", "trajectory")
NORMALIZE = ("filter", "layer", "model", "none")
BATCH_NORM = ("eval", "recompute")
_CHECKPOINTS = ("directions.checkpoint.npz", "grid.checkpoint.npz")
_MARGIN = 0.2  # of the span of a trajectory, beyond it at each end


def grid_report(
    objective: Objective,
    directions: str = "random",
    steps: Sequence[int] = (51, 51),
    extent: float | None = None,
    normalize: str | None = None,
    checkpoints: Sequence[Any] = (),
    scheme: str | QuantScheme | None = None,
    batch_norm: str = "eval",
    tolerance: float | None = None,
    subset: int | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> GridReport:
    """Loss grid of an objective in random, eigen- or trajectory directions, with what belongs beside it.

    Parameters
    ----------
    objective
        The loss.
    directions
        ``"random"`` (`lsfast.random_directions`), ``"eigen"`` (`lsfast.eigen_directions` of the Hessian, those of
        largest magnitude) or ``"trajectory"`` (`lsfast.trajectory_directions`).
    steps
        Points along each direction; as many directions as there are numbers.
    extent
        From -extent to extent along each. None: 1, and for a trajectory what holds all checkpoints with a margin.
    normalize
        Of random directions: ``"filter"`` (None), ``"layer"``, ``"model"`` or ``"none"``.
    checkpoints
        Of a trajectory, in the order of training: states as `lsfast.trajectory_directions` takes them.
    scheme, batch_norm, tolerance, subset
        As of `lsfast.loss_grid`. The directions are of all data.
    seed
        Of the random directions, the start of the eigensolver, and stochastic rounding.
    checkpoint
        Folder for what a killed run resumes from, made if there is none: the same call goes on where it was, with the
        same result. `remove_grid_checkpoints` takes it away again.
    progress
        Show a bar with the time left.

    Returns
    -------
    GridReport
        ``print(report)``, ``report.plot(folder)``, ``report.save(folder)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be (before any work), or the checkpoint is of another run.

    Examples
    --------
    >>> report = lsfast.studies.grid_report(objective, "eigen", steps=(25, 25), extent=0.5)
    >>> report.grid.values.min(), report.loss
    """
    _check(objective, directions, steps, extent, normalize, checkpoints, scheme, batch_norm, tolerance, seed)
    evaluated = objective if subset is None else objective.subset(subset)
    rounding: dict[str, Any] = {} if scheme is None else {"scheme": scheme, "seed": seed}
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    with timed(seconds, "directions"):
        found = _directions(objective, directions, len(steps), normalize, checkpoints, seed, folder)
    run = Run.of(found) if isinstance(found, Trajectory) else None
    with timed(seconds, "loss grid"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="loss_grid: .* NaN or Inf")  # the report counts them
        grid = loss_grid(
            objective, found, list(steps), _extents(extent, len(steps), run), batch_norm=batch_norm, **rounding,
            subset=subset, tolerance=tolerance, checkpoint=None if folder is None else folder / _CHECKPOINTS[1],
            progress=progress,
        )  # fmt: skip
    with timed(seconds, "origin"):
        zero = found.vectors.new_zeros(1, len(steps))
        origin = evaluated.evaluate(
            found.origin, found.vectors, zero, buffers=found.buffers or None, batch_norm=batch_norm, **rounding
        )
    asked = {"extent": extent, "checkpoints": [str(c) for c in checkpoints if not isinstance(c, (dict, torch.Tensor))]}
    return GridReport(
        kind=directions,
        n=objective.n,
        loss=float(origin.values[0]),
        loss_stderr=float(origin.stderr[0]),
        grid=grid,
        run=run,
        settings={
            "directions": directions, "steps": list(steps), **asked,
            "normalize": (normalize or "filter") if directions == "random" else None,
            "scheme": None if scheme is None else scheme_of(scheme).name, "batch_norm": batch_norm,
            "tolerance": tolerance, "subset": subset, "seed": seed, "dtype": str(objective.dtype),
            "device": str(objective.device), "engine": objective.engine, "reduction": objective.reduction,
            "weight_decay": objective.weight_decay,
        },
        seconds=seconds,
        environment=environment(),
    )  # fmt: skip


def remove_grid_checkpoints(folder: str | os.PathLike[str]) -> None:
    """Remove what `grid_report` left in its checkpoint folder to resume from."""
    for file in _CHECKPOINTS:
        (Path(folder) / file).unlink(missing_ok=True)


def _directions(
    objective: Objective,
    kind: str,
    count: int,
    normalize: str | None,
    checkpoints: Sequence[Any],
    seed: int,
    folder: Path | None,
) -> Directions:
    if kind == "random":
        chosen = None if normalize == "none" else normalize or "filter"
        return random_directions(objective, count, chosen, seed=seed)
    if kind == "trajectory":
        return trajectory_directions(objective, checkpoints, count)
    if folder is None:
        return eigen_directions(HessianOperator(objective), count, seed=seed)
    # Kept: another number of threads would find vectors of other last bits, and the grid of before would not go on.
    described: dict[str, int | float | str] = {
        "directions": kind, "n": objective.n, "count": count, "seed": seed, "loss": float(objective.loss())
    }  # fmt: skip
    file = Checkpoint("grid_report", folder / _CHECKPOINTS[0], described)
    kept = file.load()
    if kept is None:
        found = eigen_directions(HessianOperator(objective), count, seed=seed)
        names = torch.tensor(list("\n".join(found.labels).encode()), dtype=torch.uint8)
        file.save({"vectors": found.vectors, "names": names})
        return found
    labels = tuple(bytes(kept["names"].tolist()).decode().split("\n"))
    return Directions(kept["vectors"].to(objective.device), None, labels)


def _extents(extent: float | None, count: int, run: Run | None) -> list[tuple[float, float]]:
    """Return the ends of each axis: those given, or what holds a trajectory with a margin, or 1."""
    if extent is not None or run is None:
        e = 1.0 if extent is None else float(extent)
        return [(-e, e)] * count
    low, high = run.coordinates.min(0).values, run.coordinates.max(0).values
    margin = _MARGIN * torch.maximum(high - low, 0.25 * (high - low).max())
    # Short numbers: a run that goes on with other threads, and so other last bits, has the same grid.
    ends = zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    return [(float(f"{left:.3g}"), float(f"{right:.3g}")) for left, right in ends]


def _check(
    objective: object,
    directions: object,
    steps: object,
    extent: object,
    normalize: object,
    checkpoints: object,
    scheme: Any,
    batch_norm: object,
    tolerance: object,
    seed: object,
) -> None:
    """Raise for what would otherwise be found after the directions."""
    name = "grid_report"
    if not isinstance(objective, Objective):
        raise TypeError(f"{name}: objective must be an lsfast.Objective, got {type(objective).__name__}")
    if objective.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: objective must have parameters in float32 or float64, got {objective.dtype}")
    checks.one_of(name, "directions", directions, DIRECTIONS)
    if not isinstance(steps, Sequence) or not steps:
        raise TypeError(f"{name}: steps must be one integer for each direction, got {steps!r}")
    for value in steps:
        checks.positive_integer(name, "steps", value)
    if len(steps) > objective.n:
        raise ValueError(f"{name}: steps must be of at most {objective.n} directions, got {len(steps)}")
    for what, value in (("extent", extent), ("tolerance", tolerance)):
        if value is not None and not checks.finite_number(name, what, value) > 0:
            raise ValueError(f"{name}: {what} must be > 0, got {value}")
    if normalize is not None:
        checks.one_of(name, "normalize", normalize, NORMALIZE)
        if directions != "random":
            raise ValueError(f"{name}: normalize must be left out with {directions} directions, got {normalize!r}")
    if not isinstance(checkpoints, Sequence) or isinstance(checkpoints, str):
        raise TypeError(f"{name}: checkpoints must be a sequence of states, got {type(checkpoints).__name__}")
    if checkpoints and directions != "trajectory":
        raise ValueError(f"{name}: checkpoints must be left out with {directions} directions, got {len(checkpoints)}")
    if directions == "trajectory" and len(checkpoints) <= len(steps):
        raise ValueError(
            f"{name}: checkpoints must be more than the {len(steps)} directions of a trajectory, got {len(checkpoints)}"
        )
    if scheme is not None:
        scheme_of(scheme)
    checks.one_of(name, "batch_norm", batch_norm, BATCH_NORM)
    checks.seed(name, seed)
