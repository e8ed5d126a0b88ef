"""The CUDA kernels of fake-quantization give the bits of the CPU kernels, in any order of threads."""

import pytest
import torch

import lsfast  # noqa: F401  (registers torch.ops.lsfast)

from .schedules import assert_same_bits, assert_same_under_schedules

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FINITE, NAN_ONLY, IEEE = 0, 1, 2
NONE, PER_TENSOR, NVFP4 = 0, 1, 2
NEAREST, STOCHASTIC, TOWARD_ZERO = 0, 1, 2
SATURATE, INFINITY, NAN = 0, 1, 2
E4M3, E5M2, E2M1, E8M3 = (4, 3, NAN_ONLY), (5, 2, IEEE), (2, 1, FINITE), (8, 3, IEEE)


def numbers(*shape, dtype=torch.float32, special=False, seed=0):
    """Magnitudes over many binades, both signs, zeros; with `special` also NaN, Inf and the smallest subnormal."""
    generator = torch.Generator().manual_seed(seed)
    spread = 2.0 ** torch.randint(-12, 11, shape, generator=generator)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)
    flat = x.view(-1)
    flat[::7] = 0.0
    flat[3::11] = -0.0
    if special:
        for start, value in enumerate([float("nan"), float("inf"), -float("inf"), 2.0**-149, -3e38]):
            flat[5 + 9 * start :: 61] = value
    return x


def arguments(
    element, scaling=NONE, rounding=NEAREST, random_bits=32, overflow=SATURATE, axis=0, batched=False, derivative=False
):
    return (*element, scaling, rounding, random_bits, overflow, axis, batched, derivative, 1234, 5)


def assert_as_on_the_cpu(emulated, x, *settings):
    result = assert_same_under_schedules(lambda: emulated.fake_quantize(x, *settings))
    assert_same_bits(result, torch.ops.lsfast.fake_quantize(x, *settings))
    return result


@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC, TOWARD_ZERO])
@pytest.mark.parametrize("element", [E4M3, E5M2, E2M1, E8M3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unscaled_elements(emulated, dtype, element, rounding):
    x = numbers(1501, dtype=dtype, special=True)
    assert_as_on_the_cpu(emulated, x, *arguments(element, rounding=rounding))


@pytest.mark.parametrize("overflow", [SATURATE, INFINITY, NAN])
@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC, TOWARD_ZERO])
def test_overflow(emulated, overflow, rounding):
    x = numbers(500, special=True) * 1e3
    assert_as_on_the_cpu(emulated, x, *arguments(E5M2, rounding=rounding, random_bits=8, overflow=overflow))


@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC])
@pytest.mark.parametrize("element", [E4M3, E5M2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_per_tensor_scale(emulated, dtype, element, rounding):
    x = numbers(35, 43, dtype=dtype)
    assert_as_on_the_cpu(emulated, x, *arguments(element, PER_TENSOR, rounding))


def test_largest_magnitude_over_several_blocks(emulated):
    x = numbers(40_000)
    x[39_999] = 3e7
    assert_as_on_the_cpu(emulated, x, *arguments(E4M3, PER_TENSOR))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC, TOWARD_ZERO])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nvfp4_along_rows(emulated, dtype, rounding, special):
    x = numbers(29, 80, dtype=dtype, special=special)
    assert_as_on_the_cpu(emulated, x, *arguments(E2M1, NVFP4, rounding, axis=1))


@pytest.mark.parametrize("shape", [(80, 29), (37, 10), (2, 21, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nvfp4_along_other_axes_with_a_partial_last_block(emulated, dtype, shape):
    x = numbers(*shape, dtype=dtype, special=True)
    for axis in range(x.dim()):
        for rounding in (NEAREST, STOCHASTIC):
            assert_as_on_the_cpu(emulated, x, *arguments(E2M1, NVFP4, rounding, axis=axis))


@pytest.mark.parametrize("scaling", [NONE, PER_TENSOR, NVFP4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_not_aligned_to_16_bytes(emulated, dtype, scaling):
    x = numbers(641, dtype=dtype)[1:]
    settings = arguments(E2M1 if scaling == NVFP4 else E4M3, scaling)
    aligned = assert_as_on_the_cpu(emulated, x.clone(), *settings)
    assert_same_bits(assert_as_on_the_cpu(emulated, x, *settings), aligned)

    def into_unaligned():
        out = torch.full([641], 7.0, dtype=dtype)
        emulated.fake_quantize_out(x, out[1:], *settings)
        return out

    result = assert_same_under_schedules(into_unaligned)
    assert_same_bits(result[1:], aligned)
    assert result[0] == 7.0


def test_views_that_are_not_contiguous(emulated):
    x = numbers(64, 48).t()
    assert_as_on_the_cpu(emulated, x, *arguments(E2M1, NVFP4, axis=1))


@pytest.mark.parametrize("scaling", [NONE, PER_TENSOR, NVFP4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_derivative_is_zero_where_the_value_saturated(emulated, dtype, scaling):
    x = numbers(10, 32, dtype=dtype, special=True)
    result = assert_as_on_the_cpu(emulated, x, *arguments(E2M1, scaling, axis=1, derivative=True))
    assert set(result.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("shape", [(3, 5, 32), (4, 7, 9)])
@pytest.mark.parametrize("scaling", [NONE, PER_TENSOR, NVFP4])
def test_batched_tensors_are_quantized_as_if_alone(emulated, scaling, shape):
    x = numbers(*shape)
    element = E2M1 if scaling == NVFP4 else E4M3
    result = assert_as_on_the_cpu(emulated, x, *arguments(element, scaling, STOCHASTIC, axis=2, batched=True))
    for i in range(shape[0]):
        alone = emulated.fake_quantize(x[i].clone(), *arguments(element, scaling, STOCHASTIC, axis=1))
        assert_same_bits(result[i], alone)


def test_both_libraries_check_their_arguments_alike(emulated):
    for operators in (emulated, torch.ops.lsfast):
        with pytest.raises(RuntimeError, match=r"axis must lie in 0\.\.0, got 3"):
            operators.fake_quantize(numbers(4), *arguments(E2M1, NVFP4, axis=3))
