"""Points formed and quantized in one go are fake_quantize of the points that are formed first, bit for bit."""

import pytest
import torch

import lsfast
from lsfast.formats import QuantScheme
from lsfast.landscape import reference
from lsfast.program.points import parameter_points
from lsfast.program.quantized_points import quantized_points
from lsfast.scheme_numbers import scheme_numbers

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SEED, STREAM = 7, 3


def arguments(n, d, g, dtype=torch.float32, seed=0):
    """Magnitudes over many binades, as weights of several layers have, with zeros."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, generator=generator) * 2.0 ** torch.randint(-12, 8, (n,), generator=generator)
    theta[::7] = 0.0
    directions = torch.randn(d, n, generator=generator)
    coordinates = torch.randn(g, d, generator=generator) / 4
    coordinates[0] = 0.0
    return [x.to(dtype) for x in (theta, directions, coordinates)]


def by_hand(theta, directions, coordinates, scheme, rows, length):
    points = parameter_points(theta, directions, coordinates)
    each = [lsfast.fake_quantize(p.view(rows, length), scheme, seed=SEED, stream=STREAM).flatten() for p in points]
    return torch.stack(each)


def assert_as_by_hand(inputs, scheme, rows, length):
    expected = by_hand(*inputs, scheme, rows, length)
    result = quantized_points(*inputs, scheme, rows, length, seed=SEED, stream=STREAM)
    same = (result.view(torch.uint8) == expected.view(torch.uint8)).all()
    assert same, f"{scheme} {inputs[0].dtype} {rows} x {length}: first at {(result != expected).nonzero()[:1].tolist()}"


# Whole tiles and blocks, lines that end within a block, lines longer than a tile, a single line of one.
SHAPES = [(4, 512), (37, 33), (3, 1100), (1, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*lsfast.schemes(), "e8m3", "e7m7"])
def test_every_scheme_has_the_bits_of_points_formed_first(name, dtype):
    for rows, length in SHAPES:
        for rounding in ("nearest", "stochastic") if name != "fp32" else ("nearest",):
            inputs = arguments(rows * length, 2, 3, dtype)
            assert_as_by_hand(inputs, lsfast.scheme(name).replace(rounding=rounding), rows, length)


VARIANTS = [
    *(lsfast.scheme("mxfp8_e4m3").replace(block=block) for block in (16, 64, 128, 256, 512)),
    *(lsfast.scheme("mxfp4").replace(scale_rule=rule, rounding="toward_zero") for rule in ("floor", "ceil", "even")),
    *(lsfast.scheme("nvfp4").replace(hadamard=size, hadamard_seed=1) for size in (16, 32, 64, 128)),
    *(lsfast.scheme(name).replace(hadamard=64) for name in ("bf16", "fp8_e4m3", "int8", "nvfp4_2d", "mxfp4")),
    *(lsfast.scheme("nvfp4").replace(compat=compat) for compat in ("torchao", "modelopt")),
    lsfast.scheme("nvfp4").replace(tensor_scale=False),
    lsfast.scheme("mxfp4").replace(compat="torchao"),
    lsfast.scheme("fp8_e4m3_128x128").replace(block=(512, 512)),
    lsfast.scheme("fp8_e5m2").replace(scale_rule="power_of_two", rounding="stochastic", random_bits=5),
    lsfast.scheme("int4_g32").replace(element="int4_full", rounding="stochastic"),
    QuantScheme("overflowing", "e3m1", overflow="nan"),
]


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("scheme", VARIANTS, ids=str)
def test_every_field_of_a_scheme_counts_as_it_does_there(scheme, dtype):
    for rows, length in ((6, 640), (530, 128)):
        assert_as_by_hand(arguments(rows * length, 2, 2, dtype), scheme, rows, length)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 9])
def test_any_number_of_directions_and_points(d, dtype):
    for g in (1, 2, 17):
        for name in ("nvfp4", "mxfp4", "int8"):
            assert_as_by_hand(arguments(5 * 96, d, g, dtype), lsfast.scheme(name), 5, 96)


@pytest.mark.parametrize("name", lsfast.schemes())
def test_not_numbers_infinities_and_blocks_of_zeros(name):
    theta, directions, coordinates = arguments(6 * 600, 2, 3)
    theta[:600] = 0.0
    directions[:, :600] = 0.0
    for at, value in ((700, float("nan")), (1500, float("inf")), (1900, -float("inf")), (2500, 3e38), (2600, 1e-45)):
        theta[at] = value
    points = parameter_points(theta, directions, coordinates)
    assert points.isnan().any()
    assert points.isinf().any()
    scheme = lsfast.scheme(name)
    result = quantized_points(theta, directions, coordinates, scheme, 6, 600)
    expected = by_hand(theta, directions, coordinates, scheme, 6, 600)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(), expected.nan_to_num())
    assert (result[:, :600] == 0).all() or expected[:, :600].isnan().any()


def test_points_stored_past_the_cache_have_the_same_bits():
    for n in (1 << 18, 3 * 65536 + 4096):
        inputs = arguments(n, 2, 6)
        for name in ("mxfp4", "fp8_e4m3"):
            assert_as_by_hand(inputs, lsfast.scheme(name), n // 4096, 4096)


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_points_of_16_bit_types_are_rounded_once(dtype):
    theta, directions, coordinates = arguments(1000, 3, 4, dtype)
    exact = reference.points(theta.float(), directions.float(), coordinates.float())
    assert torch.equal(parameter_points(theta, directions, coordinates), exact.to(dtype))


def test_strided_arguments_and_a_given_result():
    theta, directions, coordinates = arguments(2 * 96, 4, 6)
    views = theta[::2], directions[::2, 1::2], coordinates[:, :2].T.contiguous().T
    out = torch.full((6, 96), 5.0)
    result = quantized_points(*views, "nvfp4", 3, 32, out=out)
    assert result is out
    assert torch.equal(out, by_hand(*views, lsfast.scheme("nvfp4"), 3, 32))
    assert quantized_points(theta, directions, coordinates[:0], "nvfp4", 2, 96).shape == (0, 192)


def test_operator_keeps_the_rules_of_torch_library():
    numbers = scheme_numbers(lsfast.scheme("nvfp4"))
    inputs = (*arguments(96, 2, 3), torch.empty(3, 96), numbers, 32, 0, 0)
    torch.library.opcheck(torch.ops.lsfast.quantized_points_out, inputs)


def test_bad_arguments_are_named_and_nothing_is_written():
    theta, directions, coordinates = arguments(96, 2, 3)
    out = torch.full((3, 96), 5.0)

    def refused(error, message, *inputs, scheme="mxfp4", rows=3, length=32, **settings):
        with pytest.raises(error, match=f"quantized_points: .*{message}"):
            quantized_points(*(inputs or (theta, directions, coordinates)), scheme, rows, length, out=out, **settings)

    refused(ValueError, r"rows \* length must be the 96 parameters of theta, got 3 \* 31", length=31)
    refused(TypeError, "rows must be an integer", rows=3.0)
    refused(ValueError, "hadamard=64 must divide length, got 32", scheme=lsfast.scheme("bf16").replace(hadamard=64))
    stochastic = lsfast.scheme("mxfp4").replace(rounding="stochastic")
    refused(ValueError, "seed must be given for stochastic rounding", scheme=stochastic)
    refused(ValueError, "stream must be at least 0", stream=-1)
    refused(ValueError, "theta must be a floating-point tensor", theta.long(), directions, coordinates)
    refused(ValueError, r"theta must have shape \[n\], got \[1, 96\]", theta[None], directions, coordinates)
    refused(RuntimeError, "directions must have the dtype of theta", theta, directions.double(), coordinates)
    refused(RuntimeError, r"coordinates must have shape \[g, 2\]", theta, directions, coordinates[:, :1])
    refused(RuntimeError, r"out must have shape \[2, 96\], got \[3, 96\]", theta, directions, coordinates[:2])
    strict = lsfast.scheme("mxfp4").replace(nan="raise")
    infinite = torch.where(torch.arange(96) == 5, torch.inf, theta)
    refused(ValueError, "got 1 NaN or Inf in point 0, first at 5", infinite, directions, coordinates, scheme=strict)
    refused(ValueError, "theta must not require a derivative", theta.clone().requires_grad_(), directions, coordinates)
    assert (out == 5).all()
    with pytest.raises(ValueError, match="out must not share memory with directions"):
        quantized_points(theta, directions, coordinates[:2], "mxfp4", 3, 32, out=directions)
    with pytest.raises(ValueError, match="nearest is 'nvfp4'"):
        quantized_points(theta, directions, coordinates, "nvfp5", 3, 32)
    with pytest.raises(RuntimeError, match="length must divide the 96 parameters, got 31"):
        torch.ops.lsfast.quantized_points_out(
            theta, directions, coordinates, out, scheme_numbers(lsfast.scheme("mxfp4")), 31, 0, 0
        )
