"""Products of an operator with random probes or given rows, as many at once as fit a fixed memory, all finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum import probes as probe_vectors

_CHUNK_BYTES = 2**28  # of rows that are multiplied at once
_GRAM_COLUMNS = 2**16  # of two blocks of rows that are in float64 at once


def sampled_operator(
    function: str, A: Any, num_products: int, seed: int, distribution: str = "rademacher", least: int = 1
) -> LinearOperator:
    """Return `A` as an operator, after a check of it and of the arguments of an estimator."""
    operator = probe_vectors.real_operator(function, aslinearoperator(A))
    checks.positive_integer(function, "num_products", num_products, least)
    checks.seed(function, seed)
    checks.one_of(function, "distribution", distribution, probe_vectors.DISTRIBUTIONS)
    return operator


def probe_chunks(A: LinearOperator, first: int, count: int, seed: int, distribution: str) -> Iterator[Tensor]:
    """Yield probes ``first .. first + count - 1`` in chunks [k, n]."""
    chunk = _chunk_rows(A)
    for start in range(first, first + count, chunk):
        yield probe_vectors.draw(A, start, min(chunk, first + count - start), seed, distribution)


def probe_products(
    function: str, A: LinearOperator, count: int, seed: int, distribution: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield probes ``0 .. count - 1`` and their products in chunks [k, n]."""
    first = 0
    for rows in probe_chunks(A, 0, count, seed, distribution):
        yield rows, finite_products(function, A, rows, first)
        first += rows.shape[0]


def products_of(function: str, A: LinearOperator, rows: Tensor, first: int) -> Tensor:
    """Products [k, n] of given rows, made in chunks; that of the first row is number `first` of the function."""
    chunk = _chunk_rows(A)
    result = torch.empty_like(rows)
    for i in range(0, rows.shape[0], chunk):
        result[i : i + chunk] = finite_products(function, A, rows[i : i + chunk].contiguous(), first + i)
    return result


def finite_products(function: str, A: LinearOperator, rows: Tensor, first: int) -> Tensor:
    """Products of `rows` [k, n]; ValueError naming the first that is not finite, the first row being number `first`."""
    result = A.apply(rows)
    bad = (~result.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{function}: A must give finite products, got NaN or Inf in product {first + bad[0]}")
    return result


def gram(rows: Tensor, others: Tensor) -> Tensor:
    """Inner products [a, b] in float64 of ``rows`` [a, n] and ``others`` [b, n]."""
    total = torch.zeros(rows.shape[0], others.shape[0], dtype=torch.float64, device=rows.device)
    for i in range(0, rows.shape[1], _GRAM_COLUMNS):
        part = slice(i, i + _GRAM_COLUMNS)
        total.addmm_(rows[:, part].double(), others[:, part].double().T)
    return total


def _chunk_rows(A: LinearOperator) -> int:
    return max(1, min(64, _CHUNK_BYTES // (A.shape[0] * A.dtype.itemsize)))
