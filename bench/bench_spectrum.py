"""The Lanczos step against reading its basis; spectral densities and tridiagonal eigensolves against the peers."""

from __future__ import annotations

import time

import pytest
import torch
from curvature_cases import Case, make_case
from peak_memory import peak_added
from spectrum_peers import PEERS, density_of

import lsfast
from lsfast.spectrum.basis import plan
from lsfast.spectrum.recurrence import Recurrence

PROBES, STEPS = 8, 64


@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16])
def test_lanczos_step(compare, device, basis_dtype):
    k, held, n = 8, 32, 10**8 // 50 if device.type == "cuda" else 10**6
    eigenvalues = torch.linspace(-1, 1, n, device=device)
    A = lsfast.aslinearoperator(lambda rows: rows * eigenvalues, n=n, dtype=torch.float32, device=device)
    start = torch.randn(k, n, generator=torch.Generator().manual_seed(0)).to(device)
    run = Recurrence("bench", A, start, held + 1, plan("bench", A, "full", basis_dtype, None, None))
    while run.step < held:
        run.advance()
    Q = run.basis.rows()[0, :held].double()
    defect = (Q @ Q.T - torch.eye(held, device=device)).abs().max()
    assert defect <= 10 * torch.finfo(basis_dtype).eps
    product = A.apply(run.vector(held))  # the step is measured without the operator
    run.A = lsfast.aslinearoperator(lambda rows: product, n=n, dtype=torch.float32, device=device)

    def step() -> None:
        run.step = held
        run.advance()

    source = torch.randn(held // 2, k, n, device=device)
    target = torch.empty_like(source)
    # A copy of half of the 32 vectors moves as many bytes as reading them once.
    name = "lanczos step, full, 32 vectors held, K = 8" + (", kept in bfloat16" if run.narrow else "")
    size = f"n = {n:.0e} float32".replace("e+0", "e")
    compare(name, size, step, lambda: target.copy_(source), "two reads of the held vectors", factor=2.0, rounds=9)


def checked(case: Case, peer: str, steps: int, tiny: bool) -> tuple[float, float]:
    """Run both once and check that they agree; the seconds of each.

    The largest eigenvalue, no second copy of it, and the same trace within the errors.
    """
    began = time.perf_counter()
    ours = lsfast.spectral_density(lsfast.HessianOperator(case.objective()), probes=PROBES, steps=steps)
    between = time.perf_counter()
    nodes, weights = density_of(PEERS[peer], case, PROBES, steps)
    ended = time.perf_counter()
    norm = float(ours.nodes.max())
    for found in (ours.nodes, nodes.cpu()):
        largest = found.amax(1, keepdim=True)
        assert ((found - largest).abs() <= 1e-4 * norm).sum(1).tolist() == [1] * PROBES
        if not tiny:
            assert (largest - norm).abs().max() <= 1e-4 * norm
    trace = ours.n * float((nodes * weights).sum(1).mean())
    assert abs(trace - ours.trace.value) <= 5 * 2**0.5 * ours.trace.stderr + 1e-4 * norm
    return between - began, ended - between


@pytest.mark.parametrize("peer", list(PEERS))
def test_spectral_density_of_a_small_mlp(compare, device, request, peer):
    tiny = request.config.getoption("--tiny")
    case, steps = make_case("small mlp", device, tiny), 6 if tiny else STEPS
    checked(case, peer, steps, tiny)
    operator = lsfast.HessianOperator(case.objective())
    operator.apply(case.vectors())  # capture is measured with the products
    compare(
        f"spectral density, {PROBES} probes, {steps} steps",
        case.size,
        lambda: lsfast.spectral_density(operator, probes=PROBES, steps=steps),
        lambda: density_of(PEERS[peer], case, PROBES, steps),
        peer,
        rounds=5,
        warm=0,  # both have just run
    )


@pytest.mark.parametrize("peer", ["hessian-eigenthings", "plain torch in lockstep"])
def test_spectral_density_of_a_gpt(record, device, request, peer):
    tiny = request.config.getoption("--tiny")
    case, steps = make_case("gpt", device, tiny), 6 if tiny else STEPS
    ours, theirs = checked(case, peer, steps, tiny)  # minutes: once
    name = f"spectral density, {PROBES} probes, {steps} steps"
    record(name, case.size, 1e3 * ours, 1e3 * theirs, peer)


@pytest.mark.parametrize("name", ["small mlp", "gpt"])
def test_peak_memory_of_a_spectral_density(record, device, request, name):
    tiny = request.config.getoption("--tiny")
    case = make_case(name, device, tiny)
    steps = 6 if tiny else STEPS
    operator = lsfast.HessianOperator(case.objective())
    operator.apply(case.vectors())  # what a linearization holds is not the recurrence's
    n = operator.shape[0]
    basis = 4.0 * n * PROBES * steps
    peak = peak_added(lambda: lsfast.spectral_density(operator, probes=PROBES, steps=steps), device)
    record("memory added, spectral density", case.size, peak / 1e6, basis / 1e6, "its basis in float32", "MB")
    peak = peak_added(
        lambda: lsfast.spectral_density(operator, probes=PROBES, steps=steps, basis_dtype=torch.bfloat16), device
    )
    record("the same, basis in bfloat16", case.size, peak / 1e6, basis / 1e6, "its basis in float32", "MB")


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
