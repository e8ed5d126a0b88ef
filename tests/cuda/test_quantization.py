"""The quantization room on a GPU against the CPU: the same bits, and statistics to rounding."""

import pytest
import torch

import lsfast
from lsfast.scheme_numbers import scheme_numbers

pytestmark = pytest.mark.cuda

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SCHEMES = [*map(lsfast.scheme, (*lsfast.schemes(), "e8m3", "e7m7"))]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def assert_same_numbers(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that a tensor of the GPU has the bits of one of the CPU; a NaN has none but that it is one."""
    assert result.is_cuda
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    result = result.cpu()
    if result.is_floating_point():
        assert torch.equal(result.isnan(), expected.isnan())
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[result.element_size()]
        zero = torch.zeros((), dtype=result.dtype)
        result, expected = (torch.where(x.isnan(), zero, x).view(integer) for x in (result, expected))
    assert torch.equal(result, expected)


def shapes_of(scheme: lsfast.QuantScheme) -> list[tuple[tuple[int, ...], int]]:
    """Shapes and axes: full blocks, last blocks that are not, axes that are not the last."""
    cases = [((64, 1024), 1), ((33, 37), 1), ((5, 70, 300), 2), ((5, 150, 70), 1), ((3, 512, 1), 1)]
    return cases if isinstance(scheme.block, tuple) else [*cases, ((35, 20), 0), ((3000,), 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_fake_quantize_has_the_bits_of_the_cpu(scheme, dtype):
    for shape, axis in shapes_of(scheme):
        for rounding in ("nearest", "stochastic", "toward_zero"):
            x, rounded = (normal(*shape) * 3).to(dtype), scheme.replace(rounding=rounding)
            expected = lsfast.fake_quantize(x, rounded, axis=axis, seed=1)
            assert_same_numbers(lsfast.fake_quantize(x.cuda(), rounded, axis=axis, seed=1), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_fake_quantize_contains_nan_and_infinity_like_the_cpu(scheme):
    x = normal(40, 300)
    x[1, 3], x[5, 40], x[30, 299] = float("nan"), float("inf"), -float("inf")
    for axis in (1,) if isinstance(scheme.block, tuple) else (0, 1):
        assert_same_numbers(lsfast.fake_quantize(x.cuda(), scheme, axis), lsfast.fake_quantize(x, scheme, axis))


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("name", ["e4m3", "fp8_e4m3", "nvfp4", "mxfp8_e4m3", "int8", "nf4_g64", "nvfp4_2d"])
def test_fake_quantize_transforms_like_the_cpu(name, size):
    scheme = lsfast.scheme(name).replace(hadamard=size)
    for dtype in DTYPES:
        for shape, axis in [((40, 3 * size), 1), ((3, 3 * size, 70), 1)]:
            x = normal(*shape).to(dtype)
            assert_same_numbers(lsfast.fake_quantize(x.cuda(), scheme, axis), lsfast.fake_quantize(x, scheme, axis))


@pytest.mark.parametrize("name", ["e4m3", "fp8_e4m3", "nvfp4", "mxfp4", "int8", "nvfp4_2d"])
def test_fake_quantize_of_memory_that_is_not_aligned(name):
    x = normal(64 * 256 + 1)
    expected = lsfast.fake_quantize(x[1:].view(64, 256), name)
    assert_same_numbers(lsfast.fake_quantize(x.cuda()[1:].view(64, 256), name), expected)


@pytest.mark.parametrize("name", ["e4m3", "fp8_e4m3", "nvfp4", "mxfp4", "int8", "nvfp4_2d"])
def test_fake_quantize_is_batched_like_the_cpu(name):
    x = normal(6, 40, 96)
    expected = torch.vmap(lambda one: lsfast.fake_quantize(one, name))(x)
    assert_same_numbers(torch.vmap(lambda one: lsfast.fake_quantize(one, name))(x.cuda()), expected)


@pytest.mark.parametrize("granularity", ["tensor", "row", "block"])
@pytest.mark.parametrize("name", ["e2m1", "fp8_e5m2", "nvfp4", "mxfp4", "int8", "nvfp4_2d", "fp8_e4m3_128x128"])
def test_statistics_are_those_of_the_cpu_and_the_same_every_time(name, granularity):
    if granularity == "block" and name in ("e2m1", "fp8_e5m2"):
        name = "mxfp8_e4m3"
    for shape, axis in [((300, 1024), 1), ((33, 37), 1), ((3, 150, 70), 1)]:
        x = normal(*shape) * 3
        y, expected = lsfast.fake_quantize(x, name, axis, statistics=granularity)
        runs = [lsfast.fake_quantize(x.cuda(), name, axis, statistics=granularity) for _ in range(2)]
        for result, statistics in runs:
            assert_same_numbers(result, y)
            for field in ("count", "saturated", "flushed", "largest"):
                assert_same_numbers(getattr(statistics, field), getattr(expected, field))
            for field in ("squared_error", "squared_sum"):
                # Sums of up to 307,200 squares in another order: off by at most 2^-53 of themselves for each.
                mine, theirs = getattr(statistics, field), getattr(expected, field)
                assert_same_numbers(mine, getattr(runs[0][1], field).cpu())
                assert torch.allclose(mine.cpu(), theirs, rtol=2 * 307_200 * 2.0**-53, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", [*SCHEMES, lsfast.scheme("e8m20")], ids=lambda scheme: scheme.name)
def test_codes_and_the_way_back_have_the_bits_of_the_cpu(scheme, dtype):
    for rounding in ("nearest", "stochastic"):
        numbers = scheme_numbers(scheme.replace(rounding=rounding))
        for shape in [(64, 1024), (33, 37)]:
            x = (normal(*shape) * 3).to(dtype)
            expected = torch.ops.lsfast.quantize(x, None, numbers, 1, 1, 0)
            result = torch.ops.lsfast.quantize(x.cuda(), None, numbers, 1, 1, 0)
            for mine, theirs in zip(result, expected, strict=True):
                assert_same_numbers(mine, theirs)
            back, expected_back = torch.empty_like(x, device="cuda"), torch.empty_like(x)
            torch.ops.lsfast.dequantize_out(*result, back, numbers)
            torch.ops.lsfast.dequantize_out(*expected, expected_back, numbers)
            assert_same_numbers(back, expected_back)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_hadamard_transform_has_the_bits_of_the_cpu(size, dtype, inverse):
    signs = [0x5A1248F7, 0x00FF9C31, 0xFFFFFFFF, 0x80000001]
    for shape, axis in [((40, 3 * size), 1), ((3, 3 * size, 70), 1), ((size, 2), 0)]:
        x = normal(*shape).to(dtype)
        expected = torch.ops.lsfast.hadamard(x, axis, size, signs, inverse)
        assert_same_numbers(torch.ops.lsfast.hadamard(x.cuda(), axis, size, signs, inverse), expected)
