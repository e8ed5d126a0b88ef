"""Stochastic estimates of the diagonal and of the sum of its squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast.estimate import Estimate
from lsfast.spectrum.products import gram, probe_products, sampled_operator

_GROUPS = 8  # independent estimates of the diagonal whose products are averaged


def diagonal(A: Any, num_products: int = 64, seed: int = 0, distribution: str = "rademacher") -> Estimate[Tensor]:
    """Diagonal of an operator from products with random vectors: ``sum_k v_k * (A v_k) / sum_k v_k * v_k``, by entry.

    Parameters
    ----------
    A
        An operator, or what `aslinearoperator` takes, in float32 or float64. It need not be symmetric.
    num_products
        Number m of products with `A`. Five running sums of n float64 numbers are kept, not the products.
    seed
        Probe k depends on (seed, k) alone.
    distribution
        Of the entries of v: "rademacher" (signs; the variance of entry i is the sum of a_ij^2 over j != i, divided by
        m) or "gaussian" (divided by m - 2; infinite for two products or fewer). With signs the diagonal of a diagonal
        matrix is exact.

    Returns
    -------
    Estimate
        ``value`` [n] and ``stderr`` [n], float64, in the units of `A`: unbiased entries, each with its standard error,
        that of a mean (signs) or of a ratio of sums (Gaussian: to first order in 1/m). NaN for one product.

    Raises
    ------
    ValueError
        If an argument is not what it should be, or a product holds NaN or Inf: the message names it.

    Notes
    -----
    Bekas, Kokiopoulou & Saad, Appl. Numer. Math. 57 (2007). Divided by the running sums the entries stay unbiased for
    Gaussian probes, as v_j is independent of all v_i, and of mean 0.

    Examples
    --------
    >>> lsfast.diagonal(torch.diag(torch.tensor([1.0, 2.0, 3.0])), num_products=4).value
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    operator = sampled_operator("diagonal", A, num_products, seed, distribution)
    # With x = v * (Av) and z = v * v the ratio D = sum x / sum z and the sums of (x - D z)^2, (x - D z) z and z^2. All
    # are moved along when D moves, so that no two large sums are subtracted for a small variance.
    ratio, weight, squares, mixed, moments = torch.zeros(
        5, operator.shape[0], dtype=torch.float64, device=operator.device
    )
    least = torch.finfo(torch.float64).tiny  # a sum of no weight yet has nothing to divide: 0 over this
    for rows, products in probe_products("diagonal", operator, num_products, seed, distribution):
        for row, product in zip(rows, products, strict=True):
            probe = row.double()
            z = probe * probe
            residual = torch.addcmul(probe * product, ratio, z, value=-1.0)
            weight += z
            squares.addcmul_(residual, residual)
            mixed.addcmul_(residual, z)
            moments.addcmul_(z, z)
            step = residual / weight.clamp_min(least)
            squares.addcmul_(step, torch.addcmul(2.0 * mixed, step, moments, value=-1.0), value=-1.0)
            mixed.addcmul_(step, moments, value=-1.0)
            ratio += step
    if num_products == 1:
        return Estimate(ratio, torch.full_like(ratio, float("nan")))
    factor = num_products / (num_products - 1)
    return Estimate(ratio, (squares.clamp_min(0.0) * factor).sqrt() / weight.clamp_min(least))


def diagonal_squared_sum(A: Any, num_products: int = 64, seed: int = 0) -> Estimate[float]:
    """Sum of the squares of the diagonal, ``sum_i a_ii^2``, from independent estimates of the diagonal.

    The square of one estimate holds the variance of its noise; the product of two independent ones does not. Probes of
    signs are dealt out to 8 groups, or as many as there are; each group estimates the diagonal, and the inner products
    d_a' d_b of these estimates are averaged over all pairs a < b.

    Parameters
    ----------
    A
        An operator, or what `aslinearoperator` takes, in float32 or float64. It need not be symmetric.
    num_products
        Number of products with `A`, 2 or more. Eight vectors of n float64 numbers are kept.
    seed
        Probe k depends on (seed, k) alone.

    Returns
    -------
    Estimate
        ``value`` and ``stderr``, floats, in the units of `A` squared. Unbiased; it may be negative where noise
        dominates. The standard error is the jackknife's over the groups, which errs on the side of caution: its square
        is at most 7/3 of the variance in the mean, and as large as the variance where the diagonal dominates. NaN for
        two products.

    Raises
    ------
    ValueError
        If an argument is not what it should be, or a product holds NaN or Inf: the message names it.

    Examples
    --------
    >>> lsfast.diagonal_squared_sum(torch.diag(torch.tensor([1.0, 2.0, 3.0])), num_products=4)
    Estimate(value=14.0, stderr=0.0)
    """
    operator = sampled_operator("diagonal_squared_sum", A, num_products, seed, least=2)
    groups = min(_GROUPS, num_products)
    means = torch.zeros(groups, operator.shape[0], dtype=torch.float64, device=operator.device)
    counts, k = [0] * groups, 0
    for rows, products in probe_products("diagonal_squared_sum", operator, num_products, seed, "rademacher"):
        for probe, product in zip(rows, products, strict=True):
            group = k % groups
            counts[group] += 1
            means[group] += ((probe * product).double() - means[group]) / counts[group]
            k += 1
    products_of_groups = gram(means, means)
    with_group = products_of_groups.sum(0) - products_of_groups.diagonal()
    total = float(with_group.sum())
    value = total / (groups * (groups - 1))
    if groups == 2:
        return Estimate(value, float("nan"))
    without = (total - 2.0 * with_group) / ((groups - 1) * (groups - 2))
    return Estimate(value, float(without.std() * (groups - 1) / groups**0.5))
