"""Critical sharpness: how short a step along an update must be for the loss not to rise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from lsfast.objective import Objective

_OCTAVE = 8  # steps, each twice the last, that are evaluated together
_OCTAVES = 8  # of these at most in either direction
_INTERIOR = 3  # points evaluated together inside a bracket, which is cut to a quarter
_ROUNDS = 7  # 4^-7 of the first bracket's width, which is no larger than its lower end


def critical_sharpness(objective: Objective, direction: Tensor | None, advance: Callable[[int], object]) -> Tensor:
    """Return 2 / eta_c, 0-dim float64: see `lsfast.sharpness`."""
    gradient = objective.gradient()
    along = gradient if direction is None else direction
    if not (along != 0).any():
        raise ValueError("sharpness: direction must not be 0, got zeros (without one, the gradient)")
    parameters = objective.parameters
    descent = float(gradient.double() @ along.double())
    zero = torch.zeros((), dtype=torch.float64, device=objective.device)
    if not descent > 0.0:
        return zero + math.inf
    base = objective.evaluate(points=parameters[None]).values[0]

    def higher(etas: Tensor) -> Tensor:
        coordinates = -etas.to(objective.device)[:, None]
        losses = objective.evaluate(directions=along[None], coordinates=coordinates).values
        advance(len(etas))
        return ~(losses <= base).cpu()  # NaN is no descent

    # Of a quadratic that is never negative eta_c is at most this.
    guess = 4.0 * abs(float(base)) / descent
    if not 0.0 < guess < math.inf:
        guess = float(parameters.double().norm() / along.double().norm()) or 1.0
    bracket = _bracket(higher, guess, objective.dtype)
    if isinstance(bracket, float):
        if bracket == 0.0:
            warnings.warn(
                f"sharpness: the loss does not rise up to a step of {guess * 2.0 ** (_OCTAVE * (_OCTAVES - 1)):.3g}; "
                "its critical sharpness is given as 0",
                RuntimeWarning,
                stacklevel=3,
            )
        return zero + bracket
    low, high = bracket
    for _ in range(_ROUNDS):
        inside = torch.linspace(low, high, _INTERIOR + 2, dtype=torch.float64)[1:-1].to(objective.dtype)
        ends = [low, *inside.tolist(), high]
        first = next((i for i, up in enumerate(higher(inside).tolist()) if up), _INTERIOR)
        low, high = ends[first], ends[first + 1]
    return zero + 2.0 / high


def _bracket(higher: Callable[[Tensor], Tensor], guess: float, dtype: torch.dtype) -> tuple[float, float] | float:
    """Return the first two neighbours of a scale of doublings between which the loss rises above its start.

    Or the sharpness itself where there are none: 0 if it rises nowhere, Inf if it is above everywhere.
    """
    doublings = torch.arange(1 - _OCTAVE, 1, dtype=torch.float64)
    above = math.inf  # the smallest step known to be up, when looking down
    for octave in range(_OCTAVES):  # downwards while the lowest is up
        etas = (guess * 2.0 ** (doublings - _OCTAVE * octave)).to(dtype)
        up = higher(etas).tolist()
        etas_of = etas.tolist()
        if not up[0]:
            break
        above = etas_of[0]
    else:
        return math.inf
    low = etas_of[0]
    for eta, is_up in zip(etas_of[1:], up[1:], strict=True):
        if is_up:
            return low, eta
        low = eta
    if above < math.inf:
        return low, above
    for octave in range(1, _OCTAVES):
        etas = (guess * 2.0 ** (doublings + _OCTAVE * octave)).to(dtype)
        for eta, is_up in zip(etas.tolist(), higher(etas).tolist(), strict=True):
            if is_up:
                return low, eta
            low = eta
    return 0.0
