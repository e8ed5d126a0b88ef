"""The block Krylov space that `eigsh` grows, restarts and locks pairs in."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import ops
from lsfast.operator import LinearOperator
from lsfast.spectrum.probes import draw, normalize
from lsfast.spectrum.recurrence import breakdown_tolerance

_CANCELLED = 0.1  # a vector shorter than this part of itself after orthogonalization is orthogonalized again


class BlockKrylovSpace:
    """Orthonormal rows Q, and the residual block Z of their products: ``A Q' = Q' H + Z' B``, all rows orthonormal.

    Growing moves vectors of Z into Q and appends what is new in their products to Z, so that the relation holds
    whatever number of them is taken (a band Lanczos process, with full orthogonalization). The first vectors of Q are
    locked: eigenvectors whose coupling to the others is dropped.

    Parameters
    ----------
    A
        The operator.
    dimension
        Most vectors Q may have.
    block
        Most vectors Z may have.
    seed
        Of the random vectors.

    Attributes
    ----------
    rows
        [dimension + block, n]: Q, then Z.
    size, width
        Number of vectors of Q and of Z.
    locked
        Values [locked] of the first vectors of Q, float64 on the CPU.
    H, B
        [size, size] and [width, size], float64 on the CPU.
    products
        Number of products so far.
    norm
        Running estimate of |A|.
    """

    def __init__(self, A: LinearOperator, dimension: int, block: int, seed: int) -> None:
        self.A, self.dimension, self.block, self.seed = A, dimension, block, seed
        self.rows = torch.empty(dimension + block, A.shape[0], dtype=A.dtype, device=A.device)
        self.size = self.width = self.products = self.drawn = 0
        self.norm = 0.0
        self.locked = torch.zeros(0, dtype=torch.float64)
        self.H = torch.zeros(0, 0, dtype=torch.float64)
        self.B = torch.zeros(0, 0, dtype=torch.float64)

    def begin(self, start: Tensor | None) -> None:
        """Make Z of the span of ``start`` [at most block, n] and random vectors; Q is the locked vectors."""
        self.width = 0
        if start is not None:
            held = self.rows[self.size : self.size + start.shape[0]]
            held.copy_(start)
            norms = torch.ones(start.shape[0], dtype=torch.float64, device=start.device)
            R = _orthonormalize(held, norms * breakdown_tolerance(self.A))
            self._keep_live(R.cpu(), self.size)
        self._complete(self.block)
        self.B = torch.zeros(self.width, self.size, dtype=torch.float64)

    def grow(self, most: int) -> None:
        """Move up to `most` vectors of Z into Q, with one batch of products and one wait for the device."""
        held, old = self.size + self.width, self.size
        taken = min(self.width, self.dimension - self.size, most)
        P = self.A.apply(self.rows[old : old + taken])
        new = self.rows[held : held + taken]
        new.copy_(P)
        del P
        Q = self.rows[:held]
        first = ops.block_project(Q, new)
        second = ops.block_subtract_project(Q, new, first)
        ops.block_subtract(Q, new, second)
        C = first + second
        lengths = ops.block_project(new, new).diagonal().sqrt()
        scale = (C.abs().sum(1) + lengths).max().clamp(min=self.norm)
        R = _orthonormalize(new, (breakdown_tolerance(self.A) * scale).expand(taken))
        measured = torch.cat([C, lengths[:, None], R], 1).cpu()
        bad = (~measured[:, : held + 1].isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"eigsh: A must give finite products, got NaN or Inf in product {self.products + bad[0]}")
        C, lengths, R = measured[:, :held], measured[:, held], measured[:, held + 1 :]
        left = R.diagonal()
        cancelled = bool(((left > 0.0) & (left < _CANCELLED * lengths)).any())
        self.products += taken
        self.norm = max(self.norm, float((C.abs().sum(1) + lengths).max()))
        self.size, self.width = old + taken, held - old - taken
        R = self._keep_live(R, held)
        if cancelled:
            self._polish(held)
        self._extend(C, R, old)
        self._complete(self.block)

    def _extend(self, C: Tensor, R: Tensor, old: int) -> None:
        """Enter the projections C [taken, held] and the triangle R [live, taken] of the columns from `old` in H, B."""
        locked, size = self.locked.numel(), self.size
        H = torch.zeros(size, size, dtype=torch.float64)
        H[:old, :old] = self.H
        H[locked:old, old:] = C[:, locked:old].T
        H[old:, locked:old] = C[:, locked:old]
        corner = C[:, old:size]
        H[old:, old:] = (corner + corner.T) / 2
        B = torch.zeros(self.width, size, dtype=torch.float64)
        left = self.width - R.shape[0]
        B[:left, :old] = self.B[size - old :]
        B[:left, old:] = C[:, size:].T
        B[left:, old:] = R
        self.H, self.B = H, B

    def _keep_live(self, R: Tensor, first: int) -> Tensor:
        """Move the rows from `first` whose diagonal of R is not 0 together, into Z; their rows of R."""
        live = (R.diagonal() > 0.0).nonzero().flatten().tolist()
        for i, row in enumerate(live):
            if i != row:
                self.rows[first + i] = self.rows[first + row]
        self.width += len(live)
        return R[live]

    def _polish(self, first: int) -> None:
        """Orthogonalize the last vectors of Z, from row `first`, once more: rounding was magnified in them."""
        Q, Z = self.rows[:first], self.rows[first : self.size + self.width]
        ops.block_subtract(Q, Z, ops.block_project(Q, Z))
        _orthonormalize(Z, torch.zeros(Z.shape[0], dtype=torch.float64, device=Z.device))

    def _complete(self, width: int) -> None:
        """Append random vectors orthogonal to all to Z, up to `width`, as far as the space has room for them."""
        missing = min(width, self.A.shape[0] - self.size) - self.width
        for _ in range(missing):
            held = self.size + self.width
            vector = normalize(draw(self.A, self.drawn, 1, self.seed, "gaussian"))
            self.drawn += 1
            for _ in range(2):  # the first pass may cancel much of it; the second then has all that rounding left
                if held:
                    ops.block_subtract(self.rows[:held], vector, ops.block_project(self.rows[:held], vector))
                vector = normalize(vector)
            self.rows[held] = vector[0]
            self.width += 1
        if missing > 0 and self.B.shape[0] < self.width:
            more = torch.zeros(self.width - self.B.shape[0], self.B.shape[1], dtype=torch.float64)
            self.B = torch.cat([self.B, more])

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values [a] ascending, vectors S [a, a] in columns and residuals [a] of the a vectors that are not locked."""
        locked = self.locked.numel()
        values, S = torch.linalg.eigh(self.H[locked:, locked:])
        return values, S, (self.B[:, locked:] @ S).norm(dim=0)

    def restart(self, stay: Tensor, values: Tensor, combinations: Tensor, lock: int, fresh: bool) -> None:
        """Keep some locked vectors and some combinations of the others.

        Parameters
        ----------
        stay
            Indices [l], ascending, of the locked vectors that stay.
        values, combinations
            Ritz values [p], and the coefficients [p, a] of their vectors, of which the first `lock` become locked.
        lock
            See above.
        fresh
            Whether Z is replaced by random vectors; what is not locked then has no residual any more.
        """
        before, p = self.locked.numel(), values.numel()
        active = self.rows[before : self.size]
        ops.block_combine(active, combinations.contiguous().to(self.rows.device), active[:p])
        source = [*stay.tolist(), *range(before, before + p)]
        if not fresh:
            source += range(self.size, self.size + self.width)
        for target, row in enumerate(source):  # ascending: no row is overwritten before it has been moved
            if target != row:
                self.rows[target] = self.rows[row]
        self.locked = torch.cat([self.locked[stay], values[:lock]])
        self.size = stay.numel() + p
        self.H = torch.diag(torch.cat([self.locked, values[lock:]]))
        B = self.B[:, before:] @ combinations.T
        B[:, :lock] = 0.0
        self.B = torch.cat([torch.zeros(B.shape[0], stay.numel(), dtype=torch.float64), B], 1)
        if fresh:
            self.begin(None)

    def vectors(self, coefficients: Tensor) -> Tensor:
        """Return combinations [p, n] of the vectors of Q, from coefficients [p, size]."""
        out = torch.empty(coefficients.shape[0], self.A.shape[0], dtype=self.A.dtype, device=self.A.device)
        ops.block_combine(self.rows[: self.size], coefficients.contiguous().to(out.device), out)
        return out

    def state(self) -> dict[str, Tensor]:
        """Return what `resume` needs to go on with the same bits."""
        counts = torch.tensor([self.size, self.width, self.products, self.drawn])
        return {
            "rows": self.rows[: self.size + self.width], "locked": self.locked, "H": self.H, "B": self.B,
            "counts": counts, "norm": torch.tensor(self.norm, dtype=torch.float64),
        }  # fmt: skip

    def resume(self, state: dict[str, Tensor]) -> None:
        """Take up a `state`."""
        self.size, self.width, self.products, self.drawn = state["counts"].tolist()
        self.rows[: self.size + self.width] = state["rows"].to(self.rows.device)
        self.locked, self.H, self.B, self.norm = state["locked"], state["H"], state["B"], float(state["norm"])


def _orthonormalize(X: Tensor, least: Tensor) -> Tensor:
    """Orthonormalize rows X [c, n] in place, one after the other by Gram-Schmidt twice; R [c, c] with ``X' <- X' R``.

    A row of which no more than ``least`` [c] is left becomes 0, and so does its diagonal of R.
    """
    count = X.shape[0]
    R = torch.zeros(count, count, dtype=torch.float64, device=X.device)
    for i in range(count):
        row = X[i : i + 1]
        if i:
            first = ops.block_project(X[:i], row)
            second = ops.block_subtract_project(X[:i], row, first)
            ops.block_subtract(X[:i], row, second)
            R[:i, i] = (first + second)[0]
        length = ops.block_project(row, row).sqrt()
        live = length > least[i]
        R[i, i] = torch.where(live, length, 0.0)[0, 0]
        row.mul_(torch.where(live, 1.0 / length, 0.0))
    return R
