"""The Lanczos recurrence for k start vectors in lockstep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum.probes import check_symmetric, normalize, real_operator

REORTHOGONALIZE = ("full", "none")


@dataclass(frozen=True)
class Tridiagonal:
    """What `lanczos` returns: T = tridiag(alpha, beta) for each of k probes, with ``A Q' - Q' T = residual e_m'``.

    Attributes
    ----------
    alpha
        Diagonals [k, m], float64.
    beta
        Off-diagonals [k, m - 1], float64, not negative.
    basis
        Orthonormal rows Q [k, m, n] in the dtype of the operator; None if they were not kept.
    residual
        What is left of the last product [k, n].
    steps
        Steps each probe took [k], int64. A probe that found an invariant subspace stops there: its later alpha, beta
        and basis vectors are 0.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor | None
    residual: Tensor
    steps: Tensor


def lanczos(A: Any, start: Tensor, steps: int, reorthogonalize: str = "full") -> Tridiagonal:
    """Lanczos recurrence ``A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}`` for k start vectors at once.

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    start
        Start vectors [k, n], of any length but 0.
    steps
        Number of steps m. It may exceed n: a probe ends where its vectors span an invariant subspace.
    reorthogonalize
        "full": every new vector is made orthogonal to all before it by classical Gram-Schmidt, twice (Giraud, Langou,
        Rozloznik & van den Eshof, Numer. Math. 101, 2005), which keeps m vectors for each probe. "none": three vectors
        are kept and `basis` is None; copies of converged eigenvalues appear ("ghosts").

    Returns
    -------
    Tridiagonal
        alpha [k, m], beta [k, m - 1], basis [k, m, n] or None, residual [k, n], steps [k].

    Raises
    ------
    ValueError
        If `start` has a row of zeros or one that is not finite, if an argument is not what it should be, if `A` is
        found not to be symmetric, or if a product holds NaN or Inf: the message names the step and the probe.

    Notes
    -----
    A probe ends at the first beta below ``eps sqrt(min(n, 1024)) |T|``, where eps is the machine epsilon of the dtype
    and |T| the largest row sum so far: rounding leaves this much of a product that lies in the span of the basis. An
    error in an entry of a product grows with the root of the number of terms of its sum, up to the length at which
    matrix products sum in blocks (Golub & Van Loan, Matrix Computations, 10.1 and 10.3). Cutting such a beta moves no
    eigenvalue of T by more than beta.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> T = lsfast.lanczos(A, torch.ones(1, 3, dtype=torch.float64), steps=3)
    >>> round(T.alpha.sum().item(), 9)
    7.0
    """
    operator = real_operator("lanczos", aslinearoperator(A))
    checks.positive_integer("lanczos", "steps", steps)
    checks.one_of("lanczos", "reorthogonalize", reorthogonalize, REORTHOGONALIZE)
    checks.like("lanczos", "start", start, operator.dtype, operator.device)
    n = operator.shape[0]
    if start.dim() != 2 or start.shape[0] == 0 or start.shape[1] != n:
        raise ValueError(f"lanczos: start must have shape [k, {n}] with k of 1 or more, got {list(start.shape)}")
    unusable = (~start.isfinite().all(1) | (start == 0).all(1)).nonzero().flatten().tolist()
    if unusable:
        raise ValueError(f"lanczos: start must have finite rows that are not 0, got row {unusable[0]} that is not so")
    check_symmetric("lanczos", operator)
    return run_lanczos("lanczos", operator, start, steps, reorthogonalize)


def breakdown_tolerance(A: LinearOperator) -> float:
    """Return what rounding leaves of a product that lies in the span of the basis, relative to |A|; see `lanczos`."""
    return float(torch.finfo(A.dtype).eps * min(A.shape[0], 1024) ** 0.5)


def run_lanczos(
    function: str,
    A: LinearOperator,
    start: Tensor,
    steps: int,
    reorthogonalize: str = "full",
    first_probe: int = 0,
    after_step: Callable[[], object] | None = None,
) -> Tridiagonal:
    """Run the recurrence of `lanczos` on arguments that have been checked; `first_probe` numbers errors."""
    k, n = start.shape
    full = reorthogonalize == "full"
    taken = min(steps, n) if full else steps  # n orthonormal vectors leave no room for another
    basis = start.new_zeros((k, steps if full else 2, n))
    alpha, beta, scale = (torch.zeros((k, steps), dtype=torch.float64, device=start.device) for _ in range(3))
    taken_by_probe = torch.zeros(k, dtype=torch.int64, device=start.device)
    w = normalize(start.detach().contiguous())
    basis[:, 0] = w
    tolerance = breakdown_tolerance(A)
    for step in range(taken):
        product = A.apply(w)
        if full:
            count, column, row = step + 1, step, step + 1
            projections = ops.basis_project(basis, product, count)
            corrections = ops.basis_subtract_project(basis, product, projections, w)
            norm_squared = ops.basis_subtract_norm(basis, w, corrections)
        else:  # vector j lies in row j % 2, where the next but one replaces it
            count, column, row = min(step + 1, 2), step % 2, (step + 1) % 2
            projections, corrections = ops.basis_project(basis, product, count), None
            norm_squared = ops.basis_subtract_norm(basis, w.copy_(product), projections)
        row = -1 if step + 1 == taken else row
        ops.lanczos_advance(
            w, basis, alpha, beta, scale, taken_by_probe, norm_squared, projections, corrections,
            column, step, row, tolerance,
        )  # fmt: skip
        if after_step is not None:
            after_step()
    if taken < steps:
        beta[:, taken - 1] = 0.0  # the space is exhausted
    _check_finite(function, alpha, beta, first_probe)
    return Tridiagonal(alpha, beta[:, : steps - 1], basis if full else None, w, taken_by_probe)


def _check_finite(function: str, alpha: Tensor, beta: Tensor, first_probe: int) -> None:
    """Raise if a product was not finite, naming the first step at which one was not and its probe."""
    bad = ~(alpha.isfinite() & beta.isfinite())
    if bool(bad.any()):
        step, probe = min((step, probe) for probe, step in bad.nonzero().tolist())
        raise ValueError(
            f"{function}: A must give finite products, got NaN or Inf at step {step} of probe {first_probe + probe}"
        )
