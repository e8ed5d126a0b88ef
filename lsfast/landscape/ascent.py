"""Ascent of the loss within a ball or a box around the parameters: native steps, and the search for the worst case.

A point is w + c * u, products elementwise, with the scale c = slope |w| + offset of each parameter; the gradient of the
loss in u is c * g. Entries with c = 0 do not move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lsfast._native import ops, register_fake
from lsfast.objective import Objective

_GROWTH = 1.25  # tried from 1 to 2 on quadratics of both signs: twice as long is half of the time too long


class Scale(NamedTuple):
    """c = slope |w| + offset."""

    slope: float
    offset: float


def ascent_sums(u: Tensor | None, gradient: Tensor, theta: Tensor, scale: Scale) -> Tensor:
    """Return |c g|^2, u . c g and |u|^2 as [k, 3] float64 for each row of u and the gradients g [k, n]; None: u = 0.

    The sums are taken in an order fixed by n alone, the same on every device. Below 1e-154 and above 1e154 squares of
    float64 vanish and overflow; those of float32 do neither.
    """
    result: Tensor = ops.ascent_sums(u, gradient, theta, *scale)
    return result


def ascent_step(
    u: Tensor | None, gradient: Tensor, theta: Tensor, coefficients: Tensor, scale: Scale, box: bool
) -> tuple[Tensor, Tensor]:
    """Return the rows u' [k, n] one step from u, and the points theta + c u' [k, n].

    u' = keep u + move c g with (keep, move) in the rows of `coefficients` [k, 2], float64; for `box`
    u' = u + move sign(c g), each entry held within +-bound, with (move, bound).
    """
    moved, points = ops.ascent_step(u, gradient, theta, coefficients, *scale, box)
    return moved, points


@register_fake("ascent_sums")
def _(u: Tensor | None, gradient: Tensor, theta: Tensor, slope: float, offset: float) -> Tensor:
    return gradient.new_empty(gradient.shape[0], 3, dtype=torch.float64)


@register_fake("ascent_step")
def _(
    u: Tensor | None, gradient: Tensor, theta: Tensor, coefficients: Tensor, slope: float, offset: float, box: bool
) -> tuple[Tensor, Tensor]:
    return gradient.new_empty(gradient.shape), gradient.new_empty(gradient.shape)


def steepest(gradients: Tensor, parameters: Tensor, radius: float, scale: Scale) -> Tensor:
    """Return the points [k, n] a step |u| = radius along each of the gradients [k, n]; the parameters where it is 0."""
    lengths = ascent_sums(None, gradients, parameters, scale)[:, 0].sqrt()
    moves = torch.where(lengths > 0.0, radius / lengths, 0.0)
    coefficients = torch.stack([torch.zeros_like(moves), moves], dim=1)
    return ascent_step(None, gradients, parameters, coefficients, scale, box=False)[1]


def highest_loss(
    objective: Objective,
    radius: float,
    scale: Scale,
    box: bool,
    steps: int,
    seed: int,
    advance: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Return the loss at the parameters, and the largest met by `steps` steps uphill within |u| <= radius.

    In a ball u goes along the gradient and is projected; in a box, along the signs of its entries. The first step is
    the steepest one from u = 0; along a random direction where the gradient is 0, as it is at a minimum. A step that
    lowers the loss is not taken and the next one is half as long; after one that is taken the next is a quarter longer.
    """
    parameters = objective.parameters
    base = objective.evaluate(points=parameters[None]).values[0]
    gradient = objective.gradient()[None]
    if not ascent_sums(None, gradient, parameters, scale)[0, 0] > 0.0:
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(1, objective.n, generator=generator, dtype=objective.dtype).to(objective.device)
    # In a box a step of twice the radius reaches the vertex the signs point to from anywhere. In a ball a step s has
    # the fixed points and the rate of a power iteration with H + |c g| / s: longer ones converge faster where the loss
    # is convex, and swing where its most negative curvature is the larger.
    longest = (2.0 if box else 8.0) * radius
    u, current, length = None, base, (2.0 if box else 1.0) * radius
    for step in range(steps):
        advance(1)
        found = _step(u, gradient, parameters, length, radius, scale, box)
        if found is None:
            break
        moved, point = found
        if u is not None and torch.equal(moved, u):
            break
        loss = objective.evaluate(points=point).values[0]
        if loss < current:
            length /= 2.0
            continue
        u, current, length = moved, loss, min(_GROWTH * length, longest)
        if not torch.isfinite(loss):
            break
        if step + 1 < steps:
            gradient = objective.at(point[0]).gradient()[None]
    return base, current


def _step(
    u: Tensor | None, gradient: Tensor, parameters: Tensor, length: float, radius: float, scale: Scale, box: bool
) -> tuple[Tensor, Tensor] | None:
    """One step uphill and its point; None where the gradient is 0."""
    slope, inner, square = ascent_sums(u, gradient, parameters, scale)[0].tolist()
    if slope == 0.0:
        return None
    if box:
        pair = (length, radius)
    else:
        # |u + length c g / |c g||, from the sums: no pass over the result is needed to project it.
        norm = (square + 2.0 * length * inner / slope**0.5 + length**2) ** 0.5
        keep = min(1.0, radius / norm) if norm > 0.0 else 1.0
        pair = (keep, keep * length / slope**0.5)
    coefficients = torch.tensor([pair], dtype=torch.float64, device=parameters.device)
    return ascent_step(u, gradient, parameters, coefficients, scale, box)
