"""Stochastic estimates of the trace, of the whole and of the parameters' blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.estimate import Estimate, estimate_number
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum.probes import dots
from lsfast.spectrum.products import probe_products, sampled_operator
from lsfast.spectrum.sketch import hutch_plus_plus, xtrace

_LEAST = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}  # products that each method needs
METHODS = tuple(_LEAST)


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
        An operator, or what `aslinearoperator` takes, in float32 or float64. It need not be symmetric.
    method
        "hutchinson": the mean of v'Av (Hutchinson, Commun. Stat. Simul. Comput. 19, 1990); the standard error falls
        with the root of the number of products.
        "hutch++": the trace on an orthonormal basis Q of products A S is exact, and Hutchinson's mean is taken of what
        is left, (I - QQ') A (I - QQ') (Meyer, Musco, Musco & Woodruff, SOSA 2021). The standard error falls with the
        number of products, and faster where the spectrum decays.
        "xtrace": every vector serves both ends. The mean over i of Hutch++ with a basis from all vectors but the i-th
        and that one as the sample (Epperly, Tropp & Webber, SIAM J. Matrix Anal. Appl. 45, 2024), with their
        normalization of the sample if `distribution` is "gaussian", which is the better choice here.
    num_products
        Number of products with `A`, never exceeded. "hutchinson": all are samples. "hutch++", 3 or more: a third each
        for A S, A Q and the samples, which also get what three does not divide. "xtrace", 4 or more: half for the
        products of the vectors, half for A Q. The last two need room for 2 n num_products numbers, are exact up to
        rounding where the basis spans the range of `A`, and from n products on return the trace itself, from products
        with the n unit vectors.
    seed
        Probe i depends on (seed, i) alone.
    distribution
        Of the entries of v: "rademacher" (signs; the variance of v'Av is twice the sum of squares off the diagonal, of
        a symmetric `A`) or "gaussian" (twice the sum of all squares).

    Returns
    -------
    Estimate
        ``value`` and ``stderr``, floats, in the units of `A`; unbiased. The standard error is that of the mean of the
        samples, and NaN for one sample. The samples of "xtrace" share their vectors and are not independent: its error
        is the paper's estimate, the standard deviation of the terms over the root of their number. In the mean over
        seeds it was about 0.7 to 1.2 times the spread on decaying and flat spectra, and a third of it in the worst case
        found, a spectrum that drops right after as many eigenvalues as there are vectors.

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
    operator = sampled_operator("trace", A, num_products, seed, distribution, least=1)
    if num_products < _LEAST[method]:
        raise ValueError(f"trace: num_products must be at least {_LEAST[method]} for {method!r}, got {num_products}")
    methods = {"hutchinson": _hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace}
    return methods[method](operator, num_products, seed, distribution)


def _hutchinson(A: LinearOperator, num_products: int, seed: int, distribution: str) -> Estimate[float]:
    chunks = probe_products("trace", A, num_products, seed, distribution)
    return estimate_number(torch.cat([dots(rows, products) for rows, products in chunks]))


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
    if not aslinearoperator(A).parts:
        raise ValueError(f"parameter_traces: A must have named parameters, got {type(A).__name__}")
    operator = sampled_operator("parameter_traces", A, num_products, seed, distribution)
    samples: dict[str, list[Tensor]] = {name: [] for name in operator.parts}
    for rows, products in probe_products("parameter_traces", operator, num_products, seed, distribution):
        for name, part in operator.parts.items():
            samples[name].append(dots(rows[:, part].contiguous(), products[:, part].contiguous()))
    return {name: estimate_number(torch.cat(values)) for name, values in samples.items()}
