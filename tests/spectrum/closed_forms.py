"""Matrices whose spectrum, determinant and inverse have closed forms, and operators that count their products."""

from __future__ import annotations

import torch
from torch import Tensor

import lsfast


def toeplitz(n: int) -> Tensor:
    """tridiag(-1, 2, -1) [n, n]: eigenvalues 2 - 2 cos(j pi / (n + 1)), determinant n + 1."""
    return 2 * torch.eye(n).double() - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)


def toeplitz_eigenvalues(n: int) -> Tensor:
    return 2 - 2 * torch.cos(torch.arange(1, n + 1).double() * torch.pi / (n + 1))


def toeplitz_inverse(n: int) -> Tensor:
    """min(i, j) (n + 1 - max(i, j)) / (n + 1), counted from 1."""
    i = torch.arange(1, n + 1).double()
    return torch.minimum(i[:, None], i) * (n + 1 - torch.maximum(i[:, None], i)) / (n + 1)


def stencil(n: int) -> lsfast.LinearOperator:
    """The Toeplitz matrix as elementwise arithmetic: a row's product does not depend on the other rows, to the bit."""

    def product(rows: Tensor) -> Tensor:
        result = 2 * rows
        result[:, 1:] -= rows[:, :-1]
        result[:, :-1] -= rows[:, 1:]
        return result

    return lsfast.aslinearoperator(product, n=n, dtype=torch.float64)


def laplacian(edges: Tensor) -> Tensor:
    """Laplacian [n, n] of the graph with the symmetric adjacency matrix ``edges`` [n, n]."""
    return torch.diag(edges.sum(1)) - edges


def cycle(n: int) -> Tensor:
    """Adjacency of a cycle: its Laplacian has the eigenvalues 2 - 2 cos(2 pi j / n), and it has n spanning trees."""
    shift = torch.eye(n).double().roll(1, 0)
    return shift + shift.T


def complete(n: int) -> Tensor:
    """Adjacency of the complete graph: n^(n - 2) spanning trees (Cayley)."""
    return torch.ones(n, n).double() - torch.eye(n)


def bipartite(p: int, q: int) -> Tensor:
    """Adjacency of the complete bipartite graph: p^(q - 1) q^(p - 1) spanning trees."""
    edges = torch.zeros(p + q, p + q).double()
    edges[:p, p:] = edges[p:, :p] = 1.0
    return edges


def rotated(values: Tensor, seed: int = 5) -> Tensor:
    """A symmetric matrix [n, n] with the given eigenvalues in a random basis."""
    n = values.numel()
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double()).Q
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def counted(A: Tensor) -> tuple[lsfast.LinearOperator, list[int]]:
    """`A` as an operator, and a list that grows by the number of vectors of each of its products."""
    used: list[int] = []

    def product(rows: Tensor) -> Tensor:
        used.append(rows.shape[0])
        return (A @ rows.T).T.contiguous()

    return lsfast.aslinearoperator(product, n=A.shape[0], dtype=A.dtype), used
