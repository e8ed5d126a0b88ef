"""The CUDA kernels of the landscape room, run by the emulation against the CPU kernels, bit for bit.

Sums over segments are in an order that both fix, so norms and inner products agree in every bit as well.
"""

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_bits, assert_same_under_schedules

REAL = [torch.float32, torch.float64]
FLOATING = [*REAL, torch.bfloat16, torch.float16]


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 64, 1303])  # 16-byte accesses, and rows that do not allow them
def test_points_have_the_bits_of_the_cpu(emulated, n, d, dtype):
    inputs = draw(n, dtype=dtype), draw(d, n, dtype=dtype, seed=1), draw(4, d, dtype=dtype, seed=2)
    result = assert_same_under_schedules(lambda: emulated.parameter_points(*inputs))
    assert_same_bits(result, ops.parameter_points(*inputs))


@pytest.mark.parametrize("dtype", FLOATING)
def test_points_from_memory_that_is_not_aligned_have_the_bits_of_the_cpu(emulated, dtype):
    theta, directions, coordinates = draw(65, dtype=dtype)[1:], draw(2, 64, dtype=dtype), draw(3, 2, dtype=dtype)

    def call():
        out = torch.zeros(3, 64, dtype=dtype)
        emulated.parameter_points_out(theta, directions, coordinates, out)
        return out

    assert_same_bits(assert_same_under_schedules(call), ops.parameter_points(theta, directions, coordinates))


OFFSETS = [[0, 1, 1, 16, 33, 1057, 1057, 3105, 3500], [0, 3500], [5, 30]]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("offsets", OFFSETS)
def test_norms_and_inner_products_have_the_bits_of_the_cpu(emulated, offsets, dtype):
    x, y, ends = draw(2, 3500, dtype=dtype), draw(2, 3500, dtype=dtype, seed=1), torch.tensor(offsets)
    norms = assert_same_under_schedules(lambda: emulated.segment_norms(x, ends))
    assert_same_bits(norms, ops.segment_norms(x, ends))
    dots = assert_same_under_schedules(lambda: emulated.segment_dots(x, y, ends))
    assert_same_bits(dots, ops.segment_dots(x, y, ends))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("offsets", OFFSETS)
def test_scaled_segments_have_the_bits_of_the_cpu(emulated, offsets, dtype):
    x, ends = draw(2, 3500, dtype=dtype), torch.tensor(offsets)
    factors = draw(2, len(offsets) - 1, dtype=torch.float64, seed=3)

    def scaled(library):
        result = x.clone()
        library.scale_segments_(result, ends, factors)
        return result

    assert_same_bits(assert_same_under_schedules(lambda: scaled(emulated)), scaled(ops))
