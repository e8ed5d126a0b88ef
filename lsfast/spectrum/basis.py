"""Where the vectors of a Lanczos recurrence are kept, and in how many bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.operator import LinearOperator
from lsfast.program.memory import free_memory

REORTHOGONALIZE = ("full", "selective", "none")
BASIS_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_STAGED_BYTES = 2**28  # of a basis in host memory that are on the operator's device at a time


@dataclass(frozen=True)
class Plan:
    """How a recurrence keeps its vectors; see `lanczos` for what may be chosen.

    Attributes
    ----------
    reorthogonalize
        "full", "selective" or "none".
    dtype, device
        Of the basis.
    working
        dtype of the three vectors of the recurrence: the wider of the operator's and the basis's.
    staged
        Whether the basis lies on another device than the vectors, and comes to it in pieces.
    limit
        Bytes that basis and vectors may take.
    """

    reorthogonalize: str
    dtype: torch.dtype
    device: torch.device
    working: torch.dtype
    staged: bool
    limit: int

    def bytes_of_probe(self, steps: int, n: int) -> int:
        """Bytes of the vectors of one probe."""
        vectors = 4 * n * self.working.itemsize  # three, and a product
        if self.reorthogonalize == "none":
            return vectors
        copies = 2 if self.reorthogonalize == "selective" else 1  # at worst as many Ritz vectors as Lanczos vectors
        return vectors + copies * steps * n * self.dtype.itemsize

    def probes_at_once(self, function: str, steps: int, n: int, probes: int) -> int:
        """Return how many of `probes` fit the limit together; ValueError if not even one does."""
        each = self.bytes_of_probe(steps, n)
        if each > self.limit:
            raise ValueError(
                f"{function}: memory_limit must be {each} bytes or more for {steps} steps of one probe of length {n}, "
                f'got {self.limit}; fewer steps, basis_dtype=torch.bfloat16, basis_device="cpu" and '
                'reorthogonalize="none" take less'
            )
        return min(probes, self.limit // each)


def plan(
    function: str,
    A: LinearOperator,
    reorthogonalize: str,
    basis_dtype: torch.dtype | None,
    basis_device: torch.device | str | None,
    memory_limit: int | None,
) -> Plan:
    """Check the arguments about the basis and return what they amount to."""
    checks.one_of(function, "reorthogonalize", reorthogonalize, REORTHOGONALIZE)
    dtype = A.dtype if basis_dtype is None else basis_dtype
    if dtype not in BASIS_DTYPES:
        raise ValueError(f"{function}: basis_dtype must be float32, float64 or bfloat16, got {basis_dtype}")
    if reorthogonalize == "selective" and dtype.itemsize < A.dtype.itemsize:
        raise ValueError(f"{function}: basis_dtype must be {A.dtype} or wider for 'selective', got {dtype}")
    device = A.device if basis_device is None else torch.empty(0, device=basis_device).device
    if device not in (A.device, torch.device("cpu")):
        choices = dict.fromkeys((str(A.device), "cpu"))
        raise ValueError(f"{function}: basis_device must be {' or '.join(choices)}, got {device}")
    if reorthogonalize == "selective" and device != A.device:
        raise ValueError(f"{function}: basis_device must be {A.device} for 'selective', got {device}")
    if memory_limit is None:
        limit = free_memory(device) // 2
    else:
        limit = checks.positive_integer(function, "memory_limit", memory_limit)
    working = torch.promote_types(A.dtype, dtype)
    return Plan(reorthogonalize, dtype, device, working, device != A.device, limit)


class Basis:
    """Orthonormal rows [steps, k, n], of which a recurrence reads the first ones and adds the next.

    On the operator's own device it is one tensor. In host memory it is kept in pieces of columns, each contiguous and
    as wide as can be staged on the device, so that a step copies every piece there once.
    """

    def __init__(self, plan: Plan, steps: int, k: int, n: int) -> None:
        self.staged, dtype = plan.staged, plan.dtype
        width = max(1, min(n, _STAGED_BYTES // (steps * k * dtype.itemsize))) if plan.staged else n
        self.columns = [slice(first, min(first + width, n)) for first in range(0, n, width)]
        shapes = [(steps, k, part.stop - part.start) for part in self.columns]
        pinned = plan.staged and torch.cuda.is_available()
        self.pieces = [torch.zeros(shape, dtype=dtype, device=plan.device, pin_memory=pinned) for shape in shapes]

    def settled(self) -> list[Tensor]:
        """Pieces of columns [steps, k, width], once what is on its way to them has arrived."""
        if self.staged and torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.pieces

    def rows(self) -> Tensor:
        """All rows as [k, steps, n]; a view where they are one tensor."""
        pieces = self.settled()
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)).transpose(0, 1)

    def lanczos_pass(
        self, current: Tensor, product: Tensor, previous: Tensor | None, following: Tensor, factors: Tensor,
        step: int, store: bool,
    ) -> Tensor:  # fmt: skip
        """Run the operator of this name over all columns; `store` keeps the current vector as row `step`."""
        sums = []
        for columns, piece in zip(self.columns, self.pieces, strict=True):
            rows, stored = piece, piece[step] if store else None
            if self.staged:
                rows = piece[: step + 1].to(current.device, non_blocking=True, copy=True)
                stored = rows[step] if store else None
            before = None if previous is None else previous[:, columns]
            sums.append(
                ops.lanczos_pass(
                    current[:, columns], product[:, columns], before, following[:, columns], rows, stored, factors
                )
            )
            if self.staged and stored is not None:
                piece[step].copy_(stored, non_blocking=True)
        total: Tensor = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        return total
