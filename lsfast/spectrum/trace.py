"""Stochastic estimates of the trace."""

from __future__ import annotations

from typing import Any

import torch

from lsfast import checks
from lsfast.operator import aslinearoperator
from lsfast.spectrum import probes as probe_vectors
from lsfast.spectrum.estimate import Estimate, estimate_number

METHODS = ("hutchinson",)
_CHUNK_BYTES = 2**28  # of probes that are multiplied at once


def trace(
    A: Any,
    method: str = "hutchinson",
    num_products: int = 64,
    seed: int = 0,
    distribution: str = "rademacher",
) -> Estimate[float]:
    """Trace of an operator from products with random vectors: ``tr A = E[v' A v]``.

    Parameters
    ----------
    A
        An operator, or what `aslinearoperator` takes, in float32 or float64.
    method
        "hutchinson": the mean of v'Av (Hutchinson, Commun. Stat. Simul. Comput. 19, 1990).
    num_products
        Number of products with `A`.
    seed
        Probe i depends on (seed, i) alone.
    distribution
        Of the entries of v: "rademacher" (signs; the variance is twice the sum of squares off the diagonal) or
        "gaussian" (twice the sum of all squares).

    Returns
    -------
    Estimate
        ``value`` and ``stderr``, floats, in the units of `A`; the standard error is NaN for one product.

    Raises
    ------
    ValueError
        If an argument is not what it should be, or a product holds NaN or Inf: the message names it.

    Examples
    --------
    >>> lsfast.trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])), num_products=4)
    Estimate(value=6.0, stderr=0.0)
    """
    operator = probe_vectors.real_operator("trace", aslinearoperator(A))
    checks.one_of("trace", "method", method, METHODS)
    checks.positive_integer("trace", "num_products", num_products)
    checks.seed("trace", seed)
    checks.one_of("trace", "distribution", distribution, probe_vectors.DISTRIBUTIONS)
    size = operator.shape[0] * operator.dtype.itemsize
    chunk = max(1, min(64, _CHUNK_BYTES // size))
    samples = []
    for first in range(0, num_products, chunk):
        rows = probe_vectors.draw(operator, first, min(chunk, num_products - first), seed, distribution)
        samples.append(probe_vectors.dots(rows, operator.apply(rows)))
    values = torch.cat(samples)
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"trace: A must give finite products, got NaN or Inf in product {bad[0]}")
    return estimate_number(values)
