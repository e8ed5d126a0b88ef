"""Stochastic estimates of the trace, of the whole and of the parameters' blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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
    checks.one_of("trace", "method", method, METHODS)
    samples = []
    for first, rows, products in _probes("trace", A, num_products, seed, distribution):
        values = probe_vectors.dots(rows, products)
        _require_finite("trace", first, values)
        samples.append(values)
    return estimate_number(torch.cat(samples))


def parameter_traces(
    A: Any, num_products: int = 64, seed: int = 0, distribution: str = "rademacher"
) -> dict[str, Estimate[float]]:
    """Trace of the diagonal block of every named parameter, all from the same products.

    Of v' A v the part that belongs to a parameter p, ``v_p' (A v)_p``, has the trace of the block of p as its mean; the
    parts of all parameters add up to what `trace` finds from the same probes.

    Parameters
    ----------
    A
        An operator on named parameters: of an objective, a block of one, or a combination of such.
    num_products, seed, distribution
        As of `trace`.

    Returns
    -------
    dict
        Name -> estimate, in the order of the parameters.

    Raises
    ------
    ValueError
        If `A` has no named parameters, another argument is not what it should be, or a product holds NaN or Inf.

    Examples
    --------
    >>> lsfast.parameter_traces(lsfast.HessianOperator(objective), num_products=16)["0.weight"].value
    3.17
    """
    operator = aslinearoperator(A)
    if not operator.parts:
        raise ValueError(f"parameter_traces: A must have named parameters, got {type(A).__name__}")
    samples: dict[str, list[Tensor]] = {name: [] for name in operator.parts}
    for first, rows, products in _probes("parameter_traces", operator, num_products, seed, distribution):
        for name, part in operator.parts.items():
            values = probe_vectors.dots(rows[:, part].contiguous(), products[:, part].contiguous())
            _require_finite("parameter_traces", first, values)
            samples[name].append(values)
    return {name: estimate_number(torch.cat(values)) for name, values in samples.items()}


def _probes(
    function: str, A: Any, num_products: int, seed: int, distribution: str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (number of the first probe, probes, products), as many at once as fit a fixed memory."""
    operator = probe_vectors.real_operator(function, aslinearoperator(A))
    checks.positive_integer(function, "num_products", num_products)
    checks.seed(function, seed)
    checks.one_of(function, "distribution", distribution, probe_vectors.DISTRIBUTIONS)
    chunk = max(1, min(64, _CHUNK_BYTES // (operator.shape[0] * operator.dtype.itemsize)))
    for first in range(0, num_products, chunk):
        rows = probe_vectors.draw(operator, first, min(chunk, num_products - first), seed, distribution)
        yield first, rows, operator.apply(rows)


def _require_finite(function: str, first: int, values: Tensor) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{function}: A must give finite products, got NaN or Inf in product {first + bad[0]}")
