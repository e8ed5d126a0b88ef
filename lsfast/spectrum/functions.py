"""Traces of functions of an operator by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lsfast import checks
from lsfast.estimate import Estimate
from lsfast.spectrum.slq import spectral_density


def function_trace(
    A: Any, f: Callable[[Tensor], Tensor], probes: int = 8, steps: int = 64, seed: int = 0
) -> Estimate[float]:
    """Trace of f(A) of a symmetric operator: ``tr f(A) = n E[sum_i w_i f(lambda_i)]``.

    Nodes lambda_i and weights w_i are those of `spectral_density`, whose `function_trace` gives the same for more
    functions at no further product (Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38, 2017).

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    f
        Maps a float64 tensor of nodes to one of the same shape. Nodes lie inside the spectrum; a padded one has weight
        0, and what f makes of it does not count.
    probes, steps, seed
        As of `spectral_density`: probes * steps products, and two that check the symmetry.

    Returns
    -------
    Estimate
        ``value`` and ``stderr``, floats. The standard error is over probes. It does not tell the error of a quadrature
        with too few steps, which is 0 for polynomials up to degree 2 steps - 1 and falls geometrically in `steps` where
        f is analytic on the range of the spectrum.

    Raises
    ------
    TypeError
        If f is not callable.
    ValueError
        If f is not finite at a node, another argument is not what it should be, `A` is found not to be symmetric, or a
        product holds NaN or Inf.

    Examples
    --------
    >>> A = torch.diag(torch.arange(1.0, 101.0))
    >>> round(lsfast.function_trace(A, lambda x: x**2, probes=2, steps=8).value)
    338350
    """
    if not callable(f):
        raise TypeError(f"function_trace: f must be a function of nodes, got {type(f).__name__}")
    density = spectral_density(A, probes=probes, steps=steps, seed=seed)

    def finite(nodes: Tensor) -> Tensor:
        values = f(nodes)
        if isinstance(values, Tensor) and values.shape == nodes.shape:
            bad = ~values.isfinite() & (density.weights > 0)
            if bool(bad.any()):
                place = bad.nonzero()[0].tolist()
                value, node = float(values[tuple(place)]), float(density.nodes[tuple(place)])
                raise ValueError(f"function_trace: f must be finite at the nodes, got {value} at {node:.6g}")
        return values

    return density.function_trace(finite)


def logdet(A: Any, shift: float = 0.0, probes: int = 8, steps: int = 64, seed: int = 0) -> Estimate[float]:
    """Logarithm of the determinant: ``log det(A + shift I) = tr log(A + shift I)``, A + shift I positive definite.

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    shift
        Added to all eigenvalues. One run of `spectral_density` does for all shifts: its
        ``function_trace(lambda x: (x + shift).log())`` is what is returned.
    probes, steps, seed
        As of `spectral_density`: probes * steps products, and two that check the symmetry.

    Returns
    -------
    Estimate
        ``value`` and ``stderr``, floats. The standard error is over probes. A quadrature of too few steps errs to the
        high side, as all even derivatives of the logarithm are negative, by a part that falls with
        ((sqrt(c) - 1) / (sqrt(c) + 1))^(2 steps), c being the condition of A + shift I.

    Raises
    ------
    ValueError
        If A + shift I has a node that is not positive: the message names it, and a shift that makes all nodes
        positive. If another argument is not what it should be, `A` is found not to be symmetric, or a product holds
        NaN or Inf.

    Notes
    -----
    Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017). Nodes lie inside the spectrum: that all are positive does
    not prove that A + shift I is positive definite.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> round(lsfast.logdet(A).value, 9)  # log 8
    2.079441542
    """
    offset = checks.finite_number("logdet", "shift", shift)
    density = spectral_density(A, probes=probes, steps=steps, seed=seed)
    nodes = density.nodes[density.weights > 0]
    smallest = float(nodes.min())
    if smallest + offset <= 0.0:
        enough = (64.0 * density.epsilon * float(nodes.abs().max()) - 1.01 * smallest) or 1.0
        raise ValueError(
            f"logdet: A + shift I must be positive definite, got {smallest + offset:.3e} as its smallest node "
            f"(with shift = {offset:g}); shift = {enough:.3e} makes all nodes positive"
        )
    return density.function_trace(lambda x: (x + offset).log())
