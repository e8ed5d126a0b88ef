"""Shapes and dtypes of what the operators of the spectrum room return, for tracing without data."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import register_fake


@register_fake("basis_project")
def _(basis: Tensor, w: Tensor, count: int) -> Tensor:
    return w.new_empty((w.shape[0], count), dtype=torch.float64)


@register_fake("basis_subtract_project")
def _(basis: Tensor, w: Tensor, coefficients: Tensor, out: Tensor) -> Tensor:
    return w.new_empty((w.shape[0], coefficients.shape[1]), dtype=torch.float64)


@register_fake("basis_subtract_norm")
def _(basis: Tensor, w: Tensor, coefficients: Tensor) -> Tensor:
    return w.new_empty((w.shape[0],), dtype=torch.float64)


@register_fake("lanczos_advance")
def _(*arguments: object) -> None:
    return None


@register_fake("tridiagonal_eigen")
def _(alpha: Tensor, beta: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(alpha), torch.empty_like(alpha), torch.empty_like(steps)
