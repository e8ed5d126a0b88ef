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


K, COUNT, M = 3, 11, 16  # more rows than a warp sums at once
STORED = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float64, torch.bfloat16),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_inner_products(emulated, n, dtype):
    x, y = random(K, n, dtype=dtype, seed=n), random(K, n, dtype=dtype, seed=n + 1)
    result = assert_same_under_schedules(lambda: emulated.row_dots(x, y))
    # Both add n products in float64, rounded once each for float64: at most n / 16 + 20 additions lie behind one.
    magnitude = (x.double() * y.double()).abs().sum(1)
    assert ((result - ops.row_dots(x, y)).abs() <= 2 * (n / 16 + 20) * 2.0**-53 * magnitude).all()


def tables(step):
    alpha, beta, scale = random(K, M), random(K, M, seed=1).abs(), random(K, M, seed=2).abs() + 5
    beta[1, step - 1] = 0.0  # the probe ended before
    return alpha, beta, scale, torch.full((K,), step), random(K, M, seed=3) * 1e-3


@pytest.mark.parametrize("count", [0, 1, COUNT])
@pytest.mark.parametrize("ritz", [False, True])
def test_factors_of_a_step(emulated, count, ritz):
    alpha, beta, _, _, defect = tables(COUNT)
    values = random(K, count, seed=4) if ritz else None
    dots = random(K, seed=5)

    def begin(library):
        return library.lanczos_begin(dots, defect, alpha, beta, values, COUNT, count)

    result, expected = assert_same_under_schedules(lambda: begin(emulated)), begin(ops)
    # Two sums of at most 11 terms below 1e-4 are made in another order, one of them divided by rho > 0.99.
    torch.testing.assert_close(result, expected, rtol=2.0**-50, atol=2.0**-60)
    assert (result[1] == 0).all()


@pytest.mark.parametrize(("dtype", "stored_dtype"), STORED)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("count", [0, COUNT])
def test_pass_over_the_rows(emulated, n, dtype, stored_dtype, count):
    rows = random(COUNT, K, n, seed=n).to(stored_dtype)
    vectors = random(3, K, n, dtype=dtype, seed=n + 1)
    vectors[1, 1] = float("nan")  # what the probe that ended is given
    factors = random(K, 4 + 2 * count, seed=n + 2)
    factors[1] = 0.0

    def run(library):
        current, following = vectors[0].clone(), torch.full_like(vectors[0], 7.0)
        stored = torch.full((K, n), 7.0, dtype=stored_dtype)
        sums = library.lanczos_pass(current, vectors[1], vectors[2], following, rows, stored, factors)
        return (current, following, stored), sums

    result, sums = assert_same_under_schedules(lambda: run(emulated))
    expected, expected_sums = run(ops)
    assert_same_bits(result, expected)  # an element is computed alone, row after row, on both
    assert_sums_agree(sums, expected_sums, rows[:count], *expected[:2])


def assert_sums_agree(result, expected, rows, current, following):
    # The CPU adds up to 129 products in the dtype, CUDA 4; the rest in float64, in at most 30 additions. With u the
    # unit roundoff of the dtype each sum is off by at most that many u, and 30 u of float64, of the sum of magnitudes.
    others = torch.cat([rows.double().abs(), current[None].double().abs(), following[None].double().abs()])
    magnitude = (others * following.double().abs()).sum(2).T
    bound = (129 + 4) * torch.finfo(current.dtype).eps / 2 + 2 * 30 * 2.0**-53
    assert ((result - expected).abs() <= bound * magnitude).all()


def test_more_rows_than_shared_memory_holds_and_more_than_one_tile_a_block(emulated):
    n, count = 40000, 30
    rows, vectors = random(count, 1, n, dtype=torch.float32), random(2, 1, n, dtype=torch.float32, seed=1)
    factors = random(1, 4 + 2 * count, seed=2) * 0.1

    def run(library):
        current, following = vectors[0].clone(), torch.empty_like(vectors[0])
        sums = library.lanczos_pass(current, vectors[1], None, following, rows, None, factors)
        return (current, following), sums

    (result, sums), (expected, expected_sums) = run(emulated), run(ops)
    assert_same_bits(result, expected)
    assert_sums_agree(sums, expected_sums, rows, *expected)


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 31, 2000])
def test_end_of_a_step(emulated, n, dtype, append, last):
    count, step = COUNT, COUNT
    given = random(K, n, dtype=dtype)
    factors = random(K, 4 + 2 * count, seed=1).abs()
    sums = random(K, count + 2, seed=2) * 1e-3
    sums[:, -1] = torch.tensor([2.0, float("nan"), 1e-30], dtype=torch.float64)  # goes on, ended before, ends now
    sums[2, :-1] = 0.0

    def end(library):
        following = given.clone()
        alpha, beta, scale, steps, defect = tables(step)
        library.lanczos_end(factors, sums, following, alpha, beta, scale, steps, defect, step, append, last, 1e-7)
        return following, alpha, beta, scale, steps, defect

    result, expected = assert_same_under_schedules(lambda: end(emulated)), end(ops)
    # The sum of 11 squares of the order 1e-6 is made in another order, and enters a number near 2.
    torch.testing.assert_close(result[2], expected[2], rtol=2.0**-52, atol=0)
    torch.testing.assert_close(result[3], expected[3], rtol=2.0**-52, atol=0)
    assert_same_bits((result[0], result[1], *result[4:]), (expected[0], expected[1], *expected[4:]))
    assert expected[4].tolist() == [step + 1, step, step + 1]


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
