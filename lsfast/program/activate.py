"""Activations in place, what is added before them in the same pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import ops, register_fake

ACTIVATIONS = {"identity": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}  # of csrc/landscape/activate.h
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def activate_(y: Tensor, x: Tensor | None, activation: str) -> Tensor:
    r"""Write :math:`f(y + x)` over y and return it; computed in float32 at least, rounded once.

    Parameters
    ----------
    y
        Contiguous; a floating-point tensor, [g, R, C] with a bias.
    x
        None; a bias [g, C] or [1, C], for each of g sets or for all; or a tensor like y, contiguous.
    activation
        ``"identity"``, ``"relu"``, ``"gelu"`` (x times the normal distribution function, to 2.3e-7 of x in float32),
        its tanh approximation ``"gelu_tanh"``, or ``"silu"``.

    Raises
    ------
    RuntimeError
        By the operator, if shapes, dtypes or devices do not fit together.

    Examples
    --------
    >>> activate_(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 0.5]), "relu")
    tensor([0.0000, 2.5000])
    """
    ops.activate_(y, x, ACTIVATIONS[activation])
    return y


@register_fake("activate_")
def _(y: Tensor, x: Tensor | None, activation: int) -> None:
    return None
