"""The statistics of the CUDA kernels: the counts of the CPU kernels, and their sums to rounding."""

import pytest
import torch

import lsfast

from .quantization_cases import assert_same_numbers, numbers, variant, with_statistics
from .schedules import assert_same_under_schedules

SATURATED, FLUSHED, ERROR, SUM, LARGEST = range(5)
NAMES = ["e2m1", "fp8_e5m2", "nvfp4", "mxfp4", "int8", "nvfp4_2d"]
CASES = [((2, 2048), 1), ((5, 300), 1), ((2, 150, 5), 1), ((2, 20, 37), 1), ((2, 17, 70), 2)]


def assert_statistics_as_on_the_cpu(emulated, x, scheme, axis, granularity):
    y, sums = assert_same_under_schedules(lambda: with_statistics(emulated, x, scheme, axis, granularity))
    expected_y, expected = with_statistics(torch.ops.lsfast, x, scheme, axis, granularity)
    assert_same_numbers(y, expected_y)
    for column in (SATURATED, FLUSHED, LARGEST):
        assert torch.equal(sums[..., column], expected[..., column]), f"statistic {column}"
    # Sums of n squares in another order: off by at most n 2^-53 of themselves each, n <= 30,600 here.
    for column in (ERROR, SUM):
        difference = (sums[..., column] - expected[..., column]).abs()
        bound = 2 * x.numel() * 2.0**-53 * expected[..., column]
        both_nan = sums[..., column].isnan() & expected[..., column].isnan()
        infinite = sums[..., column].isinf() & (sums[..., column] == expected[..., column])
        assert (both_nan | infinite | (difference <= bound)).all(), f"statistic {column}"
    return sums


@pytest.mark.parametrize("granularity", ["tensor", "row", "block"])
@pytest.mark.parametrize("name", NAMES)
def test_statistics(emulated, name, granularity):
    scheme = variant(name, rounding="stochastic")
    if granularity == "block" and scheme.block in (None, "tensor"):
        scheme = variant("mxfp8_e4m3", block=512 if name == "e2m1" else 256)
    for shape, axis in CASES:
        sums = assert_statistics_as_on_the_cpu(emulated, numbers(*shape), scheme, axis, granularity)
        assert sums[..., SUM].sum() > 0


@pytest.mark.parametrize("granularity", ["tensor", "row", "block"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_statistics_of_every_dtype_with_not_numbers(emulated, dtype, granularity):
    names = ["nvfp4", "int8", "nvfp4_2d"] if granularity == "block" else ["nvfp4", "int8", "nvfp4_2d", "e4m3", "e8m3"]
    for name in names:
        for shape, axis in [((5, 300), 1), ((2, 150, 5), 1)]:
            x = numbers(*shape, dtype=dtype, special=True)
            assert_statistics_as_on_the_cpu(emulated, x, lsfast.scheme(name), axis, granularity)


@pytest.mark.parametrize("granularity", ["tensor", "row", "block"])
def test_statistics_after_the_transform(emulated, granularity):
    names = ["nvfp4", "nvfp4_2d", "mxfp4"] + ([] if granularity == "block" else ["bf16", "fp8_e4m3"])
    for name in names:
        for shape, axis in [((3, 384), 1), ((2, 384, 5), 1)]:
            scheme = variant(name, hadamard=128)
            assert_statistics_as_on_the_cpu(emulated, numbers(*shape), scheme, axis, granularity)


@pytest.mark.parametrize("side", [16, 32, 64, 128, 256, 512])
def test_statistics_of_square_blocks(emulated, side):
    for shape, axis in [((40, 600), 1), ((2, 20, 530), 2), ((18, 140, 3), 1)]:
        for granularity in ("row", "block"):
            scheme = variant("nvfp4_2d", block=(side, side))
            assert_statistics_as_on_the_cpu(emulated, numbers(*shape), scheme, axis, granularity)


def test_statistics_of_more_than_one_cuda_block(emulated):
    x = numbers(15, 2040)
    for name in ("mxfp4", "bf16"):
        assert_statistics_as_on_the_cpu(emulated, x, lsfast.scheme(name), 1, "tensor")
    assert_statistics_as_on_the_cpu(emulated, x[:3].contiguous(), lsfast.scheme("int8"), 1, "row")
