"""The Lanczos recurrence for k start vectors in lockstep, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum.basis import Basis, Plan, plan
from lsfast.spectrum.probes import check_starts, check_symmetric, normalize, real_operator
from lsfast.spectrum.ritz import ConvergedVectors

_TABLES = ("alpha", "beta", "scale", "defect", "steps_taken")


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
        Orthonormal rows Q [k, m, n] in the dtype of the basis (a view: the probes of a step lie together); None if
        they were not kept.
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


def breakdown_tolerance(A: LinearOperator) -> float:
    """Return what rounding leaves of a product that lies in the span of the basis, relative to |A|; see `lanczos`."""
    return float(torch.finfo(A.dtype).eps * min(A.shape[0], 1024) ** 0.5)


class Recurrence:
    """The recurrence of `lanczos` on arguments that have been checked; `first_probe` numbers errors.

    A step multiplies by A once and reads the basis once: what makes a vector orthogonal is subtracted a step late,
    while the rows are in cache for the projections of the next vector, and what it does to that product is known from
    T (csrc/spectrum/recurrence.h). Nothing waits for the device, except to select Ritz vectors.
    """

    def __init__(
        self, function: str, A: LinearOperator, start: Tensor, steps: int, plan: Plan, first_probe: int = 0
    ) -> None:
        k, n = start.shape
        self.function, self.A, self.plan, self.first_probe = function, A, plan, first_probe
        self.steps, self.step = steps, 0
        # n orthonormal vectors leave no room for another.
        self.taken = min(steps, n) if plan.reorthogonalize == "full" else steps
        device, work = start.device, plan.working
        self.alpha, self.beta, self.scale = (
            torch.zeros((k, steps), dtype=torch.float64, device=device) for _ in range(3)
        )
        self.defect = torch.zeros((k, steps), dtype=torch.float64, device=device)
        self.steps_taken = torch.zeros(k, dtype=torch.int64, device=device)
        self.sums: Tensor  # of the last pass
        self.basis: Basis | None = None
        if plan.reorthogonalize != "none":
            self.basis = Basis(plan, steps, k, n)
        # Where rows are kept as the recurrence needs them, a vector is born in its row.
        self.in_rows = self.basis is not None and not plan.staged and plan.dtype == work
        self.narrow = self.basis is not None and plan.dtype.itemsize < work.itemsize
        self.tolerance = breakdown_tolerance(A)
        if self.narrow:  # a vector of this length is made of what subtracting rounded rows twice leaves
            self.tolerance = max(self.tolerance, torch.finfo(plan.dtype).eps ** 2)
        self.ring = torch.zeros((1 if self.in_rows else 3, k, n), dtype=work, device=device)
        self.converged = ConvergedVectors(A) if plan.reorthogonalize == "selective" else None
        self.vector(0).copy_(normalize(start.detach().to(work).contiguous()))

    def vector(self, index: int) -> Tensor:
        """Vector `index` of the recurrence [k, n]: the current one, the one before or the next."""
        if self.in_rows and index < self.taken:
            assert self.basis is not None
            return self.basis.pieces[0][index]
        return self.ring[index % len(self.ring)]

    def advance(self) -> None:
        """Take one step."""
        j, full = self.step, self.plan.reorthogonalize == "full"
        current, following = self.vector(j), self.vector(j + 1)
        previous = self.vector(j - 1) if j > 0 else None
        product = self.A.apply(current.to(self.A.dtype)).to(current.dtype)
        dots = ops.row_dots(current, product)
        ritz, count = None, j if full else 0
        if self.converged is not None and self.converged.values is not None:
            ritz, count = self.converged.values, self.converged.values.shape[1]
        factors = ops.lanczos_begin(dots, self.defect, self.alpha, self.beta, ritz, j, count)
        self.sums = self._pass(j, current, product, previous, following, factors, store=not self.in_rows)
        if self.narrow or self.converged is not None:
            # What is left is not of the order of the vectors' own rounding, or not subtracted in the next step.
            factors[:, 3] += self.sums[:, count]
            self.sums = self._subtract(j, factors[:, 0] != 0.0)
        ops.lanczos_end(
            factors, self.sums, following, self.alpha, self.beta, self.scale, self.steps_taken, self.defect,
            j, full, j + 1 == self.taken, self.tolerance,
        )  # fmt: skip
        self.step = j + 1
        if self.step == self.taken < self.steps:
            self.beta[:, self.taken - 1] = 0.0  # the space is exhausted
        if self.alpha.device.type == "cpu" or self.step == self.taken:
            self._check_finite()
        if self.converged is not None and self.step < self.taken:
            assert self.basis is not None
            self.converged.update(self.basis.pieces[0], self.alpha, self.beta, self.scale, self.steps_taken, self.step)
            self.converged.project(self.vector(self.step), self.defect)

    def run(self) -> Recurrence:
        """Take the steps that are left."""
        while self.step < self.taken:
            self.advance()
        return self

    def result(self) -> Tridiagonal:
        """Return what `lanczos` returns, after the last step."""
        residual = self.vector(self.taken)
        if self.basis is not None and self.plan.reorthogonalize == "full":
            self._subtract(self.taken - 1, self.beta[:, self.taken - 1] > 0)
        rows = None if self.basis is None else self.basis.rows()
        beta = self.beta[:, : self.steps - 1]
        return Tridiagonal(self.alpha, beta, rows, residual.to(self.A.dtype), self.steps_taken)

    def _pass(
        self, step: int, current: Tensor, product: Tensor, previous: Tensor | None, following: Tensor, factors: Tensor,
        store: bool,
    ) -> Tensor:  # fmt: skip
        """Run the operator `lanczos_pass` on the rows that vectors are made orthogonal to."""
        if self.basis is not None and self.converged is None:
            return self.basis.lanczos_pass(current, product, previous, following, factors, step, store)
        rows = None if self.converged is None else self.converged.rows
        sums: Tensor = ops.lanczos_pass(current, product, previous, following, rows, None, factors)
        if self.basis is not None and store:
            self.basis.pieces[0][step].copy_(current)
        return sums

    def _subtract(self, step: int, live: Tensor) -> Tensor:
        """Subtract the projections of the vector after `step` on rows and current vector at once; return those left."""
        current, following = self.vector(step), self.vector(step + 1)
        count = self.sums.shape[1] - 2
        factors = self.sums.new_zeros(len(current), 4 + 2 * count)
        factors[:, 0] = live
        factors[:, 1] = self.sums[:, count] * live
        factors[:, 4 + count :] = self.sums[:, :count] * live[:, None]
        return self._pass(step, current, following, None, following, factors, store=False)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return all that the steps to come depend on."""
        tables = {name: getattr(self, name) for name in _TABLES}
        tables |= {"step": torch.tensor(self.step), "ring": self.ring}
        if self.basis is not None:
            kept = self.step + 1 if self.in_rows else self.step
            tables |= {f"basis {i}": piece[:kept] for i, piece in enumerate(self.basis.settled())}
        if self.converged is not None:
            tables |= self.converged.state()
        return tables

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for name in (*_TABLES, "ring"):
            getattr(self, name).copy_(state[name])
        self.step = int(state["step"])
        if self.basis is not None:
            for i, piece in enumerate(self.basis.pieces):
                kept = state[f"basis {i}"]
                piece[: len(kept)].copy_(kept)
        if self.converged is not None:
            self.converged.restore(state)

    def _check_finite(self) -> None:
        """Raise if a product was not finite, naming the first step at which one was not and its probe."""
        bad = ~(self.alpha.isfinite() & self.beta.isfinite())
        if bool(bad.any()):
            step, probe = min((step, probe) for probe, step in bad.nonzero().tolist())
            raise ValueError(
                f"{self.function}: A must give finite products, got NaN or Inf at step {step} of probe "
                f"{self.first_probe + probe}"
            )


def lanczos(
    A: Any,
    start: Tensor,
    steps: int,
    reorthogonalize: str = "full",
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    memory_limit: int | None = None,
) -> Tridiagonal:
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
        "full": every new vector is made orthogonal to all before it, by the recurrence and then once more by classical
        Gram-Schmidt, a step late, so that a step reads the basis once. "selective": to the converged Ritz vectors only
        (Parlett & Scott, Math. Comp. 33, 1979), looked for after every step; T is right to rounding without copies,
        the basis orthogonal to the root of epsilon. "none": three vectors are kept and `basis` is None; copies of
        converged eigenvalues appear ("ghosts").
    basis_dtype
        torch.float32, float64 or bfloat16; None: that of the operator. A wider one makes the recurrence in that type; a
        narrower one is what vectors are made orthogonal to, while the recurrence's own three keep their type.
    basis_device
        "cpu" keeps the basis of an operator on a GPU in host memory. None: with the operator.
    memory_limit
        Bytes that the basis and the vectors of the recurrence may take. None: half of what is free.

    Returns
    -------
    Tridiagonal
        alpha [k, m], beta [k, m - 1], basis [k, m, n] or None, residual [k, n], steps [k].

    Raises
    ------
    ValueError
        If `start` has a row of zeros or one that is not finite, if an argument is not what it should be, if the vectors
        do not fit `memory_limit`, if `A` is found not to be symmetric, or if a product holds NaN or Inf: the message
        names the step and the probe.

    Notes
    -----
    Under "full", basis vectors are orthogonal to a few epsilon of the basis's dtype: after the three-term recurrence a
    new vector w has projections of the order of epsilon |A| on the ones before; they are measured on w itself, to
    epsilon |w|, and subtracted (once is enough after the recurrence as twice is without it: Giraud, Langou, Rozloznik &
    van den Eshof, Numer. Math. 101, 2005). Delaying the subtraction by a step follows Hernandez, Roman &
    Tomas, Parallel Comput. 33, 2007; the product with the vector not yet corrected is mended by A Q' = Q'T + r e'.

    A probe ends at the first beta below ``eps sqrt(min(n, 1024)) |T|``, where eps is the machine epsilon of the dtype
    and |T| the largest row sum so far: rounding leaves this much of a product that lies in the span of the basis. An
    error in an entry of a product grows with the root of the number of terms of its sum, up to the length at which
    matrix products sum in blocks (Golub & Van Loan, Matrix Computations, 10.1 and 10.3). Cutting such a beta moves no
    eigenvalue of T by more than beta. A basis in a narrower dtype is read twice a step, and a probe ends below
    ``eps^2 |T|`` of that dtype, 6e-5 |T| for bfloat16, if that is more.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> T = lsfast.lanczos(A, torch.ones(1, 3, dtype=torch.float64), steps=3)
    >>> round(T.alpha.sum().item(), 9)
    7.0
    """
    operator = real_operator("lanczos", aslinearoperator(A))
    checks.positive_integer("lanczos", "steps", steps)
    check_starts("lanczos", operator, start, "k")
    layout = plan("lanczos", operator, reorthogonalize, basis_dtype, basis_device, memory_limit)
    k, n = start.shape
    if layout.probes_at_once("lanczos", steps, n, k) < k:
        need = k * layout.bytes_of_probe(steps, n)
        raise ValueError(f"lanczos: memory_limit must be {need} bytes or more for {k} probes, got {layout.limit}")
    check_symmetric("lanczos", operator)
    return Recurrence("lanczos", operator, start, steps, layout).run().result()
