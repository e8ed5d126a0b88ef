"""Random probe vectors that depend on (seed, probe index) alone, and the symmetry check made with two of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.operator import LinearOperator
from lsfast.seeds import generator

DISTRIBUTIONS = ("rademacher", "gaussian")


def draw(A: LinearOperator, first: int, count: int, seed: int, distribution: str = "rademacher") -> Tensor:
    """Probes ``first .. first + count - 1`` of a seed, [count, n]: signs, or standard normal numbers.

    They are drawn on the CPU by generators of their own, whatever the device of `A`; the global state of random
    numbers is not touched.
    """
    n = A.shape[0]
    rows = torch.empty(count, n, dtype=A.dtype)
    for i in range(count):
        stream = generator(seed, DISTRIBUTIONS.index(distribution), first + i)
        if distribution == "rademacher":
            rows[i] = torch.randint(0, 2, (n,), generator=stream, dtype=torch.int8)
        else:
            rows[i].normal_(generator=stream)
    if distribution == "rademacher":
        rows.mul_(2).sub_(1)
    return rows.to(A.device)


def dots(rows: Tensor, others: Tensor) -> Tensor:
    """Row-wise inner products [k] in float64, in a fixed order, of two [k, n] tensors."""
    products: Tensor = ops.row_dots(rows, others)
    return products


def normalize(rows: Tensor) -> Tensor:
    """Rows [k, n] divided by their norms; the norms are made in float64."""
    return rows.clone().div_(dots(rows, rows).sqrt()[:, None])


def check_starts(function: str, A: LinearOperator, start: Tensor, count: str) -> None:
    """Raise unless ``start`` is [count, n] like the vectors of A, its rows finite and not 0."""
    n = A.shape[0]
    checks.like(function, "start", start, A.dtype, A.device)
    if start.dim() != 2 or start.shape[0] == 0 or start.shape[1] != n:
        got = list(start.shape)
        raise ValueError(f"{function}: start must have shape [{count}, {n}] with {count} of 1 or more, got {got}")
    unusable = (~start.isfinite().all(1) | (start == 0).all(1)).nonzero().flatten().tolist()
    if unusable:
        raise ValueError(
            f"{function}: start must have finite rows that are not 0, got row {unusable[0]} that is not so"
        )


def check_symmetric(function: str, A: LinearOperator) -> float:
    """Raise ValueError if ``|u'Av - v'Au|`` for two Gaussian vectors shows that `A` is not symmetric; return |Au|.

    The vectors are fixed, so |Au| tells one operator from another. The defect is relative to |u||Av|. Rounding makes an
    error of a few epsilon times |Av| in a random direction; what passes is 1000 epsilon, or 4 sqrt(n) epsilon if that
    is more. An unsymmetric part of relative size a shows up as about a / sqrt(n). Products that are not finite are left
    to the recurrence, which names the step.
    """
    n = A.shape[0]
    pair = draw(A, 0, 2, seed=0x5E, distribution="gaussian")
    products = A.apply(pair)
    crossed = dots(pair, products.flip(0).contiguous())
    lengths = (dots(pair, pair) * dots(products, products).flip(0)).sqrt()
    gap, length = float((crossed[0] - crossed[1]).abs()), float(lengths.max())
    tolerance = torch.finfo(A.dtype).eps * max(1000.0, 4.0 * n**0.5)
    if n > 1 and gap > tolerance * length:  # false for NaN
        raise ValueError(
            f"{function}: A must be symmetric, got |u'Av - v'Au| = {gap / length:.1e} |u||Av| for two random vectors "
            f"(rounding explains {tolerance:.1e})"
        )
    return float(dots(products, products)[0].sqrt())


def real_operator(function: str, A: LinearOperator) -> LinearOperator:
    """Return `A` if it has vectors this room can work on: float32 or float64, of length 1 or more."""
    if A.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{function}: A must be an operator in float32 or float64, got {A.dtype}")
    if A.shape[0] < 1:
        raise ValueError(f"{function}: A must act on vectors of length 1 or more, got {A.shape[0]}")
    return A
