"""Mode connectivity: a curve between two states of a model that is trained to stay where the loss is low."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lsfast import checks
from lsfast.checkpoint import Checkpoint
from lsfast.landscape.axes import grid_axes
from lsfast.landscape.connectivity import buffer_rows, curve, two_states
from lsfast.landscape.result import LossGrid
from lsfast.landscape.states import State, difference
from lsfast.objective import Objective
from lsfast.program.autograd import batch_gradient
from lsfast.results import read_arrays, write_arrays
from lsfast.seeds import generator

_FORMAT = "lsfast.BezierCurve 1"
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SECONDS = 1.0  # between two writings of a checkpoint


@dataclass(frozen=True, eq=False)
class BezierCurve:
    r"""A quadratic Bezier curve between two states of a model.

    .. math:: \gamma(t) = (1-t)^2 a + 2 t (1-t) \phi + t^2 b

    Attributes
    ----------
    start, control, end
        [n], the points a, phi and b.
    grid
        The loss along the curve, at coordinates t from 0 (a) to 1 (b).
    """

    start: Tensor
    control: Tensor
    end: Tensor
    grid: LossGrid

    def point(self, t: float) -> Tensor:
        """Return the parameters [n] at t in 0..1."""
        if not 0.0 <= checks.finite_number("point", "t", t) <= 1.0:
            raise ValueError(f"point: t must lie in 0..1, got {t}")
        return _point(self.start, self.control, self.end, float(t))

    @property
    def mode_connectivity(self) -> Tensor:
        """(e(0) + e(1)) / 2 - e(t*), 0-dim float64, with t* where its absolute value is largest on the grid.

        Close to 0: well connected. Below 0: a barrier of that height is left. Above 0: the curve finds lower losses
        than its ends, which were not trained to a minimum (Yang and others, Taxonomizing Local versus Global Structure
        in Neural Network Loss Landscapes, NeurIPS 2021).
        """
        return self._below_mean()[self._place()]

    @property
    def position(self) -> float:
        """The t* of `mode_connectivity`, the first of several."""
        return float(self.grid.coordinates[0][self._place()])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the loss along the curve and return the figure, see `LossGrid.plot`."""
        return self.grid.plot(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` as a NumPy archive; the file appears whole or not at all."""
        arrays = {"start": self.start, "control": self.control, "end": self.end}
        arrays |= {"values": self.grid.values, "t": self.grid.coordinates[0], "stderr": self.grid.stderr}
        write_arrays(path, _FORMAT, arrays, self.grid.labels)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> BezierCurve:
        """Read what `save` wrote, onto the CPU. ValueError if the file is torn or is not such a file."""
        arrays, labels = read_arrays("BezierCurve.load", path, _FORMAT)
        grid = LossGrid(arrays["values"], (arrays["t"],), labels=labels, stderr=arrays["stderr"])
        return BezierCurve(arrays["start"], arrays["control"], arrays["end"], grid)

    def _below_mean(self) -> Tensor:
        values = self.grid.values
        return (values[0] + values[-1]) / 2 - values

    def _place(self) -> int:
        return int(self._below_mean().abs().argmax())


def bezier(
    objective: Objective,
    a: State,
    b: State,
    steps: int = 300,
    learning_rate: float = 0.01,
    points: int = 25,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> BezierCurve:
    r"""Train a quadratic Bezier curve from one state of a model to another along which the loss is low.

    .. math:: \min_\phi \int_0^1 L(\gamma(t)) \, dt, \qquad \gamma(t) = (1-t)^2 a + 2 t (1-t) \phi + t^2 b

    from the middle of the straight line, by Adam on the gradient at one t a step,
    :math:`2 t (1-t) \nabla L(\gamma(t))` over all the data, with a learning rate that falls to 0 along half a cosine.
    The t of the steps are :math:`u + 0.618 k \bmod 1` with u random: every run of them covers 0..1 evenly.

    Floating buffers (statistics of batch norms in eval mode) are interpolated, (1-t) of a's and t of b's, in training
    as on the grid. For statistics of the points themselves put the batch norms in train mode.

    Parameters
    ----------
    objective
        The loss. Parameters it does not vary stay the model's.
    a, b
        A state dict, the path of one (safetensors, or by ``torch.save``), a module, or a vector [n].
    steps
        Of training, with one gradient each.
    learning_rate
        Of Adam at the start, in units of the parameters: how far each may move in a step.
    points
        Of the grid along the trained curve, both ends among them: 3 or more.
    seed
        Of u.
    checkpoint
        A file to resume from, written about once a second. A run that was killed gives the same bits when it is called
        again.
    progress
        Show a bar with the time left.

    Returns
    -------
    BezierCurve
        With the trained `control` point, and the loss along the curve in `grid`.

    Raises
    ------
    TypeError, ValueError
        If a state does not fit the model or its file cannot be read, another argument is not as above, the checkpoint
        is torn or of another run, or a gradient is not finite: the message names the step.

    References
    ----------
    Garipov, Izmailov, Podoprikhin, Vetrov, Wilson: Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
    NeurIPS 2018.

    Examples
    --------
    >>> curve = lsfast.bezier(objective, a, b, steps=500)
    >>> curve.mode_connectivity, lsfast.barrier(objective, a, b).above_mean
    (tensor(-0.0213, dtype=torch.float64), tensor(0.8127, dtype=torch.float64))
    """
    checks.positive_integer("bezier", "steps", steps)
    if not checks.finite_number("bezier", "learning_rate", learning_rate) > 0.0:
        raise ValueError(f"bezier: learning_rate must be above 0, got {learning_rate}")
    checks.positive_integer("bezier", "points", points, least=3)
    checks.seed("bezier", seed)
    start, end, buffers = two_states("bezier", objective, a, b)
    axes = grid_axes("bezier", points, [(0.0, 1.0)], None, 1, objective.dtype)
    file = None
    if checkpoint is not None:
        Checkpoint("bezier", checkpoint, {})  # its folder must exist
        ends = objective.evaluate(
            points=torch.stack([start, end]), buffers={name: torch.stack(pair) for name, pair in buffers.items()}
        ).values.tolist()
        description: dict[str, int | float | str] = {
            "n": objective.n, "dtype": str(objective.dtype), "steps": steps, "learning_rate": float(learning_rate),
            "seed": seed, "loss of a": ends[0], "loss of b": ends[1],
        }  # fmt: skip
        file = Checkpoint("bezier", checkpoint, description)

    def gradient(t: float, control: Tensor) -> Tensor:
        at = {name: first + t * difference(last, first) for name, (first, last) in buffers.items()}
        return _gradient(objective, _point(start, control, end, t), at)

    control = _train(gradient, start / 2 + end / 2, steps, float(learning_rate), seed, file, progress)
    t = axes[0].double()
    coordinates = torch.stack([2 * t * (1 - t), t * t], 1).to(objective.device, objective.dtype)
    directions = torch.stack([control - start, end - start])
    # t = 2t(1-t) / 2 + t^2: what is interpolated moves by half of the way along the first direction.
    rows = buffer_rows(buffers, 0.5, 1.0)
    grid = curve("bezier", objective, start, directions, coordinates, rows, axes, None, "eval", progress)
    return BezierCurve(start, control, end, grid)


def _point(start: Tensor, control: Tensor, end: Tensor, t: float) -> Tensor:
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _gradient(objective: Objective, point: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient [n] of the loss at a point, with these buffers."""
    total = objective.over_batches(lambda inputs, targets: batch_gradient(objective, point, inputs, targets, buffers))
    return total.add_(point, alpha=objective.weight_decay)


def _train(
    gradient: Callable[[float, Tensor], Tensor],
    control: Tensor,
    steps: int,
    learning_rate: float,
    seed: int,
    file: Checkpoint | None,
    progress: bool,
) -> Tensor:
    """Return the control point [n] after training; `gradient` is that of the loss at (t, control point)."""
    optimizer = torch.optim.Adam([control], lr=learning_rate)
    first = 0
    found = None if file is None else file.load()
    if found is not None:
        control.copy_(found.pop("control"))
        first = int(found["step"])
        optimizer.state[control] = {
            name: value if name == "step" else value.to(control.device) for name, value in found.items()
        }
    offset = float(torch.rand((), generator=generator(seed), dtype=torch.float64))
    written = time.monotonic()
    for step in tqdm(
        range(first, steps), initial=first, total=steps, desc="bezier", unit="step", disable=not progress, leave=None
    ):
        t = (offset + step * _GOLDEN) % 1.0
        slope = gradient(t, control)
        if not slope.isfinite().all():
            raise ValueError(f"bezier: the gradient must be finite, got NaN or Inf at t = {t:.3g} in step {step}")
        control.grad = slope.mul_(2 * t * (1 - t))
        optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
        if file is not None and (step + 1 == steps or time.monotonic() - written > _SECONDS):
            file.save({"control": control, **optimizer.state[control]})
            written = time.monotonic()
    control.grad = None
    return control
