"""The CUDA kernels for a block of vectors and a basis against the CPU kernels, in any order of threads."""

import pytest
import torch

import lsfast  # noqa: F401  (registers torch.ops.lsfast)

from .schedules import assert_same_bits, assert_same_under_schedules

ops = torch.ops.lsfast
DTYPES = [torch.float32, torch.float64]
# Multiples of 16 bytes take another path than the others; 18 rows are more than wait for a barrier, 6 vectors or
# combinations two groups, 4104 elements two units.
CASES = [(1, 1, 1), (3, 18, 6), (1999, 5, 3), (2000, 5, 3), (16, 18, 6), (4104, 2, 5)]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(n, dtype, s, b):
    Q = random(2 * s, n, dtype=dtype, seed=n).reshape(s, 2, n)[:, 1]  # rows apart, as those of one probe of several
    return Q, random(b, n, dtype=dtype, seed=n + 1), random(b, s, seed=n + 2)


def assert_sums_agree(result, expected, Q, W):
    # The CPU adds up to 129 products in the dtype, CUDA 17; the rest in float64, in at most 30 additions. With u the
    # unit roundoff of the dtype each sum is off by at most that many u, and 30 u of float64, of the sum of magnitudes.
    magnitude = W.double().abs() @ Q.double().abs().T
    bound = (129 + 17) * torch.finfo(Q.dtype).eps / 2 + 2 * 30 * 2.0**-53
    assert ((result - expected).abs() <= bound * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "s", "b"), CASES)
def test_projections(emulated, n, dtype, s, b):
    Q, W, _ = problem(n, dtype, s, b)
    result = assert_same_under_schedules(lambda: emulated.block_project(Q, W))
    assert_sums_agree(result, ops.block_project(Q, W), Q, W)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "s", "b"), CASES)
def test_subtraction_with_and_without_projections(emulated, n, dtype, s, b):
    Q, W, C = problem(n, dtype, s, b)

    def subtract(library):
        new, alone = W.clone(), W.clone()
        sums = library.block_subtract_project(Q, new, C)
        library.block_subtract(Q, alone, C)
        return new, alone, sums

    new, alone, sums = assert_same_under_schedules(lambda: subtract(emulated))
    expected, _, expected_sums = subtract(ops)
    assert_same_bits((new, alone), (expected, expected))  # an element is computed alone, row after row, on both
    assert_sums_agree(sums, expected_sums, Q, new)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "s", "b"), CASES)
def test_combinations_apart_and_in_place(emulated, n, dtype, s, b):
    p = min(b, s)
    Q, _, S = problem(n, dtype, s, p)

    def combine(library):
        rows, out = Q.clone(), torch.zeros(p, n, dtype=dtype)
        library.block_combine(rows, S, out)
        library.block_combine(rows, S, rows[:p])
        return out, rows

    out, rows = assert_same_under_schedules(lambda: combine(emulated))
    assert_same_bits((out, rows), combine(ops))
    assert_same_bits(rows[:p], out)


def test_columns_beyond_one_pass_of_the_grid_are_combined_in_place(emulated):
    n = 264 * 256 * 2 + 514
    Q, S = random(2, n), random(2, 2)
    expected, result = Q.clone(), Q.clone()
    ops.block_combine(expected, S, expected)
    emulated.block_combine(result, S, result)
    assert_same_bits(result, expected)
