"""Block scales where their rules turn from one power of two to the next, and what the rules cost on Gaussian data."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hard_tensors import LARGEST, against_reference, assert_same_bits

import lsfast
from lsfast.formats import element_format
from lsfast.quantization import reference

MX = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8"]
RULES = ["rceil", "floor", "ceil", "even"]


def around(values: np.ndarray, ulps: int) -> np.ndarray:
    """The positive finite float32 numbers within some ulps of the given ones."""
    bits = values[:, None].astype(np.float32).view(np.uint32).astype(np.int64) + np.arange(-ulps, ulps + 1)
    return np.unique(bits[(bits > 0) & (bits < 0x7F800000)].astype(np.uint32)).view(np.float32)


def turning_points(largest: float, significant_bits: int) -> np.ndarray:
    """Where some rule takes another power of two, at every exponent of float32, and the numbers next to them."""
    mantissas = np.array([1.0, 2.0 - 2.0**-significant_bits, largest, 1.5])
    with np.errstate(over="ignore"):
        points = (mantissas * np.ldexp(1.0, np.arange(-160, 128))[:, None]).astype(np.float32)
    return around(points[(points > 0) & np.isfinite(points)], 2)


def blocks_with(amax: np.ndarray, length: int) -> np.ndarray:
    """A line of one block for each largest magnitude, the others being fractions of it."""
    fractions = np.random.default_rng(0).uniform(-1, 1, (len(amax), length)).astype(np.float32)
    x = fractions * amax[:, None]
    x[:, length // 2] = -amax
    return x


def exponent_by_definition(amax: float, element: lsfast.formats.ElementFormat, rule: str) -> int:
    """The exponent of a scale from rational arithmetic: the rules as their sources state them."""
    wanted, largest, power = Fraction(float(amax)), Fraction(element.largest), Fraction(2)
    if rule == "rceil":
        return next(e for e in range(-200, 200) if power**e >= wanted / largest)
    floor = next(e for e in range(200, -200, -1) if power**e <= wanted)
    bits = element.mantissa_bits - (0 if element.is_float else 1)
    if rule == "ceil":
        floor += wanted != power**floor
    if rule == "even":
        floor += (wanted / power**floor * power**bits + Fraction(1, 2)) // 1 == power ** (bits + 1)
    return floor - next(e for e in range(200, -200, -1) if power**e <= largest)


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
def test_reference_exponents_are_those_of_rational_arithmetic(name, rule):
    element = element_format(lsfast.scheme(name).element)
    amax = np.random.default_rng(0).choice(turning_points(element.largest, element.mantissa_bits + 1), 100)
    expected = [exponent_by_definition(one, element, rule) for one in amax]
    assert reference.e8m0_exponent(amax, element, rule).tolist() == expected


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("compat", [None, "torchao"])
def test_mx_scales_turn_exactly_where_the_reference_turns(name, rule, compat):
    scheme = lsfast.scheme(name).replace(scale_rule=rule, compat=compat)
    element = element_format(scheme.element)
    bits = element.mantissa_bits + (1 if element.is_float else 0)
    against_reference(blocks_with(turning_points(element.largest, bits), 32), scheme)


@pytest.mark.parametrize("name", ["fp8_e4m3_row", "fp8_e4m3_1x128", "int8", "int4_g32", "nf4_g64"])
def test_float32_scales_are_the_reference_ones_at_every_exponent(name):
    scheme = lsfast.scheme(name)
    largest = element_format(scheme.element).largest
    against_reference(blocks_with(turning_points(largest, 8), 32), scheme)


@pytest.mark.parametrize("element", ["e4m3", "e5m2", "int8", "int8_full", "int4_full"])
def test_a_power_of_two_scale_never_saturates_and_fills_more_than_half_the_range(element):
    scheme = lsfast.scheme("fp8_e4m3_1x128").replace(element=element)
    largest = element_format(element).largest
    amax = turning_points(largest, 4)
    amax = amax[(amax > 2.0**-110)]  # below, the scale has reached the largest float32
    x = blocks_with(amax, 32)
    scaled, factor = reference.scale(x, scheme)
    assert (np.frexp(factor)[0] == 0.5).all()
    assert (np.abs(scaled).max(1) <= largest + 0.5 * (scheme.element[-4:] == "full")).all()
    assert (np.abs(scaled).max(1) > largest / 2).all()
    against_reference(x, scheme)


@pytest.mark.parametrize("name", MX)
def test_a_zero_block_has_scale_byte_zero_and_stays_zero(name):
    amax = np.array([0.0, 1.0], np.float32)
    for rule in RULES:
        _, factor = reference.e8m0_scale(amax, element_format(lsfast.scheme(name).element), rule, None)
        assert factor[0] == 2.0**-127
    x = np.zeros((3, 64), np.float32)
    x[1, 40] = 1.0
    against_reference(x, lsfast.scheme(name))


def test_nvfp4_of_a_block_of_representable_numbers_is_nearly_exact():
    # With amax 6 every number is a code; what is left is the error of the float32 roundings of the scales.
    x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] * 2)
    assert torch.allclose(lsfast.fake_quantize(x, "nvfp4"), x, rtol=4 * 2**-24, atol=0)


def test_floors_of_other_libraries_keep_small_blocks():
    # With amax 2688 the tensor's scale is 1. A block with amax 2.5 * 2^-9 wants the scale 0.83 * 2^-10, which E4M3
    # rounds to 0; torchao takes 2^-6, of which the amax is 0.3125; ModelOpt takes 2^-9, of which it is 2.5.
    x = np.zeros((2, 16), np.float32)
    x[0, 0], x[1, 0] = 2688.0, 2.5 * 2.0**-9
    for compat, expected in ((None, 0.0), ("torchao", 0.5 * 2.0**-6), ("modelopt", 2.0 * 2.0**-9)):
        result = lsfast.fake_quantize(torch.from_numpy(x), lsfast.scheme("nvfp4").replace(compat=compat))
        assert result[:, 0].tolist() == [2688.0, expected]


def test_without_a_tensor_scale_the_block_scale_is_amax_over_six():
    x = np.zeros((3, 16), np.float32)
    x[0, :2], x[1, :2], x[2, :2] = (6.0, 1.0), (48.0, 8.0), (1e6, 100.0)
    expected = np.zeros_like(x)
    # The scale of 1e6 is E4M3's largest: 448 * 6 and 448 * 0 (100/448 < 1/4) remain.
    expected[0, :2], expected[1, :2], expected[2, :2] = (6.0, 1.0), (48.0, 8.0), (2688.0, 0.0)
    scheme = lsfast.scheme("nvfp4").replace(tensor_scale=False)
    for compat in (None, "torchao", "modelopt"):
        assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme.replace(compat=compat)), expected, compat)


def test_full_integer_ranges_reach_their_negative_end():
    x = np.array([[-4.0, 4.0, 3.99, -3.97, 0.0, -0.0]], np.float32)
    for element, end in (("int8_full", 128), ("int4_full", 8)):
        scheme = lsfast.scheme("int8").replace(element=element)
        result = lsfast.fake_quantize(torch.from_numpy(x), scheme).numpy()
        codes = np.rint(result * ((end - 0.5) / 4.0))
        assert codes[0, :2].tolist() == [-end, end - 1]
        against_reference(x, scheme)


def test_the_largest_float32_is_a_number_of_every_scale():
    x = np.full((2, 64), LARGEST, np.float32)
    x[1] = -LARGEST
    for name in (*MX, "nvfp4", "fp8_e4m3", "int8", "int4_g32", "nf4_g64"):
        against_reference(x, lsfast.scheme(name))


@pytest.fixture(scope="module")
def gaussian():
    return np.random.default_rng(0).standard_normal((2**15, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rule", "decibels"),
    [
        ("mxfp4", "floor", 18.80),
        ("mxfp4", "rceil", 18.77),
        ("mxfp4", "ceil", 16.84),
        ("mxfp4", "even", 19.04),
        ("mxfp8_e4m3", "floor", 30.68),
        ("mxfp8_e4m3", "rceil", 31.54),
        ("mxfp8_e4m3", "ceil", 31.54),
        ("mxfp8_e4m3", "even", 31.21),
    ],
)
def test_signal_to_noise_on_gaussian_data(name, rule, decibels, gaussian):
    # Both figures are of 2^20 draws. Over seeds, such a figure has a standard deviation of 0.005 dB (MXFP4) to
    # 0.014 dB (MXFP8 by floor): 0.05 dB is some three standard errors of the difference of two, and 1% of the noise.
    scheme = lsfast.scheme(name).replace(scale_rule=rule)
    result, statistics = lsfast.fake_quantize(torch.from_numpy(gaussian), scheme, statistics=True)
    noise = result.numpy().astype(np.float64) - gaussian
    measured = 10 * np.log10(np.sum(np.square(gaussian, dtype=np.float64)) / np.sum(noise**2))
    assert abs(measured - decibels) < 0.05
    assert abs(float(statistics.sqnr) - measured) < 1e-9


@pytest.mark.parametrize(("name", "share"), [("mxfp4", 0.30), ("mxfp8_e4m3", 0.17)])
def test_floor_saturates_in_as_many_gaussian_blocks_as_published(name, share, gaussian):
    scheme = lsfast.scheme(name).replace(scale_rule="floor")
    _, statistics = lsfast.fake_quantize(torch.from_numpy(gaussian), scheme, statistics="block")
    scaled, _ = reference.scale(gaussian, scheme)
    expected = (np.abs(scaled) > element_format(scheme.element).largest).sum(1)
    assert np.array_equal(statistics.saturated.numpy().reshape(-1), expected)
    # Published to the whole per cent; the standard error over 2^15 blocks is 0.25%.
    assert abs((expected > 0).mean() - share) < 0.0125
