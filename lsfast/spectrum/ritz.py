"""Selective reorthogonalization: the converged Ritz vectors of k probes, which later vectors are kept orthogonal to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lsfast._native import ops
from lsfast.operator import LinearOperator


class ConvergedVectors:
    """Ritz vectors whose residual is below the root of epsilon times |A|.

    A Lanczos vector loses its orthogonality towards converged Ritz vectors only, in proportion to epsilon |A| over
    their residual (Paige, 1971; Parlett & Scott, Math. Comp. 33, 1979), so this much keeps T exact to rounding.

    Attributes
    ----------
    rows
        Vectors [count, k, n], unit, or 0 where a probe has fewer; None before the first.
    values
        Ritz values [k, count], float64.
    """

    def __init__(self, A: LinearOperator) -> None:
        self.tolerance, self.device = torch.finfo(A.dtype).eps ** 0.5, A.device
        self.rows: Tensor | None = None
        self.values: Tensor | None = None
        self.counts: list[int] = []

    def update(self, basis: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, steps_taken: Tensor, size: int) -> None:
        """Find the vectors anew for each probe of which more have converged after `size` steps; waits for the device.

        The residual of a Ritz pair is beta_m |s_m|, s_m the last component of its eigenvector of T: the first one for T
        with its order reversed.
        """
        k = alpha.shape[0]
        self.counts = self.counts or [0] * k
        reversed_beta = torch.zeros_like(alpha[:, :size])
        reversed_beta[:, : size - 1] = beta[:, : size - 1].flip(1)
        sizes = torch.full_like(steps_taken, size)
        nodes, weights, _ = ops.tridiagonal_eigen(alpha[:, :size].flip(1).contiguous(), reversed_beta, sizes)
        residuals = beta[:, size - 1, None] * weights.sqrt()
        good = (residuals <= self.tolerance * scale[:, size - 1, None]).cpu()
        live = (steps_taken == size).cpu() & (beta[:, size - 1] > 0).cpu()
        for probe in range(k):
            count = int(good[probe].sum())
            if not live[probe] or count <= self.counts[probe]:
                continue
            T = torch.diag(alpha[probe, :size]) + torch.diag(beta[probe, : size - 1], 1)
            _, S = torch.linalg.eigh(T.cpu(), UPLO="U")
            vectors = basis.new_empty(count, basis.shape[2])
            ops.block_combine(basis[:size, probe], S[:, good[probe]].T.contiguous().to(basis.device), vectors)
            self._keep(probe, nodes[probe, good[probe].to(nodes.device)], vectors, k)

    def project(self, current: Tensor, defect: Tensor) -> None:
        """Write the projections of `current` [k, n] on the vectors to `defect`."""
        if self.rows is None:
            return
        for probe, count in enumerate(self.counts):
            if count:
                defect[probe, :count] = ops.block_project(self.rows[:count, probe], current[probe : probe + 1])[0]

    def _keep(self, probe: int, values: Tensor, vectors: Tensor, k: int) -> None:
        count, n = vectors.shape
        have = 0 if self.rows is None else self.rows.shape[0]
        if count > have:
            rows, numbers = vectors.new_zeros(count, k, n), values.new_zeros(k, count)
            if self.rows is not None and self.values is not None:
                rows[:have], numbers[:, :have] = self.rows, self.values
            self.rows, self.values = rows, numbers
        assert self.rows is not None
        assert self.values is not None
        self.rows[:count, probe] = vectors
        self.values[probe, :count] = values
        self.counts[probe] = count

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs."""
        if self.rows is None or self.values is None:
            return {}
        return {"ritz vectors": self.rows, "ritz values": self.values, "ritz counts": torch.tensor(self.counts)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        if "ritz vectors" in state:
            self.rows, self.values = (state[name].to(self.device) for name in ("ritz vectors", "ritz values"))
            self.counts = state["ritz counts"].tolist()
