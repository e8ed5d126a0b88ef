"""Shapes and dtypes of what the operators of the spectrum room return, for tracing without data."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import register_fake


@register_fake("row_dots")
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty((x.shape[0],), dtype=torch.float64)


@register_fake("lanczos_begin")
def _(dots: Tensor, defect: Tensor, alpha: Tensor, beta: Tensor, ritz: Tensor | None, step: int, count: int) -> Tensor:
    return dots.new_empty((dots.shape[0], 4 + 2 * count))


@register_fake("lanczos_pass")
def _(
    current: Tensor, product: Tensor, previous: Tensor | None, following: Tensor, rows: Tensor | None,
    stored: Tensor | None, factors: Tensor,
) -> Tensor:  # fmt: skip
    return factors.new_empty((current.shape[0], (factors.shape[1] - 4) // 2 + 2))


@register_fake("lanczos_end")
def _(*arguments: object) -> None:
    return None


@register_fake("tridiagonal_eigen")
def _(alpha: Tensor, beta: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(alpha), torch.empty_like(alpha), torch.empty_like(steps)


@register_fake("block_project")
def _(Q: Tensor, W: Tensor) -> Tensor:
    return W.new_empty((W.shape[0], Q.shape[0]), dtype=torch.float64)


@register_fake("block_subtract_project")
def _(Q: Tensor, W: Tensor, C: Tensor) -> Tensor:
    return W.new_empty((W.shape[0], Q.shape[0]), dtype=torch.float64)


@register_fake("block_subtract")
def _(Q: Tensor, W: Tensor, C: Tensor) -> None:
    return None


@register_fake("block_combine")
def _(Q: Tensor, S: Tensor, out: Tensor) -> None:
    return None
