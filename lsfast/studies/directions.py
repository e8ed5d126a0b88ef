"""Directions along eigenvectors: the spectrum room's, for the landscape room."""

from __future__ import annotations

from typing import Any

from lsfast.landscape import Directions
from lsfast.spectrum import eigsh


def eigen_directions(H: Any, count: int = 2, which: str = "LM", seed: int = 0) -> Directions:
    """Return eigenvectors of a curvature operator as directions.

    They have length 1 and are not rescaled per filter or tensor: near the parameters the loss is, along the eigenvector
    of lambda, L + x g'd + lambda x^2 / 2.

    Parameters
    ----------
    H
        A Hessian, GGN or Fisher operator, or anything `lsfast.aslinearoperator` takes.
    count, which, seed
        `k`, `which` and `seed` of `lsfast.eigsh`.

    Returns
    -------
    Directions
        vectors [count, n] orthonormal, in the order of `eigsh`; origin None; labels with the eigenvalues.

    Warns
    -----
    RuntimeWarning
        By `eigsh`, if a pair has not converged.

    Raises
    ------
    TypeError, ValueError
        As `eigsh`.

    Examples
    --------
    >>> H = lsfast.HessianOperator(objective)
    >>> lsfast.loss_grid(objective, lsfast.eigen_directions(H), extent=0.5)
    """
    pairs = eigsh(H, count, which, seed=seed)
    labels = tuple(f"eigenvalue {value:.4g}" for value in pairs.values.tolist())
    return Directions(pairs.vectors, None, labels)
