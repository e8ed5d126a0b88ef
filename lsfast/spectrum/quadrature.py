"""Nodes and weights of the Gauss quadrature that belongs to a Lanczos run."""

from __future__ import annotations

from torch import Tensor

from lsfast._native import ops


def quadrature(function: str, alpha: Tensor, beta: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights [k, m] of k matrices T: eigenvalues, ascending, and squared first components of eigenvectors.

    Then ``sum_i weights_i nodes_i^j = q' A^j q`` up to j = 2m - 1, for the normalized start vector q. A probe that
    ended early repeats its last node with weight 0. T is tridiag(alpha [k, m], beta [k, m]) of size `steps` [k]; what
    lies beyond is not read. Float64; Golub & Welsch, Math. Comp. 23 (1969).
    """
    nodes, weights, failed = ops.tridiagonal_eigen(alpha, beta, steps)
    unsolved = failed.nonzero().flatten().tolist()
    if unsolved:
        raise RuntimeError(
            f"{function}: the tridiagonal eigensolver did not converge for probe {unsolved[0]} of {len(alpha)}"
        )
    return nodes, weights
