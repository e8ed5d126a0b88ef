"""A loss on a grid, as it is kept: in a file, as a dataset, drawn."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsfast.landscape.dataset import to_xarray
from lsfast.results import read_arrays, write_arrays

_FORMAT = "lsfast.LossGrid 2"


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
    stderr
        Like `values`: the standard error of each as a mean over the data; NaN where it is not known.
    evaluated
        bool, like `values`: where the loss was evaluated, not interpolated. By default everywhere.
    error
        The largest relative disagreement between interpolation and a check point that was accepted (see `loss_grid`);
        0 where every point was evaluated.
    """

    values: Tensor
    coordinates: tuple[Tensor, ...]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    stderr: Tensor = None  # type: ignore[assignment]  # set below, like the next
    evaluated: Tensor = None  # type: ignore[assignment]
    error: float = 0.0

    def __post_init__(self) -> None:
        shape = tuple(len(axis) for axis in self.coordinates)
        labels = tuple(self.labels) or tuple(f"direction {k}" for k in range(len(shape)))
        object.__setattr__(self, "labels", labels)
        if self.stderr is None:
            object.__setattr__(self, "stderr", torch.full(shape, torch.nan, dtype=torch.float64))
        if self.evaluated is None:
            object.__setattr__(self, "evaluated", torch.ones(shape, dtype=torch.bool))
        arrays = {"values": self.values, "stderr": self.stderr, "evaluated": self.evaluated, **self.metrics}
        for name, array in arrays.items():
            if array.shape != shape:
                raise ValueError(f"LossGrid: {name} must have shape {list(shape)}, got {list(array.shape)}")
        if len(labels) != len(shape):
            raise ValueError(f"LossGrid: labels must be one for each of {len(shape)} directions, got {len(labels)}")

    @property
    def evaluations(self) -> int:
        """At how many points the loss was evaluated."""
        return int(self.evaluated.sum())

    @property
    def nonfinite(self) -> int:
        """How many values are NaN or Inf."""
        return self.values.numel() - int(self.values.isfinite().sum())

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        kind: str | None = None,
        trajectory: Any = None,
    ) -> Any:
        """Draw the grid and return the figure; with `path`, also write it there.

        Parameters
        ----------
        path
            Where to write the figure; its ending chooses the format. None: nowhere.
        kind
            ``"contour"``, ``"heatmap"`` or ``"surface"`` for two directions, ``"profile"`` for one; None: the first
            that fits.
        trajectory
            A `Trajectory` or `Plane` whose directions the grid is over: drawn on top.

        Raises
        ------
        ValueError
            If the grid has more than two directions, other ones than the kind or the trajectory, or no finite value.
        """
        from lsfast.plotting.grid import figure_of  # noqa: PLC0415  (matplotlib is needed by those who plot)

        return figure_of(self, path, kind, trajectory)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grid to one file (npz), in one step: a reader sees the file before or the whole new one."""
        arrays = {"values": self.values, "stderr": self.stderr, "evaluated": self.evaluated}
        arrays["error"] = torch.tensor(self.error, dtype=torch.float64)
        arrays |= {f"coordinates {k}": x for k, x in enumerate(self.coordinates)}
        arrays |= {f"metric {name}": metric for name, metric in self.metrics.items()}
        write_arrays(path, _FORMAT, arrays, self.labels)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> LossGrid:
        """Read a grid that `save` wrote.

        Raises
        ------
        ValueError
            If the file is torn, or is not a saved grid of this version.
        """
        arrays, labels = read_arrays("LossGrid.load", path, _FORMAT)
        count = sum(name.startswith("coordinates ") for name in arrays)
        coordinates = tuple(arrays[f"coordinates {k}"] for k in range(count))
        metrics = {name.removeprefix("metric "): array for name, array in arrays.items() if name.startswith("metric ")}
        stderr, evaluated, error = arrays["stderr"], arrays["evaluated"], float(arrays["error"])
        return LossGrid(arrays["values"], coordinates, metrics, labels, stderr, evaluated, error)

    def to_xarray(self) -> Any:
        """Return an ``xarray.Dataset``, which writes NetCDF and Zarr (needs xarray).

        Its variables are ``loss``, ``stderr``, ``evaluated`` and the metrics; each direction is a coordinate, named by
        its label with underscores for what is no letter or digit; its attributes are ``labels`` (JSON),
        ``evaluations`` and ``error``.

        Examples
        --------
        >>> grid.to_xarray().loss.sel(random_0=0.0, method="nearest")
        """
        return to_xarray(self)
