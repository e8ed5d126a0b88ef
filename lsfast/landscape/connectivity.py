"""What lies on the straight line between two states of a model: the loss along it, and the barrier it climbs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lsfast import checks
from lsfast.landscape.axes import grid_axes
from lsfast.landscape.result import LossGrid
from lsfast.landscape.states import Buffers, State, buffers_of, difference, read_state
from lsfast.objective import Metric, Objective


def interpolate(
    objective: Objective,
    a: State,
    b: State,
    steps: int = 25,
    metrics: Mapping[str, Metric] | None = None,
    batch_norm: str = "eval",
    progress: bool = False,
) -> LossGrid:
    r"""Evaluate the loss on the straight line from one state of a model to another.

    .. math:: V_i = L(a + t_i (b - a)), \qquad t_i = i / (\text{steps} - 1)

    Floating buffers (statistics of batch norms in eval mode) go along, so that each end has its own loss. A state
    without buffers, such as a vector, has those of the model.

    Parameters
    ----------
    objective
        The loss. Parameters it does not vary stay the model's.
    a, b
        A state dict, the path of one (safetensors, or by ``torch.save``), a module, or a vector [n]. They may be equal.
    steps
        Points, both ends among them: 2 or more.
    metrics
        name -> ``metric(outputs, targets)``, a mean over a batch, evaluated at every point beside the loss.
    batch_norm
        ``"eval"``: by the interpolated statistics; ``"recompute"``: by those of all the data at each point, the ends
        among them. What lies between two networks has channels of smaller variance than either, so interpolated
        statistics show a barrier of their own (Jordan and others, REPAIR, ICLR 2023).
    progress
        Show a bar with the time left.

    Returns
    -------
    LossGrid
        Of one direction, with coordinates t from 0 to 1 in the parameters' dtype.

    Raises
    ------
    TypeError, ValueError
        If a state does not fit the model (names, shapes, kinds of numbers) or its file cannot be read, or another
        argument is not as above.

    Warns
    -----
    RuntimeWarning
        If values are NaN or Inf, which are kept: how many.

    References
    ----------
    Goodfellow, Vinyals, Saxe: Qualitatively Characterizing Neural Network Optimization Problems. ICLR 2015.

    Examples
    --------
    >>> line = lsfast.interpolate(objective, "start.safetensors", model.state_dict(), steps=11)
    >>> line.coordinates[0][-1], line.values[-1]  # the loss of b
    """
    return _line("interpolate", objective, a, b, steps, metrics, batch_norm, progress)


@dataclass(frozen=True, eq=False)
class Barrier:
    """The height of the loss between two states over what lies below it.

    Attributes
    ----------
    grid
        The loss on the straight line, at coordinates t from 0 (a) to 1 (b).
    """

    grid: LossGrid

    @property
    def value(self) -> Tensor:
        """Largest rise above the line through the losses of the ends: max_t [L(t) - (1-t) L(0) - t L(1)], 0 or more.

        0-dim float64. NaN if a loss is NaN or that of an end infinite.
        """
        return self._rise().max()

    @property
    def above_mean(self) -> Tensor:
        """Largest loss above the mean of the ends': max_t L(t) - (L(0) + L(1)) / 2, 0-dim float64."""
        values = self.grid.values
        return values.max() - (values[0] + values[-1]) / 2

    @property
    def position(self) -> float:
        """Coordinate t at which `value` is reached, the first of several."""
        return float(self.grid.coordinates[0][int(self._rise().argmax())])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the loss along the line and return the figure, see `LossGrid.plot`."""
        return self.grid.plot(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` as the file of its `LossGrid`; it appears whole or not at all."""
        self.grid.save(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Barrier:
        """Read what `save` wrote. ValueError if the file is torn or is not such a file."""
        grid = LossGrid.load(path)
        if len(grid.coordinates) != 1 or grid.coordinates[0][[0, -1]].tolist() != [0.0, 1.0]:
            raise ValueError(f"Barrier.load: path must be of a line from 0 to 1, got {os.fspath(path)!r} of another")
        return Barrier(grid)

    def _rise(self) -> Tensor:
        values, t = self.grid.values, self.grid.coordinates[0].double()
        return values - ((1.0 - t) * values[0] + t * values[-1])


def barrier(
    objective: Objective, a: State, b: State, steps: int = 25, batch_norm: str = "eval", progress: bool = False
) -> Barrier:
    r"""Measure how far the loss rises on the straight line from one state of a model to another.

    .. math:: \max_t \left[ L(a + t (b - a)) - (1 - t) L(a) - t L(b) \right]

    Parameters
    ----------
    objective, a, b, batch_norm, progress
        As of `interpolate`.
    steps
        Points, both ends among them: 3 or more. The maximum is over these.

    Returns
    -------
    Barrier
        With `value`, the `position` it is reached at, `above_mean` and the whole line in `grid`.

    Raises
    ------
    TypeError, ValueError
        As `interpolate`.

    References
    ----------
    Frankle, Dziugaite, Roy, Carbin: Linear Mode Connectivity and the Lottery Ticket Hypothesis. ICML 2020 (above the
    mean of the ends). Entezari, Sedghi, Saukh, Neyshabur: The Role of Permutation Invariance in Linear Mode
    Connectivity of Neural Networks. ICLR 2022 (above the line through the ends).

    Examples
    --------
    >>> lsfast.barrier(objective, a, b).value
    tensor(0.8127, dtype=torch.float64)
    >>> lsfast.barrier(objective, a, lsfast.align(objective, a, b).state).value
    tensor(0.0911, dtype=torch.float64)
    """
    checks.positive_integer("barrier", "steps", steps, least=3)
    return Barrier(_line("barrier", objective, a, b, steps, None, batch_norm, progress))


def two_states(
    function: str, objective: Objective, a: State, b: State
) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return the parameters [n] of both states, and the buffers that differ from the model's in one of them."""
    if not isinstance(objective, Objective):
        raise TypeError(f"{function}: objective must be an Objective, got {type(objective).__name__}")
    start, first = read_state(function, objective, a, "a")
    end, second = read_state(function, objective, b, "b")
    buffers: dict[str, list[Tensor]] = buffers_of(objective, [first, second])
    return start, end, {name: (one, other) for name, (one, other) in buffers.items()}


def buffer_rows(buffers: Mapping[str, tuple[Tensor, Tensor]], *shares: float) -> Buffers:
    """Return rows for `Objective.evaluate`: a's buffer, then these shares of the difference of b's from it."""
    return {
        name: torch.stack([first, *(share * difference(last, first) for share in shares)])
        for name, (first, last) in buffers.items()
    }


def _line(
    function: str,
    objective: Objective,
    a: State,
    b: State,
    steps: int,
    metrics: Mapping[str, Metric] | None,
    batch_norm: str,
    progress: bool,
) -> LossGrid:
    checks.positive_integer(function, "steps", steps, least=2)
    for name, metric in (metrics or {}).items():
        if not callable(metric):
            raise TypeError(
                f"{function}: metrics must map names to callables, got {type(metric).__name__} for {name!r}"
            )
    checks.one_of(function, "batch_norm", batch_norm, ("eval", "recompute"))
    start, end, buffers = two_states(function, objective, a, b)
    axes = grid_axes(function, steps, [(0.0, 1.0)], None, 1, objective.dtype)
    coordinates = axes[0][:, None].to(objective.device)
    rows = buffer_rows(buffers, 1.0)
    return curve(
        function, objective, start, (end - start)[None], coordinates, rows, axes, metrics, batch_norm, progress
    )


def curve(
    function: str,
    objective: Objective,
    origin: Tensor,
    directions: Tensor,
    coordinates: Tensor,
    buffers: Mapping[str, Tensor],
    axes: tuple[Tensor, ...],
    metrics: Mapping[str, Metric] | None,
    batch_norm: str,
    progress: bool,
) -> LossGrid:
    """Evaluate along a curve from a to b, t in `axes`, whose points are origin + coordinates @ directions."""
    with tqdm(total=len(coordinates), desc=function, unit="point", disable=not progress, leave=None) as bar:
        found = objective.evaluate(
            origin, directions, coordinates, metrics, batch_norm=batch_norm, buffers=buffers, progress=bar.update
        )
    metric_values = {name: value.cpu() for name, value in found.metrics.items()}
    grid = LossGrid(found.values.cpu(), axes, metric_values, ("t, from a to b",), found.stderr.cpu())
    if grid.nonfinite:
        warnings.warn(
            f"{function}: {grid.nonfinite} of {len(coordinates)} values are NaN or Inf", RuntimeWarning, stacklevel=4
        )
    return grid
