"""Nodes and weights of the Gauss quadrature that belongs to a Lanczos run."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import ops
from lsfast.spectrum.recurrence import Tridiagonal


def quadrature(function: str, T: Tridiagonal) -> tuple[Tensor, Tensor]:
    """Nodes and weights [k, m]: eigenvalues of T, ascending, and squared first components of its eigenvectors.

    Then ``sum_i weights_i nodes_i^j = q' A^j q`` up to j = 2m - 1, for the normalized start vector q. A probe that
    ended early repeats its last node with weight 0. Float64; Golub & Welsch, Math. Comp. 23 (1969).
    """
    k, m = T.alpha.shape
    beta = torch.zeros_like(T.alpha)
    beta[:, : m - 1] = T.beta
    nodes, weights, failed = ops.tridiagonal_eigen(T.alpha, beta, T.steps)
    unsolved = failed.nonzero().flatten().tolist()
    if unsolved:
        raise RuntimeError(f"{function}: the tridiagonal eigensolver did not converge for probe {unsolved[0]} of {k}")
    return nodes, weights
