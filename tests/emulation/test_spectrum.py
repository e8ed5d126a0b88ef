"""The CUDA kernels of the Lanczos recurrence against the CPU kernels, in any order of threads."""

import pytest
import torch

import lsfast  # noqa: F401  (registers torch.ops.lsfast)

from .schedules import assert_same_bits, assert_same_under_schedules

ops = torch.ops.lsfast
DTYPES = [torch.float32, torch.float64]
SIZES = [1, 3, 31, 1024, 1999, 2000]  # multiples of 16 bytes take another path than the others


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(n, dtype, k=2, m=5):
    return random(k, m, n, dtype=dtype, seed=n), random(k, n, dtype=dtype, seed=n + 1), random(k, 4, seed=n + 2)


def assert_sums_agree(result, expected, basis, w):
    # The CPU adds up to 129 products in the dtype, CUDA 32; the rest in float64, in at most 30 additions. With u the
    # unit roundoff of the dtype each sum is off by at most that many u, and 30 u of float64, of the sum of magnitudes.
    magnitude = (basis.double() * w[:, None].double()).abs().sum(2)
    bound = (129 + 32) * torch.finfo(basis.dtype).eps / 2 + 2 * 30 * 2.0**-53
    assert ((result - expected).abs() <= bound * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_projections(emulated, n, dtype):
    basis, w, _ = problem(n, dtype)
    result = assert_same_under_schedules(lambda: emulated.basis_project(basis, w, 4))
    assert_sums_agree(result, ops.basis_project(basis, w, 4), basis[:, :4], w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_subtraction_with_projections(emulated, n, dtype):
    basis, w, c = problem(n, dtype)

    def subtract(library):
        out = torch.empty_like(w)
        return out, library.basis_subtract_project(basis, w, c, out)

    out, sums = assert_same_under_schedules(lambda: subtract(emulated))
    expected_out, expected = subtract(ops)
    assert_same_bits(out, expected_out)  # an element is computed alone, row after row, on both
    assert_sums_agree(sums, expected, basis[:, :4], out)


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_subtraction_with_norm(emulated, n, dtype, count):
    basis, w, c = problem(n, dtype)
    c = c[:, :count].contiguous()

    def subtract(library):
        new = w.clone()
        return new, library.basis_subtract_norm(basis, new, c)

    new, norm_squared = assert_same_under_schedules(lambda: subtract(emulated))
    expected_new, expected = subtract(ops)
    assert_same_bits(new, expected_new)
    # Both add n squares in float64: at most n / 16 + 20 additions lie behind a lane.
    torch.testing.assert_close(norm_squared, expected, rtol=(n / 16 + 20) * 2.0**-52, atol=0)


def test_more_rows_than_wait_for_one_barrier_and_more_than_one_unit(emulated):
    basis, w = random(1, 35, 8200, dtype=torch.float32), random(1, 8200, dtype=torch.float32, seed=1)
    result = assert_same_under_schedules(lambda: emulated.basis_project(basis, w, 35))
    assert_sums_agree(result, ops.basis_project(basis, w, 35), basis, w)


@pytest.mark.parametrize("row", [-1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_end_of_a_step(emulated, n, dtype, row):
    k, m = 4, 5
    w = random(k, n, dtype=dtype)
    norms = (w.double() ** 2).sum(1)
    norms[1] = 1e-30  # ends now
    norms[2] = float("nan")

    def advance(library):
        new, basis = w.clone(), torch.zeros(k, m, n, dtype=dtype)
        alpha, beta, scale = (torch.full((k, m), 2.0, dtype=torch.float64) for _ in range(3))
        beta[3, 0] = 0.0  # ended before
        steps = torch.ones(k, dtype=torch.int64)
        library.lanczos_advance(
            new, basis, alpha, beta, scale, steps, norms, random(k, 2), random(k, 2, seed=1), 1, 1, row, 1e-7
        )
        return new, basis, alpha, beta, scale, steps

    assert_same_bits(assert_same_under_schedules(lambda: advance(emulated)), advance(ops))


@pytest.mark.parametrize("m", [1, 2, 5])
def test_tridiagonal_eigensolver(emulated, m):
    k = 35  # more than a warp
    alpha, beta = random(k, m), random(k, m, seed=1)
    beta[::4] = 0.0
    alpha[7] = float("inf")  # reported as failed
    steps = torch.arange(k) % (m + 1)
    steps[7] = m
    result = assert_same_under_schedules(lambda: emulated.tridiagonal_eigen(alpha, beta, steps))
    expected = ops.tridiagonal_eigen(alpha, beta, steps)
    solved = expected[2] == 0
    assert solved.tolist() == [i != 7 for i in range(k)]
    assert_same_bits([part[solved] for part in result[:2]], [part[solved] for part in expected[:2]])
    assert_same_bits(result[2], expected[2])
