"""Norms of an operator: Frobenius from random products, spectral from its largest eigenvalue."""

from __future__ import annotations

from typing import Any

import torch

from lsfast.estimate import Estimate, estimate_number
from lsfast.spectrum.eigen import eigsh
from lsfast.spectrum.probes import dots
from lsfast.spectrum.products import probe_products, sampled_operator


def frobenius_norm(A: Any, num_products: int = 64, seed: int = 0, distribution: str = "rademacher") -> Estimate[float]:
    """Frobenius norm of an operator, the root of the sum of squared entries: ``|A|_F^2 = E[|A v|^2]``.

    Parameters
    ----------
    A
        An operator, or what `aslinearoperator` takes, in float32 or float64. It need not be symmetric.
    num_products
        Number of products with `A`.
    seed
        Probe i depends on (seed, i) alone.
    distribution
        Of the entries of v: "rademacher" (signs) or "gaussian". The variance of |Av|^2 is that of `trace` for A'A.

    Returns
    -------
    Estimate
        ``value`` and ``stderr``, floats, in the units of `A`: the root of the mean of |Av|^2, which is unbiased for the
        square, and its standard error to first order (delta method), that of the mean over twice the root. NaN for one
        product.

    Raises
    ------
    ValueError
        If an argument is not what it should be, or a product holds NaN or Inf: the message names it.

    Examples
    --------
    >>> lsfast.frobenius_norm(torch.diag(torch.tensor([2.0, 3.0, 6.0])), num_products=4)
    Estimate(value=7.0, stderr=0.0)
    """
    operator = sampled_operator("frobenius_norm", A, num_products, seed, distribution)
    chunks = probe_products("frobenius_norm", operator, num_products, seed, distribution)
    square = estimate_number(torch.cat([dots(products, products) for _, products in chunks]))
    norm = square.value**0.5
    return Estimate(norm, square.stderr / (2.0 * norm) if norm > 0.0 else square.stderr)


def spectral_norm(
    A: Any, tolerance: float | None = None, max_steps: int | None = None, seed: int = 0
) -> Estimate[float]:
    """Spectral norm of a symmetric operator: the largest magnitude of an eigenvalue, by Lanczos.

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    tolerance, max_steps, seed
        As of `eigsh`, which finds the eigenpair: the residual to reach, relative to the norm, the largest number of
        products, and the seed of the start vector.

    Returns
    -------
    Estimate
        ``value``, the magnitude of the Rayleigh quotient of the vector found, and ``stderr``, its residual |A v - l v|
        from a true product: no standard error over probes but a bound. An eigenvalue lies within ``stderr`` of l, so
        the norm is at least ``value - stderr``; since a Rayleigh quotient exceeds no eigenvalue, also at least
        ``value`` itself, up to rounding. That no larger eigenvalue was missed is not certain: a random start vector
        misses one with a probability that falls geometrically with the steps.

    Raises
    ------
    ValueError
        What `eigsh` raises: if an argument is not what it should be, `A` is found not to be symmetric, or a product
        holds NaN or Inf.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([5.0, -7.0, 1.0, 2.0], dtype=torch.float64))
    >>> round(lsfast.spectral_norm(A).value, 9)
    7.0
    """
    pair = eigsh(A, k=1, which="LM", tolerance=tolerance, max_steps=max_steps, seed=seed)
    return Estimate(abs(float(pair.values[0])), float(pair.residuals[0]))
