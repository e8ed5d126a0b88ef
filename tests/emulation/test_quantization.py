"""The CUDA kernels of fake-quantization give the bits of the CPU kernels, in any order of threads."""

import pytest
import torch

import lsfast

from .quantization_cases import (
    DTYPES,
    ROUNDINGS,
    SEED,
    STREAM,
    assert_as_on_the_cpu,
    assert_same_numbers,
    fake_quantize,
    is_square,
    numbers,
    scheme_numbers,
    variant,
)
from .schedules import assert_same_bits, assert_same_under_schedules

# One of each kind: no scale, one for the tensor, blocks of each kind of scale, rows, two dimensions.
KINDS = ["e4m3", "e8m3", "fp8_e5m2", "nvfp4", "mxfp8_e4m3", "fp8_e4m3_1x128", "int8", "nf4_g64", "nvfp4_2d"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", lsfast.schemes())
def test_every_scheme_and_rounding(emulated, name, dtype):
    x = numbers(3, 256, dtype=dtype)
    for rounding in ROUNDINGS:
        assert_as_on_the_cpu(emulated, x, variant(name, rounding=rounding))


@pytest.mark.parametrize(
    ("name", "shape", "axis"), [("int8", (4, 256), 1), ("int4_g32", (4, 70), 1), ("int4_g32", (64, 3), 0)]
)
def test_integers_of_full_range_reach_their_lowest(emulated, name, shape, axis):
    scheme = variant(name, element=f"{lsfast.scheme(name).element}_full")
    x = numbers(*shape)
    x.select(axis, 0).fill_(-1e7)  # the largest of its block: it becomes -128 or -8
    x.select(axis, 1).fill_(1e7)
    for rounding in ROUNDINGS[:2]:
        result = assert_as_on_the_cpu(emulated, x, scheme.replace(rounding=rounding), axis)
        if rounding == "nearest":
            assert (-result.select(axis, 0) > result.select(axis, 1)).all()


@pytest.mark.parametrize("name", [*lsfast.schemes(), "e8m3", "e7m7"])
def test_not_numbers_infinities_and_last_blocks_that_are_not_full(emulated, name):
    for dtype in DTYPES:
        x = numbers(6, 150, dtype=dtype, special=True)
        for rounding in ROUNDINGS[:2]:
            assert_as_on_the_cpu(emulated, x, variant(name, rounding=rounding))


@pytest.mark.parametrize(("shape", "axis"), [((35, 20), 0), ((2, 150, 3), 1), ((3, 17, 70), 1)])
@pytest.mark.parametrize("name", lsfast.schemes())
def test_axes_that_are_not_the_last(emulated, name, shape, axis):
    if is_square(lsfast.scheme(name)) and axis == 0:
        shape, axis = (20, 35, 5), 1
    for dtype in (torch.float32, torch.bfloat16):
        for rounding in ROUNDINGS[:2]:
            assert_as_on_the_cpu(emulated, numbers(*shape, dtype=dtype), variant(name, rounding=rounding), axis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [16, 32, 64, 128, 256, 512])
def test_lengths_of_blocks(emulated, length, dtype):
    scheme = variant("mxfp8_e4m3", block=length)
    for columns in (1024, 600):
        assert_as_on_the_cpu(emulated, numbers(2, columns, dtype=dtype), scheme)
    assert_as_on_the_cpu(emulated, numbers(600, 2, dtype=dtype), scheme, 0)


@pytest.mark.parametrize("shape", [(40, 530), (19, 1024), (2, 33, 300)])
@pytest.mark.parametrize("side", [16, 32, 64, 128, 256, 512])
def test_sides_of_square_blocks(emulated, side, shape):
    for name in ("fp8_e4m3_128x128", "nvfp4_2d"):
        assert_as_on_the_cpu(emulated, numbers(*shape), variant(name, block=(side, side), rounding="stochastic"))
    assert_as_on_the_cpu(emulated, numbers(shape[-2], 140, 3), variant("nvfp4_2d", block=(side, side)), 1)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5000), 1), ((2, 64), 1), ((3000, 2), 0), ((7, 1), 1), ((5,), 0)])
def test_rows_of_any_length(emulated, shape, axis):
    for name in ("int8", "fp8_e4m3_row"):
        for dtype in (torch.float32, torch.float16):
            assert_as_on_the_cpu(emulated, numbers(*shape, dtype=dtype), variant(name, rounding="stochastic"), axis)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("name", KINDS)
def test_transform_in_front(emulated, name, size):
    scheme = variant(name, hadamard=size, rounding="stochastic")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert_as_on_the_cpu(emulated, numbers(3, 3 * size, dtype=dtype), scheme)
        assert_as_on_the_cpu(emulated, numbers(2, 3 * size, 5, dtype=dtype), scheme, 1)


def test_transform_with_infinities_in_it(emulated):
    for name in ("nvfp4", "fp8_e4m3", "bf16"):
        scheme = variant(name, hadamard=16)
        assert_as_on_the_cpu(emulated, numbers(4, 160, special=True), scheme)
        assert_as_on_the_cpu(emulated, numbers(160, 4, special=True), scheme, 0)


@pytest.mark.parametrize(
    ("name", "compat"),
    [
        ("nvfp4", "torchao"),
        ("nvfp4", "modelopt"),
        ("nvfp4_2d", "modelopt"),
        ("mxfp4", "torchao"),
        ("mxint8", "torchao"),
    ],
)
def test_arithmetic_of_other_libraries(emulated, name, compat):
    scheme = variant(name, compat=compat)
    for scale in (1.0, 1e-40, 1e30):
        assert_as_on_the_cpu(emulated, numbers(4, 128) * scale, scheme)
    if name == "nvfp4":
        assert_as_on_the_cpu(emulated, numbers(4, 128), scheme.replace(tensor_scale=False))


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp6_e2m3", "mxint8"])
def test_rules_of_scales(emulated, name, rule):
    scheme = variant(name, scale_rule=rule)
    for scale in (1.0, 1e-40):
        assert_as_on_the_cpu(emulated, numbers(4, 96) * scale, scheme)
        assert_as_on_the_cpu(emulated, numbers(40, 3) * scale, scheme, 0)


@pytest.mark.parametrize("overflow", ["saturate", "inf", "nan"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_overflow_and_random_bits(emulated, overflow, rounding):
    for element in ("e5m2", "bf16"):
        scheme = variant(element, rounding=rounding, overflow=overflow, random_bits=8)
        assert_as_on_the_cpu(emulated, numbers(500, special=True) * 1e3, scheme)


@pytest.mark.parametrize("name", ["fp8_e4m3", "nvfp4", "nvfp4_2d"])
def test_a_given_largest_magnitude(emulated, name):
    amax = torch.tensor([3.5])
    assert_as_on_the_cpu(emulated, numbers(4, 128), lsfast.scheme(name), amax=amax)
    assert_as_on_the_cpu(emulated, numbers(4, 35, 3), lsfast.scheme(name), 1, amax=amax)


@pytest.mark.parametrize("name", ["fp8_e4m3", "nvfp4", "mxfp4", "int8", "e4m3"])
def test_more_than_one_cuda_block(emulated, name):
    x = numbers(40, 1024)
    x[39, 1023] = 3e7
    assert_as_on_the_cpu(emulated, x, variant(name, rounding="stochastic"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_memory_that_is_not_aligned_to_16_bytes(emulated, name, dtype):
    x = numbers(641, dtype=dtype)[1:].view(5, 128) if is_square(lsfast.scheme(name)) else numbers(641, dtype=dtype)[1:]
    scheme = variant(name, rounding="stochastic")
    aligned = assert_as_on_the_cpu(emulated, x.clone(), scheme)
    assert_same_bits(assert_as_on_the_cpu(emulated, x, scheme), aligned)

    def into_unaligned():
        out = torch.full([641], 7.0, dtype=dtype)
        to = out[1:].view(x.shape)
        emulated.fake_quantize_out(
            x, None, to, None, 0, scheme_numbers(scheme), x.dim() - 1, False, False, SEED, STREAM
        )
        return out

    result = assert_same_under_schedules(into_unaligned)
    assert_same_bits(result[1:].view(x.shape), aligned)
    assert result[0] == 7.0


@pytest.mark.parametrize("name", KINDS)
def test_in_place(emulated, name):
    for shape, axis in [((4, 256), 1), ((4, 150), 1), ((3, 40, 5), 1)]:
        x, scheme = numbers(*shape), lsfast.scheme(name)

        def in_place(x=x, scheme=scheme, axis=axis):
            y = x.clone()
            emulated.fake_quantize_out(y, None, y, None, 0, scheme_numbers(scheme), axis, False, False, SEED, STREAM)
            return y

        assert_same_numbers(assert_same_under_schedules(in_place), fake_quantize(torch.ops.lsfast, x, scheme, axis))


def test_views_that_are_not_contiguous(emulated):
    assert_as_on_the_cpu(emulated, numbers(64, 48).t(), lsfast.scheme("nvfp4"))


@pytest.mark.parametrize("name", KINDS)
def test_derivative_is_zero_where_the_value_saturated(emulated, name):
    for dtype in DTYPES:
        for shape, axis in [((10, 128), 1), ((10, 33), 1), ((2, 33, 5), 1)]:
            x = numbers(*shape, dtype=dtype, special=True)
            result = assert_as_on_the_cpu(emulated, x, lsfast.scheme(name), axis, derivative=True)
            assert set(result.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 32), 2), ((4, 7, 9), 2), ((3, 20, 33), 2), ((3, 2, 35, 5), 2)])
@pytest.mark.parametrize("name", KINDS)
def test_batched_tensors_are_quantized_as_if_alone(emulated, name, shape, axis):
    x, scheme = numbers(*shape), variant(name, rounding="stochastic")
    result = assert_as_on_the_cpu(emulated, x, scheme, axis, batched=True)
    for i in range(shape[0]):
        assert_same_bits(result[i], fake_quantize(emulated, x[i].clone(), scheme, axis - 1))


def test_both_libraries_check_their_arguments_alike(emulated):
    for operators in (emulated, torch.ops.lsfast):
        with pytest.raises(RuntimeError, match=r"axis must lie in 0\.\.0, got 3"):
            operators.fake_quantize(numbers(4), None, scheme_numbers(lsfast.scheme("nvfp4")), 3, False, False, 0, 0)
