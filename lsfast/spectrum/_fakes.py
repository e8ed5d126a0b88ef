"""Shapes and dtypes of what the operators of the spectrum room return, for tracing without data."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast import _native as _native  # loads the operators that are described here


def _project(basis: Tensor, w: Tensor, count: int) -> Tensor:
    return w.new_empty((w.shape[0], count), dtype=torch.float64)


def _subtract_project(basis: Tensor, w: Tensor, coefficients: Tensor, out: Tensor) -> Tensor:
    return w.new_empty((w.shape[0], coefficients.shape[1]), dtype=torch.float64)


def _subtract_norm(basis: Tensor, w: Tensor, coefficients: Tensor) -> Tensor:
    return w.new_empty((w.shape[0],), dtype=torch.float64)


def _advance(*arguments: object) -> None:
    return None


def _tridiagonal_eigen(alpha: Tensor, beta: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(alpha), torch.empty_like(alpha), torch.empty_like(steps)


torch.library.register_fake("lsfast::basis_project", _project)
torch.library.register_fake("lsfast::basis_subtract_project", _subtract_project)
torch.library.register_fake("lsfast::basis_subtract_norm", _subtract_norm)
torch.library.register_fake("lsfast::lanczos_advance", _advance)
torch.library.register_fake("lsfast::tridiagonal_eigen", _tridiagonal_eigen)
