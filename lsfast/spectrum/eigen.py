"""Extreme eigenpairs by thick-restart Lanczos."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum.probes import check_symmetric, dots, draw, normalize, real_operator
from lsfast.spectrum.recurrence import breakdown_tolerance

WHICH = ("LM", "LA", "SA", "BE")


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of a symmetric operator, in the order `eigsh` says.

    Attributes
    ----------
    values
        [k] float64: Rayleigh quotients of the vectors, from products with the operator.
    vectors
        [k, n] orthonormal rows in the dtype of the operator.
    residuals
        [k] float64: |A v - value v|, from the same products. There is an eigenvalue of A within this of the value.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class _KrylovSpace:
    """An orthonormal basis Q [size, n] that grows by products with A, and H = Q A Q' in float64."""

    def __init__(self, A: LinearOperator, dimension: int, seed: int) -> None:
        self.A, self.seed, self.products, self.drawn = A, seed, 0, 0
        self.rows = torch.zeros(1, dimension, A.shape[0], dtype=A.dtype, device=A.device)
        self.H = torch.zeros(dimension, dimension, dtype=torch.float64)
        self.size = 0
        self.coupling = 0.0  # |r| in A Q' = Q' H + r e'
        self.norm = 0.0  # running estimate of |A|
        self.next = self.fresh_vector()

    def fresh_vector(self) -> Tensor:
        """Return a random unit vector [1, n] orthogonal to the basis."""
        vector = normalize(draw(self.A, self.drawn, 1, self.seed, "gaussian"))
        self.drawn += 1
        for _ in range(2):  # the first pass may cancel much of it; the second then has all that rounding left
            ops.basis_subtract_norm(self.rows, vector, ops.basis_project(self.rows, vector, self.size))
            vector = normalize(vector)
        return vector

    def expand(self, size: int) -> None:
        """Grow to `size` vectors; an invariant subspace is left by a random vector."""
        n = self.A.shape[0]
        while self.size < size:
            j = self.size
            self.rows[:, j] = self.next
            self.size += 1
            product = self.A.apply(self.next)
            self.products += 1
            first = ops.basis_project(self.rows, product, self.size)
            w = torch.empty_like(product)
            second = ops.basis_subtract_project(self.rows, product, first, w)
            norm_squared = ops.basis_subtract_norm(self.rows, w, second)
            column = torch.cat([(first + second)[0], norm_squared.sqrt()]).cpu()
            if not bool(column.isfinite().all()):
                raise ValueError(f"eigsh: A must give finite products, got NaN or Inf in product {self.products - 1}")
            self.H[:j, j] = self.H[j, :j] = column[:j]
            self.H[j, j] = column[j]
            self.coupling = float(column[-1])
            self.norm = max(self.norm, float(column.abs().sum()))
            if self.size == n:
                self.coupling = 0.0
            elif self.coupling <= breakdown_tolerance(self.A) * self.norm:
                self.coupling = 0.0
                self.next = self.fresh_vector()
            else:
                self.next = normalize(w)

    def restart(self, values: Tensor, combinations: Tensor) -> None:
        """Keep the Ritz pairs ``values`` [p] whose vectors are the rows ``combinations`` [p, size] of the basis."""
        p = values.numel()
        self.rows[0, :p] = self.vectors(combinations)
        self.H.zero_()
        self.H.diagonal()[:p] = values
        self.size = p

    def vectors(self, combinations: Tensor) -> Tensor:
        """Vectors [p, n] from coefficients [p, size]."""
        return combinations.to(self.rows) @ self.rows[0, : self.size]


def _by_preference(values: Tensor, which: str) -> Tensor:
    """Return the indices of ascending values, the most wanted first."""
    count = values.numel()
    if which == "LM":
        return values.abs().argsort(descending=True, stable=True)
    if which == "LA":
        return torch.arange(count - 1, -1, -1)
    if which == "SA":
        return torch.arange(count)
    ends = torch.stack([torch.arange(count - 1, -1, -1), torch.arange(count)], 1)  # BE: high, low, high, low, ...
    return ends.flatten()[:count]


def eigsh(
    A: Any, k: int = 6, which: str = "LM", tolerance: float | None = None, max_steps: int | None = None, seed: int = 0
) -> Eigenpairs:
    """Compute extreme eigenpairs ``A v = lambda v`` of a symmetric operator by thick-restart Lanczos.

    A Krylov space is grown with full reorthogonalization, its best Ritz pairs are kept, and it is grown again (Wu &
    Simon, SIAM J. Matrix Anal. Appl. 22, 2000).

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    k
        Number of pairs, 1..n.
    which
        "LM": largest magnitude, in descending order of it. "LA": largest, descending. "SA": smallest, ascending.
        "BE": half from each end (one more from the high end if k is odd), ascending.
    tolerance
        A pair has converged when its estimated residual is below `tolerance` times the largest Ritz magnitude. None:
        the 2/3 power of the machine epsilon, 4e-11 in float64 and 2e-5 in float32.
    max_steps
        Largest number of products with `A`, at least k; two more check its symmetry and k more make the residuals.
        None: 50 times the dimension of the Krylov space, which is 24 or 2k + 8, whichever is more, and at most n.
    seed
        Of the start vector.

    Returns
    -------
    Eigenpairs
        values [k] and residuals [k] in float64, vectors [k, n]. If `max_steps` was too few, a RuntimeWarning says so,
        and the residuals say how far each pair is from one.

    Raises
    ------
    ValueError
        If an argument is not what it should be, `A` is found not to be symmetric, or a product holds NaN or Inf.

    Notes
    -----
    A Krylov space sees one vector of each eigenspace. So a space found invariant is left by a random vector, and
    converged pairs are confirmed by growing the space once more from a random vector: another copy of a repeated
    eigenvalue then appears, unless it is too weak in that vector to stand out after the vectors of one restart.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([5.0, -7.0, 1.0, 2.0], dtype=torch.float64))
    >>> lsfast.eigsh(A, k=2).values
    tensor([-7.,  5.], dtype=torch.float64)
    """
    operator = real_operator("eigsh", aslinearoperator(A))
    n = operator.shape[0]
    checks.positive_integer("eigsh", "k", k)
    if k > n:
        raise ValueError(f"eigsh: k must be at most n = {n}, got {k}")
    checks.one_of("eigsh", "which", which, WHICH)
    if tolerance is None:
        tolerance = torch.finfo(operator.dtype).eps ** (2 / 3)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise TypeError(f"eigsh: tolerance must be a number, got {tolerance!r}")
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"eigsh: tolerance must lie between 0 and 1, got {tolerance}")
    dimension = min(n, max(24, 2 * k + 8))
    limit = 50 * dimension if max_steps is None else checks.positive_integer("eigsh", "max_steps", max_steps, least=k)
    checks.seed("eigsh", seed)
    check_symmetric("eigsh", operator)

    space = _KrylovSpace(operator, min(dimension, limit), seed)
    dimension = space.rows.shape[1]
    confirmed: Tensor | None = None  # wanted values at the last convergence
    while True:
        space.expand(min(dimension, space.size + limit - space.products))
        values, S = torch.linalg.eigh(space.H[: space.size, : space.size])
        order = _by_preference(values, which)
        wanted = order[:k]
        largest = float(values.abs().max())
        estimates = space.coupling * S[-1, wanted].abs()
        converged = bool((estimates <= tolerance * largest).all())
        unchanged = confirmed is not None and float((values[wanted] - confirmed).abs().max()) <= 2 * tolerance * largest
        if space.size == n or (converged and unchanged) or space.products >= limit:
            break
        # A random vector in place of the residual drops what couples the pairs to it: only converged ones may stay.
        kept = wanted if converged else order[: k + (dimension - k) // 2]
        space.restart(values[kept], S[:, kept].T)
        if converged:
            confirmed = values[wanted]
            space.next = space.fresh_vector()
    if not converged:
        missing = int((estimates > tolerance * largest).sum())
        warnings.warn(
            f"eigsh: {missing} of {k} pairs did not converge to {tolerance:.1e} in {space.products} products; "
            "their residuals are returned",
            RuntimeWarning,
            stacklevel=2,
        )
    return _measured_pairs(operator, space.vectors(S[:, wanted].T), which)


def _measured_pairs(A: LinearOperator, vectors: Tensor, which: str) -> Eigenpairs:
    """Rayleigh quotients and residuals of unit ``vectors`` [k, n] from products with A, in the order of `which`."""
    vectors = normalize(vectors)
    products = A.apply(vectors)
    values = dots(vectors, products) / dots(vectors, vectors)
    residuals = torch.empty_like(values)
    for i in range(values.numel()):
        difference = (products[i].double() - values[i] * vectors[i].double())[None]
        residuals[i] = dots(difference, difference)[0].sqrt()
    order = values.argsort(stable=True)
    if which in ("LM", "LA"):
        order = order[_by_preference(values[order].cpu(), which).to(order.device)]
    return Eigenpairs(values[order], vectors[order], residuals[order])
