"""The iteration of `eigsh`: which Ritz pairs are kept and locked, and when no better pair can have been missed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lsfast.checkpoint import Checkpoint
from lsfast.spectrum.krylov import BlockKrylovSpace

_MISSED = 1e-4  # largest probability that a better pair exists and did not show, where it can be bounded


def by_preference(values: Tensor, which: str) -> Tensor:
    """Return the indices of values in any order, the most wanted first."""
    if which == "LM":
        return values.abs().argsort(descending=True, stable=True)
    ascending = values.argsort(stable=True)
    if which == "SA":
        return ascending
    if which == "LA":
        return ascending.flip(0)
    return torch.stack([ascending.flip(0), ascending], 1).flatten()[: values.numel()]  # high, low, high, low, ...


class Search:
    """The iteration: what is wanted, what has converged, and whether a better pair could have been missed."""

    def __init__(
        self, space: BlockKrylovSpace, k: int, which: str, tolerance: float, limit: int, dimension: int
    ) -> None:
        self.space, self.k, self.which, self.tolerance, self.limit = space, k, which, tolerance, limit
        self.enough = dimension - k  # vectors grown from random ones when the gap says nothing
        self.fresh = -1  # block steps since Z was random and the k best locked; below 0: not so
        self.low, self.high = math.inf, -math.inf  # of all Ritz values seen

    def run(self, checkpoint: Checkpoint | None, bar: Any) -> tuple[Tensor, int, bool]:
        """Iterate; coefficients [k, size] of the pairs, how many have not converged, and whether the end was confirmed.

        The state is saved after every restart.
        """
        space, k = self.space, self.k
        looked = 0
        while True:
            space.grow(self.limit - space.products)
            self.fresh += self.fresh >= 0
            exhausted = space.size == space.A.shape[0]
            ended = exhausted or space.products >= self.limit
            full = ended or space.size == space.dimension
            if not full and self.fresh < 0 and space.size < max(k, looked + looked // 16):
                continue  # a decomposition of H at every step would cost more than it saves
            looked = space.size
            active, S, estimates = space.ritz()
            values, locked = torch.cat([space.locked, active]), space.locked.numel()
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            allowed = self.tolerance * max(-self.low, self.high)
            done = torch.cat([torch.ones(locked, dtype=torch.bool), estimates <= allowed])
            order = by_preference(values, self.which)
            missing = k - int(done[order[:k]].sum())
            bar.update(k - missing - bar.n)
            bar.set_postfix(products=space.products)
            if self.fresh >= 0:
                change = space.locked.sort().values - values[order[:k]].sort().values
                if float(change.abs().max()) <= 2 * allowed:
                    confirmed = exhausted or self._none_is_missed(active)
                    if confirmed or ended:
                        return torch.eye(k, space.size, dtype=torch.float64), 0, confirmed
                    if full:
                        everything = torch.cat([torch.arange(locked), order[order >= locked]])
                        self._restart(everything, torch.zeros_like(done), self.fresh)
                        self._save(checkpoint)
                    continue
                self.fresh = -1  # a better pair was missed: go on with the space it appeared in
            if ended:
                return torch.block_diag(torch.eye(locked, dtype=torch.float64), S.T)[order[:k]], missing, exhausted
            if missing == 0 or full:
                self._restart(order, done, 0 if missing == 0 else -1)
                self._save(checkpoint)
                looked = 0

    def _restart(self, order: Tensor, done: Tensor, fresh: int) -> None:
        """Lock the wanted pairs that are done, and keep the next best; random vectors take their place if `fresh` is 0.

        `fresh` is the new number of block steps since that happened, below 0 if something better is looked for.
        """
        space, k = self.space, self.k
        locked, room = space.locked.numel(), space.dimension - space.width
        kept = order[:k] if fresh == 0 else order[: min(k + (space.dimension - k) // 2, room)]
        new = kept >= locked
        lock = new & done[kept] & (torch.arange(kept.numel()) < k)
        moved = torch.cat([kept[lock], kept[new & ~lock]]) - locked
        values, S, _ = space.ritz()
        space.restart(kept[~new].sort().values, values[moved], S[:, moved].T, int(lock.sum()), fresh == 0)
        self.fresh = fresh

    def _save(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            checkpoint.save(self.state())

    def _none_is_missed(self, active: Tensor) -> bool:
        """Whether an eigenvalue better than the locked ones would have shown in the Krylov space of a random block.

        After m steps from a random vector the largest Ritz value lies more than a part e of the spread of the spectrum
        below the largest eigenvalue with probability at most 1.648 sqrt(n) exp(-(2m - 1) sqrt(e)), and for each vector
        of a block independently (Kuczynski & Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992). Where the gap is too
        small for that, as many vectors as a space of the usual dimension takes are enough.
        """
        if self.fresh * self.space.block >= self.enough:
            return True
        if self.space.size - self.k <= (self.fresh - 1) * self.space.block:
            return False  # restarted since: the bound holds for one Krylov space
        locked, top, bottom = self.space.locked, float(active.max()), float(active.min())
        if self.which == "LM":
            least = float(locked.abs().min())
            spread, gaps = 2.0 * least, [least - top, least + bottom]
        else:
            ordered, both = locked[by_preference(locked, self.which)], self.which == "BE"
            from_top = ordered[::2] if both else ordered[: self.k * (self.which == "LA")]
            from_bottom = ordered[1::2] if both else ordered[: self.k * (self.which == "SA")]
            spread, gaps = self.high - self.low, []
            if from_top.numel():
                gaps.append(float(from_top.min()) - top)
            if from_bottom.numel():
                gaps.append(bottom - float(from_bottom.max()))
        if not min(gaps) > 0.0:
            return False
        chance = math.log(1.648 * math.sqrt(self.space.A.shape[0]))
        chance -= (2 * self.fresh - 1) * math.sqrt(min(1.0, min(gaps) / spread))
        return self.space.block * chance <= math.log(_MISSED)

    def state(self) -> dict[str, Tensor]:
        """Return what `resume` takes."""
        ends = torch.tensor([self.low, self.high], dtype=torch.float64)
        return self.space.state() | {"fresh": torch.tensor(self.fresh), "ends": ends}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on where a `state` was taken."""
        self.space.resume(state)
        self.fresh = int(state["fresh"])
        self.low, self.high = state["ends"].tolist()
