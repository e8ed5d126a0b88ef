"""Loss grids by peers: loss-landscapes, which walks the points in place, and plain torch point by point."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import torch
from curvature_cases import Case
from torch import Tensor, nn
from torch.func import functional_call

Plane = tuple[Tensor, Tensor]  # two directions [n], whole steps of the peer's plane


def loss_landscapes(case: Case, directions: Tensor, steps: int) -> Tensor:
    """Return the values [steps, steps] of its plane from theta - d_0 - d_1 to theta + d_0 + d_1.

    As its `random_plane` does, with directions of ours: the same walk, the same metric.
    """
    from loss_landscapes.main import planar_interpolation
    from loss_landscapes.metrics import Loss

    start, first, second = (_moved(case.model, shift) for shift in _corners(directions))
    metric = Loss(case.loss_fn, case.inputs, case.targets)
    return torch.from_numpy(np.array(planar_interpolation(start, first, second, metric, steps)))


def walked_coordinates(steps: int, row: int) -> tuple[Tensor, Tensor]:
    """Return where loss-landscapes evaluates row `row`: every other row starts a step later."""
    x = -1.0 + 2.0 * row / steps
    shift = 1 if row % 2 == 0 else 0
    return torch.tensor([x]), -1.0 + 2.0 * (torch.arange(steps) + shift) / steps


def point_by_point(case: Case, directions: Tensor, axis: Tensor) -> Tensor:
    """Plain torch at its simplest: a functional call for each point."""
    named = {name: p.detach() for name, p in case.model.named_parameters()}
    parts = [_unflatten(case.model, direction) for direction in directions]
    values = torch.empty(len(axis), len(axis))
    with torch.no_grad():
        for (i, a), (j, b) in itertools.product(enumerate(axis), enumerate(axis)):
            point = {name: p + a * parts[0][name] + b * parts[1][name] for name, p in named.items()}
            values[i, j] = case.loss_fn(functional_call(case.model, point, (case.inputs,)), case.targets)
    return values


def _corners(directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d0, d1 = directions
    return -d0 - d1, d0 - d1, -d0 + d1


def _moved(model: nn.Module, shift: Tensor) -> nn.Module:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), _unflatten(model, shift).values(), strict=True):
            parameter.add_(part)
    return moved


def _unflatten(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    parts = vector.split([p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
