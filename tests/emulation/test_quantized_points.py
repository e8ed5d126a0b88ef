"""The CUDA kernels that form and quantize points give the bits of the CPU kernels, in any order of threads."""

import pytest
import torch

import lsfast

from .quantization_cases import DTYPES, SEED, STREAM, assert_same_numbers, numbers, scheme_numbers, variant
from .schedules import assert_same_under_schedules


def assert_as_on_the_cpu(emulated, scheme, rows, length, d=2, g=3, dtype=torch.float32, special=False, offset=0):
    theta = numbers(rows * length + offset, dtype=dtype, special=special)[offset:]
    directions = numbers(d, rows * length, dtype=dtype, seed=1)
    coordinates = torch.randn(g, d, generator=torch.Generator().manual_seed(2)).to(dtype)

    def points(library):
        out = torch.full([g, rows * length], 7.0, dtype=dtype)
        library.quantized_points_out(
            theta, directions, coordinates, out, scheme_numbers(scheme), length, SEED, STREAM
        )  # fmt: skip
        return out

    result = assert_same_under_schedules(lambda: points(emulated))
    what = f"{scheme.name} {scheme.rounding} {dtype} {rows} x {length}"
    assert_same_numbers(result, points(torch.ops.lsfast), what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*lsfast.schemes(), "e8m3"])
def test_every_scheme(emulated, name, dtype):
    for rounding in ("nearest", "stochastic"):
        assert_as_on_the_cpu(emulated, variant(name, rounding=rounding), 3, 160, dtype=dtype)


@pytest.mark.parametrize("name", lsfast.schemes())
def test_last_blocks_that_are_not_full_and_numbers_that_are_not(emulated, name):
    assert_as_on_the_cpu(emulated, variant(name), 6, 75, special=True)
    assert_as_on_the_cpu(emulated, variant(name), 18, 33, offset=1)  # memory that is not aligned to 16 bytes


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "fp8_e4m3", "int8", "fp8_e4m3_128x128", "e4m3"])
def test_more_than_one_strip_and_any_numbers_of_points_and_directions(emulated, name):
    for d, g in ((1, 1), (3, 2), (5, 70)):
        rows, length = (5, 256) if g == 70 else (3, 2304)
        assert_as_on_the_cpu(emulated, variant(name), rows, length, d, g)


@pytest.mark.parametrize("block", [16, 64, 128, 256, 512])
def test_lengths_and_sides_of_blocks(emulated, block):
    assert_as_on_the_cpu(emulated, variant("mxfp8_e4m3", block=block), 2, 600)
    assert_as_on_the_cpu(emulated, variant("fp8_e4m3_128x128", block=(block, block)), 20, 160)


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "fp8_e4m3", "int8", "bf16"])
def test_transform_in_front(emulated, name, size):
    for dtype in (torch.float32, torch.float64):
        assert_as_on_the_cpu(emulated, variant(name, hadamard=size), 3, 3 * size, dtype=dtype, special=True)
