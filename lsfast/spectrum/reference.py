"""The Lanczos recurrence and its quadrature in plain torch, float64, one probe at a time: the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float = 1e-13
) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha [m], beta [m - 1] and the basis [m, n], with m <= steps: fewer if the space is exhausted.

    ``A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}``, every vector made orthogonal to all before it by
    modified Gram-Schmidt, twice. The recurrence ends at a beta below `tolerance` times the largest row sum of T.
    """
    basis = [start.double() / start.double().norm()]
    alpha: list[float] = []
    beta: list[float] = []
    scale = 0.0
    while True:
        w = product(basis[-1])
        alpha.append(float(basis[-1] @ w))
        for _ in range(2):
            for q in basis:
                w = w - (q @ w) * q
        length = float(w.norm())
        scale = max(scale, abs(alpha[-1]) + length + (beta[-1] if beta else 0.0))
        if len(alpha) == steps or length <= tolerance * scale or len(alpha) == start.numel():
            break
        beta.append(length)
        basis.append(w / length)
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64), torch.stack(basis)


def tridiagonal_quadrature(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [m] of T = tridiag(alpha, beta), ascending, and squared first components of its eigenvectors."""
    T = torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)
    nodes, vectors = torch.linalg.eigh(T)
    return nodes, vectors[0] ** 2
