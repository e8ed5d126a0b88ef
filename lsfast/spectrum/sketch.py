"""Traces by a low-rank sketch: what the sketch spans is traced exactly, only the remainder is sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast.estimate import Estimate, estimate_number
from lsfast.operator import LinearOperator
from lsfast.spectrum.probes import dots
from lsfast.spectrum.products import finite_products, gram, probe_chunks, probe_products, products_of
from lsfast.spectrum.recurrence import breakdown_tolerance


def exact_trace(A: LinearOperator) -> Estimate[float]:
    """Return the trace itself, from products with the n unit vectors."""
    identity = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
    return Estimate(float(products_of("trace", A, identity, first=0).diagonal().double().sum()), 0.0)


def hutch_plus_plus(A: LinearOperator, num_products: int, seed: int, distribution: str) -> Estimate[float]:
    """Hutch++: ``tr(Q'AQ) + mean of x'Ax`` with Q an orthonormal basis of A S and ``x = (I - QQ') v``.

    The basis does not depend on the probes v, so the spread of x'Ax tells the whole error.
    """
    if num_products >= A.shape[0]:
        return exact_trace(A)
    count = num_products // 3
    sketch = torch.cat([images for _, images in probe_products("trace", A, count, seed, distribution)])
    basis, correction = _nearly_orthonormal(sketch)  # of full rank, also if the sketch is not
    basis = correction.to(basis) @ basis
    del sketch
    traced = float(dots(basis, products_of("trace", A, basis, first=count)).sum())
    samples, product = [], 2 * count
    for rows in probe_chunks(A, count, num_products - 2 * count, seed, distribution):
        rows = rows - (rows @ basis.T) @ basis
        samples.append(dots(rows, finite_products("trace", A, rows, product)))
        product += rows.shape[0]
    remainder = estimate_number(torch.cat(samples))
    return Estimate(traced + remainder.value, remainder.stderr)


def xtrace(A: LinearOperator, num_products: int, seed: int, distribution: str) -> Estimate[float]:
    """XTrace: the mean over i of ``tr(P_i A) + x_i' A x_i``, ``x_i = (I - P_i) v_i``.

    P_i is the projector on the products of all probes but v_i, so that each probe serves the sketch of the others and
    samples what their sketch leaves. With Q an orthonormal basis of all products, P_i = Q (I - s_i s_i') Q', where s_i
    is the direction that only the product of v_i has: all P_i cost one basis and the products A Q.

    For Gaussian probes, (I - P_i) v_i has a direction that is uniform in a space of n - rank P_i dimensions; scaling
    it to the length the root of that number removes the variance of the length (the paper's "improved" estimator).
    """
    n = A.shape[0]
    if num_products >= n:
        return exact_trace(A)
    count = num_products // 2
    pairs = list(probe_products("trace", A, count, seed, distribution))
    probes, images = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    del pairs
    basis, R, S = _leave_one_out(images, breakdown_tolerance(A))
    forms = dots(probes, images)  # v'Av
    del images
    rank = basis.shape[0]
    images = products_of("trace", A, basis, first=count)
    H = gram(basis, images)  # Q'AQ
    W = gram(basis, probes)  # Q'V
    T = gram(images, probes)  # (AQ)'V
    projected = W - S * (S * W).sum(0)  # coefficients of P_i v_i
    # x'Ax with x = v - Q p, where Q'AV = R
    remainders = forms + ((H @ projected - T - R) * projected).sum(0)
    if distribution == "gaussian":
        remainders *= n - (rank - (S * S).sum(0).round())  # n - rank P_i
        remainders /= dots(probes, probes) - (projected * projected).sum(0)
    return estimate_number(H.trace() - (S * (H @ S)).sum(0) + remainders)


def _leave_one_out(images: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal rows Q [r, n] of the span of ``images`` [m, n], their coefficients R [r, m], and S [r, m].

    Column i of S is the unit vector orthogonal to all columns of R but column i; 0 if column i lies in the span of the
    others, which then span as much without it.
    """
    Q, correction = _nearly_orthonormal(images)
    U, sizes, Vh = torch.linalg.svd(correction @ gram(Q, images))
    rank = int((sizes > tolerance * sizes[0]).sum())  # what is less is rounding
    kept, V, rest = sizes[:rank], Vh[:rank].T, Vh[rank:].T
    basis = (U[:, :rank].T @ correction).to(Q) @ Q
    # The columns are V_i * kept in this basis, so V_i / kept is orthogonal to all but column i, and its length is one
    # over the distance of column i from the span of the others. What V_i has outside the kept directions would be
    # divided by rounding: where that is longer, the distance is rounding too.
    dual = V / (kept / sizes[0])
    alone = (dual * dual).sum(1) * tolerance**2 > (rest * rest).sum(1)
    S = torch.where(alone[:, None], dual / dual.norm(dim=1, keepdim=True), 0.0).T
    return basis, kept[:, None] * V.T, S


def _nearly_orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows Q [m, n] with the span of ``rows`` [m, n], and C [m, m] in float64 that makes C Q orthonormal.

    In float32 the vectors of a QR factorization may have lengths that are off by 10^-4 at n of 10^6. Their inner
    products, summed in float64, tell by how much.
    """
    Q = torch.linalg.qr(rows.T).Q.T.contiguous()
    factor = torch.linalg.cholesky(gram(Q, Q))
    identity = torch.eye(rows.shape[0], dtype=torch.float64, device=rows.device)
    return Q, torch.linalg.solve_triangular(factor, identity, upper=False)
