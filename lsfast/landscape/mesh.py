"""The points of a grid and what was found at them: evaluated in groups, which a resumed run finds again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lsfast.checkpoint import Checkpoint
from lsfast.objective import Evaluation

Evaluate = Callable[[Tensor, int | None], Evaluation]

_GROUPS = 64  # that a grid with a checkpoint is evaluated in, at most
_LEAST = 16  # points of such a group; also more than `evaluate` would take one by one
_SAVE_EVERY = 1.0  # seconds, at least


class Mesh:
    """Points of a grid by flat index, with the loss, its standard error and metrics where they were evaluated.

    With a checkpoint the points of a call are evaluated in groups. These depend on the calls alone, and a group is
    evaluated and saved as a whole: a resumed run that makes the same calls evaluates the groups that are missing. They
    are multiples of the points evaluated together: these are the same together as without groups, so the bits are too.

    Parameters
    ----------
    evaluate
        ``evaluate(coordinates [g, d], points_at_once)``.
    axes
        The coordinates along each direction.
    metrics
        Names.
    checkpoint
        Where the state is saved, and read from first.
    points_at_once
        How many points are evaluated together, unless the checkpoint knows; needed with a checkpoint.
    advance
        Called with the number of points found in the checkpoint.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        axes: Sequence[Tensor],
        metrics: Sequence[str],
        checkpoint: Checkpoint | None,
        points_at_once: int | None,
        advance: Callable[[int], object],
    ) -> None:
        self._evaluate, self._axes, self._checkpoint, self._advance = evaluate, axes, checkpoint, advance
        self._shape = tuple(len(axis) for axis in axes)
        blank = torch.full(self._shape, torch.nan, dtype=torch.float64).flatten()
        self._found = {name: blank.clone() for name in ("loss", "stderr", *(f"metric {name}" for name in metrics))}
        self._evaluated = torch.zeros(len(blank), dtype=torch.bool)
        self._points_at_once, self._saved = points_at_once, time.monotonic()
        state = checkpoint.load() if checkpoint is not None else None
        if state is not None:
            self._points_at_once = int(state.pop("points at once"))
            self._evaluated = state.pop("evaluated")
            self._found = state

    def at(self, indices: Tensor) -> Tensor:
        """Return the loss at the points of flat `indices` [g], none of which was asked for before."""
        for group in self._groups(indices):
            if bool(self._evaluated[group].all()):
                self._advance(len(group))
            else:
                self._find(group)
        return self._found["loss"][indices]

    def named(self, name: str) -> Tensor:
        """Return what was found under this name, in the shape of the grid."""
        return self._found[name].view(self._shape)

    def save(self) -> None:
        """Write the state to the checkpoint, if there is one."""
        if self._checkpoint is not None:
            together = torch.tensor(self._points_at_once)
            self._checkpoint.save({"points at once": together, "evaluated": self._evaluated, **self._found})
            self._saved = time.monotonic()

    def _groups(self, indices: Tensor) -> list[Tensor]:
        if self._checkpoint is None:
            return [indices]
        assert self._points_at_once is not None
        share = max(_LEAST, -(-len(self._evaluated) // _GROUPS))
        groups = list(indices.split(-(-share // self._points_at_once) * self._points_at_once))
        if len(groups) > 1 and len(groups[-1]) < _LEAST:
            groups[-2:] = [torch.cat(groups[-2:])]
        return groups

    def _find(self, group: Tensor) -> None:
        places = torch.unravel_index(group, self._shape)
        coordinates = torch.stack([axis[place] for axis, place in zip(self._axes, places, strict=True)], dim=1)
        result = self._evaluate(coordinates, self._points_at_once)
        metrics = {f"metric {name}": values for name, values in result.metrics.items()}
        for name, values in {"loss": result.values, "stderr": result.stderr, **metrics}.items():
            self._found[name][group] = values.double().cpu()
        self._evaluated[group] = True
        if time.monotonic() - self._saved >= _SAVE_EVERY:
            self.save()
