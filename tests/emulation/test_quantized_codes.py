"""The CUDA kernels of quantize, dequantize and the Hadamard transform give the bits of the CPU kernels."""

import pytest
import torch

import lsfast

from .quantization_cases import (
    DTYPES,
    ROUNDINGS,
    SEED,
    STREAM,
    assert_same_numbers,
    is_square,
    numbers,
    scheme_numbers,
    variant,
)
from .schedules import assert_same_bits, assert_same_under_schedules

# Codes of 3, 5 and 7 bits beside the named schemes' 4, 6, 8, 16 and 32; unscaled ones of 5, 12 and 29.
ODD = [variant("mxfp4", element=f"e2m{m}", name=f"mx_e2m{m}") for m in (0, 2, 4)]
UNSCALED = [lsfast.scheme(name) for name in ("e2m2", "e5m6", "e8m20")]
SIGNS = [0x5A1248F7, 0x00FF9C31, 0xFFFFFFFF, 0x80000001]
SCHEMES = [*map(lsfast.scheme, lsfast.schemes()), *ODD, *UNSCALED]


def quantize(library, x, scheme, amax=None, word_inner=1):
    return library.quantize(x, amax, scheme_numbers(scheme), word_inner, SEED, STREAM)


def dequantize(library, quantized, scheme, shape, dtype):
    out = torch.empty(shape, dtype=dtype)
    library.dequantize_out(*quantized, out, scheme_numbers(scheme))
    return out


def assert_codes_as_on_the_cpu(emulated, x, scheme, **settings):
    result = assert_same_under_schedules(lambda: quantize(emulated, x, scheme, **settings))
    expected = quantize(torch.ops.lsfast, x, scheme, **settings)
    for mine, theirs, what in zip(result, expected, ("codes", "scales", "amax"), strict=True):
        assert_same_numbers(mine, theirs, f"{what} of {scheme.name} {x.dtype} {tuple(x.shape)}")
    return result


def assert_numbers_as_on_the_cpu(emulated, quantized, scheme, shape, dtype):
    result = assert_same_under_schedules(lambda: dequantize(emulated, quantized, scheme, shape, dtype))
    expected = dequantize(torch.ops.lsfast, quantized, scheme, shape, dtype)
    assert_same_numbers(result, expected, f"numbers of {scheme.name} {dtype} {shape}")
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_codes_scales_and_the_way_back(emulated, scheme):
    for dtype in DTYPES:
        for shape in [(2, 256), (5, 37)]:
            x = numbers(*shape, dtype=dtype)
            quantized = assert_codes_as_on_the_cpu(emulated, x, scheme)
            assert_numbers_as_on_the_cpu(emulated, quantized, scheme, shape, dtype)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_codes_of_not_numbers_and_stochastic_rounding(emulated, scheme):
    for rounding in ROUNDINGS[1:]:
        x = numbers(3, 160, special=True)
        quantized = assert_codes_as_on_the_cpu(emulated, x, scheme.replace(rounding=rounding))
        assert_numbers_as_on_the_cpu(emulated, quantized, scheme, x.shape, torch.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_the_way_back_is_fake_quantization(emulated, scheme):
    x = numbers(20, 96)
    result = dequantize(emulated, quantize(emulated, x, scheme), scheme, x.shape, x.dtype)
    expected = emulated.fake_quantize(x, None, scheme_numbers(scheme), 1, False, False, SEED, STREAM)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not is_square(s)], ids=lambda s: s.name)
def test_draws_of_an_axis_that_was_moved_to_the_end(emulated, scheme):
    x, stochastic = numbers(2, 40, 3), scheme.replace(rounding="stochastic")
    moved = x.movedim(1, 2).contiguous()
    quantized = assert_codes_as_on_the_cpu(emulated, moved, stochastic, word_inner=3)
    result = dequantize(emulated, quantized, stochastic, moved.shape, x.dtype).movedim(2, 1)
    expected = emulated.fake_quantize(x, None, scheme_numbers(stochastic), 1, False, False, SEED, STREAM)
    assert_same_bits(result.contiguous(), expected)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp6_e3m2", "int8", "nvfp4_2d", "bf16", "fp8_e4m3"])
def test_codes_of_memory_that_is_not_aligned_and_of_the_transform(emulated, name):
    scheme = lsfast.scheme(name)
    for dtype in (torch.float32, torch.bfloat16):
        x = numbers(4 * 64 + 1, dtype=dtype)[1:].view(4, 64)
        aligned = assert_codes_as_on_the_cpu(emulated, x.clone(), scheme)
        assert_same_bits(assert_codes_as_on_the_cpu(emulated, x, scheme), aligned)
        for length in (64, 48):
            assert_codes_as_on_the_cpu(emulated, numbers(17, length, dtype=dtype), scheme.replace(hadamard=16))
    out = torch.empty(4 * 64 + 1)[1:].view(4, 64)
    emulated.dequantize_out(*aligned, out, scheme_numbers(scheme))
    assert_same_bits(out, dequantize(torch.ops.lsfast, aligned, scheme, (4, 64), torch.float32))


@pytest.mark.parametrize("name", ["nvfp4", "fp8_e4m3", "nvfp4_2d"])
def test_codes_under_a_given_largest_magnitude(emulated, name):
    for shape in [(4, 64), (20, 33)]:
        assert_codes_as_on_the_cpu(emulated, numbers(*shape), lsfast.scheme(name), amax=torch.tensor([3.5]))


def assert_transform_as_on_the_cpu(emulated, x, *arguments):
    result = assert_same_under_schedules(lambda: emulated.hadamard(x, *arguments))
    assert_same_numbers(result, torch.ops.lsfast.hadamard(x, *arguments))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_hadamard_transform(emulated, size, dtype, inverse):
    for shape, axis in [((3, 3 * size), 1), ((2, 3 * size, 37), 1), ((size, 2), 0), ((20 * size,), 0)]:
        for special in (False, True):
            x = numbers(*shape, dtype=dtype, special=special)
            assert_transform_as_on_the_cpu(emulated, x, axis, size, SIGNS, inverse)
    unaligned = numbers(2 * size + 1, dtype=dtype)[1:]
    assert_transform_as_on_the_cpu(emulated, unaligned, 0, size, SIGNS, inverse)
