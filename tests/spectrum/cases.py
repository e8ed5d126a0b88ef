"""Matrices with a prescribed spectrum, shared by the tests of this room."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast.operator import LinearOperator, aslinearoperator

N = 120


def spectra() -> dict[str, Tensor]:
    """Eigenvalues [N] of each case, float64."""
    generator = torch.Generator().manual_seed(7)
    bulk = torch.linspace(-1.0, 1.0, N - 3, dtype=torch.float64)
    return {
        "outliers": torch.cat([torch.tensor([20.0, 35.0, 60.0], dtype=torch.float64), bulk]),
        "rank5": torch.cat([torch.arange(1.0, 6.0, dtype=torch.float64), torch.zeros(N - 5, dtype=torch.float64)]),
        "power_law": torch.logspace(-10, 0, N, dtype=torch.float64),
        "clusters": torch.repeat_interleave(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), N // 3)
        + 1e-3 * torch.rand(N, generator=generator, dtype=torch.float64),
        "indefinite": torch.randn(N, generator=generator, dtype=torch.float64),
        "repeated": torch.repeat_interleave(torch.linspace(-3.0, 4.0, N // 4, dtype=torch.float64), 4),
    }


NAMES = tuple(spectra())


def matrix(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """A dense symmetric matrix [N, N] with the spectrum `name`, in a random basis of eigenvectors."""
    generator = torch.Generator().manual_seed(11)
    Q = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64)).Q
    A = (Q * spectra()[name]) @ Q.T
    return ((A + A.T) / 2).to(dtype)


def large_spectra(n: int) -> dict[str, Tensor]:
    """Eigenvalues [n] at sizes where only products with the matrix are affordable; outliers come first."""
    generator = torch.Generator().manual_seed(7)
    signs = torch.randn(n, generator=generator, dtype=torch.float64)
    outliers = torch.tensor([100.0, 70.0, 40.0, 20.0, -30.0], dtype=torch.float64)
    return {
        "outliers": torch.cat([outliers, torch.linspace(-1.0, 1.0, n - 5, dtype=torch.float64)]),
        "clusters": torch.cat([outliers, 1.0 + 1e-4 * signs[: n // 2], 5.0 + 1e-4 * signs[n // 2 + 5 :]]),
        "rank_deficient": torch.cat([outliers, torch.zeros(n - 5, dtype=torch.float64)]),
        "power_law": torch.logspace(0, -10, n, dtype=torch.float64)
        .mul(100)
        .index_add(0, torch.arange(5), outliers.abs() * torch.tensor([3.0, 3.5, 5.0, 8.0, 4.0])),
        "indefinite": torch.cat([outliers, signs[5:]]),
    }


def reflected(eigenvalues: Tensor, dtype: torch.dtype = torch.float64) -> LinearOperator:
    """An operator with these eigenvalues whose eigenvectors are those of two reflections: none is a unit vector."""
    n = len(eigenvalues)
    d = eigenvalues.to(dtype)
    reflectors = torch.randn(2, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    first, second = (reflectors / reflectors.norm(dim=1, keepdim=True)).to(dtype)

    def reflect(rows: Tensor, by: Tensor) -> Tensor:
        return rows - 2 * (rows @ by)[:, None] * by

    def product(rows: Tensor) -> Tensor:
        return reflect(reflect(reflect(reflect(rows, first), second) * d, second), first)

    return aslinearoperator(product, n=n, dtype=dtype)


def starts(k: int, n: int = N, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(k, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tridiagonal_matrix(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.diag_embed(alpha) + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)
