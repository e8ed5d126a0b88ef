"""A Lanczos step against reading the basis, and tridiagonal eigensolves against a dense batched solver."""

import torch

import lsfast


def test_lanczos_step(compare, device):
    k, m, n = 8, 32, 10**6
    start = torch.randn(k, n, generator=torch.Generator().manual_seed(0)).to(device)
    eigenvalues = torch.linspace(-1, 1, n, device=device)
    A = lsfast.aslinearoperator(lambda rows: rows * eigenvalues, n=n, dtype=torch.float32, device=device)
    T = lsfast.lanczos(A, start, m)
    gram = T.basis[0] @ T.basis[0].T
    assert (gram - torch.eye(m, device=device)).abs().max() < 1e-5
    tridiagonal = torch.diag(T.alpha[0]) + torch.diag(T.beta[0], 1) + torch.diag(T.beta[0], -1)
    assert (T.basis[0] * eigenvalues @ T.basis[0].T - tridiagonal).abs().max() < 1e-5
    source, target = T.basis[: k // 2], torch.empty_like(T.basis[: k // 2])
    # A run of m steps reads on average half of the basis a pass: two passes of full reorthogonalization are two reads
    # of that half, so the limit of the run is m reads of the whole basis. A copy of half of it moves as many bytes.
    compare(
        f"lanczos, full, {m} steps, K = 8",
        "n = 1e6 float32",
        lambda: lsfast.lanczos(A, start, m),
        lambda: target.copy_(source),
        "two reads of the held basis a step",
        factor=float(m),
        rounds=3,
    )


def test_tridiagonal_eigenvalues(compare, device):
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randn(64, 128, generator=generator, dtype=torch.float64).to(device)
    beta = torch.rand(64, 128, generator=generator, dtype=torch.float64).to(device)  # the last of a row is not used
    sizes = torch.full((64,), 128, dtype=torch.int64, device=device)
    dense = torch.diag_embed(alpha) + torch.diag_embed(beta[:, :-1], 1) + torch.diag_embed(beta[:, :-1], -1)
    nodes = torch.ops.lsfast.tridiagonal_eigen(alpha, beta, sizes)[0]
    assert torch.allclose(nodes, torch.linalg.eigvalsh(dense), atol=1e-12)
    compare(
        "tridiagonal eigensolves",
        "64 of size 128",
        lambda: torch.ops.lsfast.tridiagonal_eigen(alpha, beta, sizes),
        lambda: torch.linalg.eigh(dense),
        "torch.linalg.eigh, batched",
        rounds=7,
    )
