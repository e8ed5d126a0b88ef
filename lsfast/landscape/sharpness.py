"""Sharpness: how much the loss rises close to the parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lsfast import checks
from lsfast.objective import Objective

_METHODS = ("sam", "asam")


def sharpness(objective: Objective, method: str = "sam", radius: float = 0.05) -> Tensor:
    r"""Return the rise of the loss over one step of length `radius` uphill.

    .. math:: L(w + \delta) - L(w), \qquad \delta_{sam} = \rho \frac{g}{|g|}, \quad
              \delta_{asam} = \rho \frac{w^2 g}{|\,|w| g\,|}

    with g the gradient at the parameters w, products elementwise. ``"asam"`` measures the step relative to each
    parameter, so rescaling the weights of a network that computes the same function does not change it.

    Parameters
    ----------
    objective
        The loss.
    method
        ``"sam"`` or ``"asam"``.
    radius
        rho > 0, in units of the parameters for sam, relative to them for asam.

    Returns
    -------
    Tensor
        0-dim float64; 0 where the gradient (times the parameters, for asam) is zero; NaN or Inf if the loss is there.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or the gradient is not finite.

    References
    ----------
    Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization. ICLR 2021. Kwon, Kim, Park, Choi: ASAM. ICML 2021.

    Examples
    --------
    >>> lsfast.sharpness(objective, radius=0.05)
    tensor(0.0123, dtype=torch.float64)
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"sharpness: objective must be an Objective, got {type(objective).__name__}")
    checks.one_of("sharpness", "method", method, _METHODS)
    if isinstance(radius, bool) or not isinstance(radius, (int, float)):
        raise TypeError(f"sharpness: radius must be a number, got {radius!r}")
    if not 0.0 < radius < math.inf:
        raise ValueError(f"sharpness: radius must be a finite number > 0, got {radius}")

    parameters = objective.parameters
    gradient = objective.gradient().double()
    weight = parameters.double().abs() if method == "asam" else torch.ones_like(gradient)
    length = (weight * gradient).norm()
    if length == 0.0:
        return torch.zeros_like(length)
    step = (radius * weight * weight * (gradient / length)).to(objective.dtype)
    values = objective.evaluate(points=torch.stack([parameters, parameters + step])).values
    return values[1] - values[0]
