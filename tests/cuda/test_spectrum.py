"""The spectrum room on a GPU: the CPU's results, no waiting inside the recurrence, a basis in host memory."""

import pytest
import torch

import lsfast
from lsfast.spectrum.basis import plan
from lsfast.spectrum.recurrence import Recurrence

pytestmark = pytest.mark.cuda

N = 5002
EIGENVALUES = torch.cat([torch.linspace(0, 1, N - 2, dtype=torch.float64), torch.tensor([5.0, 9.0]).double()])


def operator(device: str, dtype: torch.dtype = torch.float64) -> lsfast.LinearOperator:
    values = EIGENVALUES.to(device, dtype)
    return lsfast.aslinearoperator(lambda rows: rows * values, n=N, dtype=dtype, device=device)


def starts(k: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(k, N, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectral_density_is_that_of_the_cpu(dtype):
    densities = [lsfast.spectral_density(operator(device, dtype), probes=3, steps=20) for device in ("cpu", "cuda")]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for k in range(1, 5):
        assert densities[1].moment(k).value == pytest.approx(densities[0].moment(k).value, rel=tolerance)
    assert float(densities[1].nodes.max()) == pytest.approx(9.0, rel=1e-5)


@pytest.mark.parametrize(
    ("reorthogonalize", "options"),
    [
        ("full", {}),
        ("full", {"basis_device": "cpu"}),
        ("full", {"basis_dtype": torch.float32}),
        ("selective", {}),
        ("none", {}),
    ],
)
def test_the_recurrence_is_that_of_the_cpu(reorthogonalize, options):
    mine = lsfast.lanczos(operator("cuda"), starts(3).cuda(), 20, reorthogonalize, **options)
    theirs = lsfast.lanczos(operator("cpu"), starts(3), 20, reorthogonalize, **options)
    # Sums of 5002 terms in another order, amplified by 1 / beta in 20 steps; "none" goes its own way once 9 converges.
    steps = 8 if reorthogonalize == "none" else 20
    tolerance = 1e-5 if "basis_dtype" in options else 1e-9
    torch.testing.assert_close(mine.alpha[:, :steps].cpu(), theirs.alpha[:, :steps], rtol=0, atol=tolerance)
    if reorthogonalize == "full":
        Q = mine.basis.double().cpu()
        assert (Q @ Q.mT - torch.eye(20)).abs().max() <= 10 * torch.finfo(mine.basis.dtype).eps


@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16])
def test_nothing_in_a_step_waits_for_the_gpu_and_a_graph_can_hold_it(basis_dtype):
    A = operator("cuda", torch.float32)
    layout = plan("lanczos", A, "full", basis_dtype, None, 2**30)
    expected = Recurrence("lanczos", A, starts(4, torch.float32).cuda(), 12, layout).run()
    run = Recurrence("lanczos", A, starts(4, torch.float32).cuda(), 12, layout)
    run.advance()  # memory and the kernels' shared memory are set up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.advance()
    graph.replay()
    torch.testing.assert_close(run.alpha[:, :3], expected.alpha[:, :3], rtol=0, atol=0)


def test_eigenpairs_and_solutions_are_those_of_the_cpu():
    mine, theirs = (lsfast.eigsh(operator(device), k=2, block=2) for device in ("cuda", "cpu"))
    torch.testing.assert_close(mine.values.cpu(), theirs.values, rtol=1e-10, atol=0)
    assert mine.residuals.max() < 1e-8
    b = starts(3)
    x = lsfast.solve(operator("cuda"), b.cuda(), shift=0.5).x.cpu()
    torch.testing.assert_close(x, b / (EIGENVALUES + 0.5), rtol=0, atol=1e-8)


def test_tridiagonal_matrices_have_the_bits_of_the_cpu():
    alpha, beta = torch.randn(40, 30).double(), torch.rand(40, 30).double()
    steps = torch.arange(40) % 31
    mine = torch.ops.lsfast.tridiagonal_eigen(alpha.cuda(), beta.cuda(), steps.cuda())
    for a, b in zip(mine, torch.ops.lsfast.tridiagonal_eigen(alpha, beta, steps), strict=True):
        assert torch.equal(a.cpu(), b)
