"""Linear systems by conjugate gradients, for k right-hand sides in lockstep."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum.probes import check_symmetric, dots, real_operator


@dataclass(frozen=True)
class Solution:
    """What `solve` returns, for one right-hand side [n] or k of them [k, n].

    Attributes
    ----------
    x
        Solutions, in the shape and dtype of b.
    residuals
        [k] float64 (no axis for one): |b - (A + shift I) x| / |b| from a true product with the x returned; 0 for b = 0.
    iterations
        [k] int64: steps taken, a product with `A` each.
    converged
        [k] bool: whether the residual is at most the tolerance.
    """

    x: Tensor
    residuals: Tensor
    iterations: Tensor
    converged: Tensor


def solve(
    A: Any,
    b: Tensor,
    shift: float = 0.0,
    tolerance: float | None = None,
    max_steps: int | None = None,
    start: Tensor | None = None,
) -> Solution:
    """Solve ``(A + shift I) x = b`` by conjugate gradients, A + shift I symmetric and positive definite.

    In exact arithmetic x is found in as many steps as A has distinct eigenvalues, and the error in the norm of
    A + shift I falls by 2 ((sqrt(c) - 1) / (sqrt(c) + 1))^m in m steps, c being its condition (Hestenes & Stiefel,
    J. Res. Natl. Bur. Stand. 49, 1952).

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    b
        Right-hand side [n], or rows [k, n], in the dtype and on the device of `A`. Each row stops on its own and does
        not depend on the others.
    shift
        Added to the diagonal of `A`.
    tolerance
        A right-hand side is done when |b - (A + shift I) x| is at most `tolerance` times |b|. None: the 2/3 power of
        the machine epsilon, 4e-11 in float64 and 2e-5 in float32.
    max_steps
        Largest number of steps for each right-hand side. None: 10 n, and at most 10,000.
    start
        First guess, in the shape of `b`; None: 0.

    Returns
    -------
    Solution
        x, residuals, iterations and converged. A RuntimeWarning tells of right-hand sides that did not converge.

    Raises
    ------
    ValueError
        If a direction d has d'(A + shift I)d of 0 or less, or a product holds NaN or Inf: the message names the step
        and the right-hand side. If an argument is not what it should be, or `A` is found not to be symmetric.

    Notes
    -----
    The residual that the recurrence updates goes on falling where rounding stops the true one, at about epsilon times
    the condition. So the true one is computed at the end, and where it is above the tolerance the iteration begins
    anew from x, as long as that divides the residual by 2 or more. Beside the k steps' products this costs one product
    each, one more for `start`, and two that check the symmetry.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> lsfast.solve(A, torch.ones(3, dtype=torch.float64), shift=1.0).x
    tensor([0.5000, 0.3333, 0.2000], dtype=torch.float64)
    """
    operator = real_operator("solve", aslinearoperator(A))
    n = operator.shape[0]
    checks.like("solve", "b", b, operator.dtype, operator.device)
    if b.dim() not in (1, 2) or b.shape[-1] != n or b.numel() == 0:
        raise ValueError(f"solve: b must have shape [{n}] or [k, {n}] with k of 1 or more, got {list(b.shape)}")
    offset = checks.finite_number("solve", "shift", shift)
    if tolerance is None:
        tolerance = torch.finfo(operator.dtype).eps ** (2 / 3)
    if not 0.0 < checks.finite_number("solve", "tolerance", tolerance) < 1.0:
        raise ValueError(f"solve: tolerance must lie between 0 and 1, got {tolerance}")
    limit = min(10 * n, 10_000) if max_steps is None else checks.positive_integer("solve", "max_steps", max_steps)
    rows = _finite_rows("b", b)
    if start is not None:
        checks.like("solve", "start", start, operator.dtype, operator.device)
        if start.shape != b.shape:
            raise ValueError(f"solve: start must have the shape {list(b.shape)} of b, got {list(start.shape)}")
    guess = torch.zeros_like(rows) if start is None else _finite_rows("start", start).clone()
    check_symmetric("solve", operator)

    scale = _powers_of_two(rows)
    system = _System(operator, offset, rows / scale, guess.div_(scale), tolerance, limit)
    system.run(from_zero=start is None)
    if not bool(system.converged.all()):
        warnings.warn(
            f"solve: {int((~system.converged).sum())} of {rows.shape[0]} right-hand sides did not converge to "
            f"{tolerance:.1e} in {int(system.steps.max())} steps; their residuals are returned",
            RuntimeWarning,
            stacklevel=2,
        )
    x = (system.x * scale).reshape(b.shape)
    results = (system.residuals, system.steps, system.converged)
    return Solution(x, *(result if b.dim() == 2 else result[0] for result in results))


def _finite_rows(name: str, tensor: Tensor) -> Tensor:
    rows = tensor.detach().reshape(-1, tensor.shape[-1]).contiguous()
    bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"solve: {name} must be finite, got NaN or Inf in row {bad[0]}")
    return rows


def _powers_of_two(rows: Tensor) -> Tensor:
    """Scales [k, 1] that bring the largest entries near 1, so that squares neither overflow nor vanish."""
    largest = -int(math.log2(torch.finfo(rows.dtype).tiny)) - 2
    exponents = torch.frexp(rows.abs().amax(1, keepdim=True)).exponent.clamp(-largest, largest)
    return torch.ldexp(torch.ones_like(exponents, dtype=rows.dtype), exponents)


class _System:
    """k scaled systems with their solutions so far; rows that are done take no more part in the products."""

    def __init__(self, A: LinearOperator, shift: float, b: Tensor, x: Tensor, tolerance: float, limit: int) -> None:
        self.A, self.shift, self.b, self.x, self.limit = A, shift, b, x, limit
        self.norms = dots(b, b).sqrt()
        self.target = (tolerance * self.norms) ** 2
        self.steps = torch.zeros(b.shape[0], dtype=torch.int64, device=b.device)
        self.x[self.norms == 0] = 0.0
        # Asking whether rows are done waits for a GPU, so there it is asked less often.
        self.interval = 8 if b.is_cuda else 1

    def run(self, from_zero: bool) -> None:
        """Iterate until each row has converged, has taken all its steps, or gains nothing by another beginning."""
        residual = self.b.clone() if from_zero else self._true_residual(slice(None))
        squares = dots(residual, residual)
        self._require_finite(squares)
        going = (squares > self.target) & (self.norms > 0)
        while bool(going.any()):
            rows = going.nonzero().flatten()
            self._iterate(rows, residual[rows])
            before = squares[rows]
            residual[rows] = self._true_residual(rows)
            squares[rows] = dots(residual[rows], residual[rows])
            self._require_finite(squares)
            gains = torch.zeros_like(going)
            gains[rows] = squares[rows] <= before / 4
            going = gains & (squares > self.target) & (self.steps < self.limit)
        self.residuals = torch.where(self.norms > 0, squares.sqrt() / self.norms, 0.0)
        self.converged = squares <= self.target

    def _iterate(self, rows: Tensor, r: Tensor) -> None:
        """Conjugate gradients for some rows with residuals `r`, until those of the recurrence are small enough."""
        x, target, steps = self.x[rows], self.target[rows], self.steps[rows]
        d, rr = r.clone(), dots(r, r)
        dd = rr.clone()  # |d|^2, by |r + b d|^2 = |r|^2 + b^2 |d|^2: r is orthogonal to the direction before
        lowest = torch.full_like(rr, float("inf"))  # Rayleigh quotient of the direction at which a row went wrong
        active = torch.ones_like(rows, dtype=torch.bool)
        count = 0
        while True:
            product = self._product(d)
            curvature = dots(d, product)
            sound = (curvature > 0) & curvature.isfinite()
            quotient = torch.where(curvature.isfinite(), curvature / dd, float("nan"))
            lowest = torch.where(active & ~sound, quotient, lowest)
            active = active & sound
            alpha = torch.where(active, rr / curvature, 0.0).to(d.dtype)[:, None]
            x.addcmul_(alpha, d)
            r.addcmul_(alpha, product, value=-1.0)
            steps += active
            new = dots(r, r)
            active = active & (new > target) & (steps < self.limit)
            beta = torch.where(active, new / rr, 0.0)
            d.mul_(beta.to(d.dtype)[:, None]).add_(r)
            dd, rr = new + beta**2 * dd, new
            count += 1
            if count % self.interval or bool(active.all()):
                continue
            self._require_positive(rows, steps, lowest)
            self.x[rows], self.steps[rows] = x, steps
            if not bool(active.any()):
                return
            rows, x, r, d = rows[active], x[active], r[active], d[active]
            target, steps, rr, dd, lowest = target[active], steps[active], rr[active], dd[active], lowest[active]
            active = active[active]

    def _product(self, d: Tensor) -> Tensor:
        product = self.A.apply(d)
        return torch.add(product, d, alpha=self.shift) if self.shift != 0.0 else product

    def _true_residual(self, rows: Tensor | slice) -> Tensor:
        return self.b[rows] - self._product(self.x[rows])

    def _require_positive(self, rows: Tensor, steps: Tensor, lowest: Tensor) -> None:
        """Raise for the row that went wrong first: `lowest` is finite or NaN there, and infinite elsewhere."""
        wrong = [
            (step, row, value)
            for step, row, value in zip(steps.tolist(), rows.tolist(), lowest.tolist(), strict=True)
            if value != math.inf
        ]
        if not wrong:
            return
        step, row, value = min(wrong, key=lambda entry: entry[:2])
        where = f"at step {step} of right-hand side {row}"
        if not math.isfinite(value):
            raise ValueError(f"solve: A must give finite products, got NaN or Inf {where}")
        raise ValueError(
            f"solve: A + shift I must be positive definite, got the curvature d'(A + shift I)d / d'd = {value:.3e} "
            f"{where}; shift must be above {self.shift - value:.3e} at least"
        )

    def _require_finite(self, squares: Tensor) -> None:
        bad = (~squares.isfinite()).nonzero().flatten().tolist()
        if bad:
            step = int(self.steps[bad[0]])
            raise ValueError(
                f"solve: A must give finite products, got NaN or Inf at step {step} of right-hand side {bad[0]}"
            )
