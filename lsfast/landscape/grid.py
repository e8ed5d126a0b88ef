"""The loss on a grid of points around the parameters, in any number of directions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.landscape.directions import Directions
from lsfast.landscape.segments import segment_norms
from lsfast.objective import Metric, Objective
from lsfast.results import read_arrays, write_arrays

_FORMAT = "lsfast.LossGrid 1"


@dataclass(frozen=True, eq=False)
class LossGrid:
    """A loss on a grid: `values[i, j]` is the loss at theta + x[i] d[0] + y[j] d[1], with (x, y) the `coordinates`.

    Attributes
    ----------
    values
        Of shape (steps of each direction), float64, on the CPU. NaN and Inf are kept as they came.
    coordinates
        One vector for each direction, on the CPU, in the parameters' dtype: exactly what the points were formed with.
    metrics
        name -> tensor like `values`.
    labels
        One for each direction.
    """

    values: Tensor
    coordinates: tuple[Tensor, ...]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the grid and return the figure; with `path`, also write it there."""
        from lsfast import plotting  # noqa: PLC0415  (matplotlib is needed by those who plot)

        return plotting.loss_grid(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grid to one file (npz), in one step: a reader sees the file before or the whole new one."""
        arrays = {"values": self.values}
        arrays |= {f"coordinates {k}": x for k, x in enumerate(self.coordinates)}
        arrays |= {f"metric {name}": metric for name, metric in self.metrics.items()}
        write_arrays(path, _FORMAT, arrays, self.labels)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> LossGrid:
        """Read a grid that `save` wrote.

        Raises
        ------
        ValueError
            If the file is torn or is not a saved grid.
        """
        arrays, labels = read_arrays("LossGrid.load", path, _FORMAT)
        count = sum(name.startswith("coordinates ") for name in arrays)
        coordinates = tuple(arrays[f"coordinates {k}"] for k in range(count))
        metrics = {name.removeprefix("metric "): array for name, array in arrays.items() if name.startswith("metric ")}
        return LossGrid(arrays["values"], coordinates, metrics, labels)


def loss_grid(
    objective: Objective,
    directions: Directions,
    steps: int | Sequence[int] = 51,
    extent: float | Sequence[Sequence[float]] = 1.0,
    coordinates: Sequence[Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
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
        One or more.
    steps
        Points along each direction; one integer stands for all directions.
    extent
        A number e > 0: from -e to e in every direction, both included; or one pair (low, high) for each direction,
        such as ``((-1, 1), (-0.5, 0.5))``. An odd symmetric axis holds exactly 0; a single step is the middle.
    coordinates
        In place of steps and extent: the coordinates along each direction, any finite numbers in any order.
    metrics
        name -> ``metric(outputs, targets)``, a mean over a batch, evaluated at every point beside the loss.
    progress
        Show a bar with the time left.

    Returns
    -------
    LossGrid
        With the coordinates rounded to the parameters' dtype, as they were used.

    Raises
    ------
    TypeError, ValueError
        Before any evaluation, if steps are not positive integers, an axis would be empty (low >= high) or not finite,
        there is not one of each for every direction, or a direction is 0, not finite, or of another model, dtype or
        device.

    References
    ----------
    Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018.

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
    if coordinates is None:
        axes = _axes(_steps(steps, count), _extents(extent, count), objective.dtype)
    else:
        axes = _given(coordinates, count, objective.dtype)
    for name, metric in (metrics or {}).items():
        if not callable(metric):
            raise TypeError(f"loss_grid: metrics must map names to callables, got {type(metric).__name__} for {name!r}")

    shape = tuple(len(axis) for axis in axes)
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, count).to(objective.device)
    with _bar(progress, len(mesh)) as advance:
        found = objective.evaluate(directions.origin, directions.vectors, mesh, metrics=metrics, progress=advance)
    return LossGrid(
        found.values.reshape(shape).cpu(),
        axes,
        {name: metric.reshape(shape).cpu() for name, metric in found.metrics.items()},
        directions.labels,
    )


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


def _steps(steps: Any, count: int) -> list[int]:
    each = [steps] * count if isinstance(steps, int) else steps
    if not isinstance(each, Sequence):
        raise TypeError(f"loss_grid: steps must be an integer or one for each direction, got {steps!r}")
    if len(each) != count:
        raise ValueError(f"loss_grid: steps must be one for each of {count} directions, got {len(each)}")
    return [checks.positive_integer("loss_grid", "steps", value) for value in each]


def _extents(extent: Any, count: int) -> list[tuple[float, float]]:
    if isinstance(extent, (int, float)) and not isinstance(extent, bool):
        if not 0.0 < extent < math.inf:
            raise ValueError(f"loss_grid: extent must be a finite number > 0, got {extent}")
        return [(-float(extent), float(extent))] * count
    try:
        pairs = [(float(low), float(high)) for low, high in extent]
    except (TypeError, ValueError):
        raise TypeError(
            f"loss_grid: extent must be a number or a pair (low, high) for each direction, got {extent!r}"
        ) from None
    if len(pairs) != count:
        raise ValueError(f"loss_grid: extent must be one pair for each of {count} directions, got {len(pairs)}")
    for low, high in pairs:
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"loss_grid: extent must be finite with low < high, got ({low}, {high})")
    return pairs


def _axes(steps: list[int], extents: list[tuple[float, float]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    axes = []
    for count, (low, high) in zip(steps, extents, strict=True):
        if count == 1:
            axis = torch.tensor([low / 2 + high / 2], dtype=torch.float64)
        else:
            # Weighted ends: antisymmetric to the bit where low = -high, so the middle is exactly 0.
            i = torch.arange(count, dtype=torch.float64)
            axis = low * ((count - 1 - i) / (count - 1)) + high * (i / (count - 1))
        rounded = axis.to(dtype)
        if not (rounded.diff() > 0).all() or not rounded.isfinite().all():
            raise ValueError(f"loss_grid: extent must hold {count} different numbers of {dtype}, got ({low}, {high})")
        axes.append(rounded)
    return tuple(axes)


def _given(coordinates: Any, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if not isinstance(coordinates, (Sequence, Tensor)) or len(coordinates) != count:
        got = len(coordinates) if hasattr(coordinates, "__len__") else type(coordinates).__name__
        raise ValueError(f"loss_grid: coordinates must be one vector for each of {count} directions, got {got}")
    axes = tuple(torch.as_tensor(axis, dtype=torch.float64).detach().cpu().to(dtype) for axis in coordinates)
    for axis in axes:
        if axis.dim() != 1 or len(axis) == 0:
            raise ValueError(f"loss_grid: coordinates must be vectors that are not empty, got shape {list(axis.shape)}")
        if not axis.isfinite().all():
            raise ValueError(f"loss_grid: coordinates must be finite in {dtype}, got {axis[~axis.isfinite()][0]}")
    return axes


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], object] | None]:
    """Give the callback that is told how many points are done, with a progress bar or None."""
    if not shown:
        yield None
        return
    from tqdm import tqdm  # noqa: PLC0415

    with tqdm(total=total, desc="loss grid", unit="point", leave=None) as bar:
        yield bar.update
