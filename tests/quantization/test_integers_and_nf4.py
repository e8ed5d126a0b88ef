"""Integers, MXINT8 and NF4 on every finite bfloat16 and its half-ulp neighbours, against NumPy, gfloat and SciPy.

They have no unscaled scheme: a scale of exactly 1 comes of a given amax, or of a block whose largest is known.
"""

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch
from hard_tensors import against_reference, assert_same_bits, every_bfloat16_and_its_neighbours, words_of
from scipy.stats import norm

import lsfast
from lsfast import _numerics
from lsfast.formats import element_format
from lsfast.quantization import reference

INTEGERS = {"int8": (-127, 127), "int4": (-7, 7), "int8_full": (-128, 127), "int4_full": (-8, 7)}
TABLE = np.unique(reference.fake_quantize(np.linspace(-1, 1, 10001), lsfast.scheme("nf4_g64").replace(block="row")))


def integer(name: str, rounding: str = "nearest") -> tuple[lsfast.formats.QuantScheme, float]:
    """A scheme with one scale for the tensor, and the amax for which that scale is 1."""
    scheme = lsfast.scheme("int8").replace(element=name, block="tensor", rounding=rounding)
    return scheme, element_format(name).largest + (0.5 if name.endswith("full") else 0.0)


def in_blocks(x: np.ndarray, largest: float, length: int) -> np.ndarray:
    """Lines of a length that begin with `largest` and go on with x, filled up with zeros."""
    per_line = length - 1
    padded = np.zeros(-(-len(x) // per_line) * per_line, np.float32)
    padded[: len(x)] = x
    lines = padded.reshape(-1, per_line)
    return np.concatenate([np.full((len(lines), 1), largest, np.float32), lines], axis=1)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_round_half_to_even_and_clip(name):
    x = every_bfloat16_and_its_neighbours()
    scheme, amax = integer(name)
    expected = np.clip(np.rint(x), *INTEGERS[name]) + np.float32(0.0)
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme, amax=amax), expected)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_toward_zero_truncate(name):
    x = every_bfloat16_and_its_neighbours()
    scheme, amax = integer(name, "toward_zero")
    expected = np.clip(np.trunc(x), *INTEGERS[name]) + np.float32(0.0)
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme, amax=amax), expected)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_round_stochastically_by_their_fraction(name):
    x = every_bfloat16_and_its_neighbours()
    scheme, amax = integer(name, "stochastic")
    magnitude = np.minimum(np.abs(x.astype(np.float64)), 1000.0)
    fraction = np.floor((magnitude - np.floor(magnitude)) * 2.0**32)
    up = fraction + words_of(x.shape, 5) >= 2.0**32
    expected = np.clip(np.copysign(np.floor(magnitude) + up, x), *INTEGERS[name]).astype(np.float32) + np.float32(0.0)
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme, amax=amax, seed=5), expected)


def arguments(name: str) -> tuple[int, int, str]:
    element = element_format(name)
    return element.exponent_bits, element.mantissa_bits, element.special


@pytest.mark.parametrize("name", [*INTEGERS, "mxint8"])
def test_integer_codes_are_twos_complement(name):
    bits = element_format(name).bits
    codes = np.arange(2**bits, dtype=np.uint32)
    values = _numerics.decode(codes, *arguments(name))
    signed = codes.astype(np.int32) - np.where(codes >= 2 ** (bits - 1), 2**bits, 0)
    assert np.array_equal(values, signed * element_format(name).smallest_subnormal)
    assert np.array_equal(_numerics.encode(values, *arguments(name)), codes)
    if name == "mxint8":
        info = gfloat.formats.format_info_ocp_int8
        assert values.tolist() == [gfloat.decode_float(info, int(code)).fval for code in codes]


def test_nf4_codes_count_the_table_from_below():
    codes = np.arange(16, dtype=np.uint32)
    assert np.array_equal(_numerics.decode(codes, *arguments("nf4")), TABLE)
    assert np.array_equal(_numerics.encode(TABLE, *arguments("nf4")), codes)


@pytest.mark.parametrize("name", [*INTEGERS, "mxint8", "nf4"])
def test_what_is_not_a_number_has_the_largest_code(name):
    bits = element_format(name).bits
    largest = 15 if name == "nf4" else 2 ** (bits - 1) - 1
    assert _numerics.encode(np.array([np.nan], np.float32), *arguments(name)).tolist() == [largest]


@pytest.mark.parametrize("name", [*INTEGERS, "mxint8", "nf4"])
def test_scalar_rounding_equals_the_reference(name):
    x = np.concatenate([every_bfloat16_and_its_neighbours(), np.array([np.nan, np.inf, -np.inf], np.float32)])
    words = words_of(x.shape, 1)
    for rounding in ("nearest", "stochastic", "toward_zero"):
        expected = reference.round_to_element(x, element_format(name), rounding, words=words).astype(np.float32)
        drawn = words if rounding == "stochastic" else None
        assert_same_bits(_numerics.round(x, *arguments(name), rounding=rounding, words=drawn), expected, rounding)


def test_mxint8_rounds_like_gfloat_and_ends_at_127_64ths():
    x = every_bfloat16_and_its_neighbours()
    x = x[np.abs(x) < 2]
    blocks = in_blocks(x, 1.5, 32)
    info = gfloat.formats.format_info_ocp_int8
    expected = gfloat.round_ndarray(info, blocks.astype(np.float64), gfloat.RoundMode.TiesToEven, sat=True)
    expected = (np.maximum(expected, -127 / 64) + 0.0).astype(np.float32)  # OCP leaves -2 to the implementation
    scheme = lsfast.scheme("mxint8").replace(scale_rule="floor")  # amax in [1, 2): a scale of 1
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(blocks), scheme), expected)
    for rounding in ("toward_zero", "stochastic"):
        against_reference(blocks, scheme.replace(rounding=rounding))


def test_the_nf4_table_holds_normal_quantiles():
    # Appendix E of the QLoRA paper as bitsandbytes computes it: 9 quantiles above 1/2 and 8 below, the outermost at
    # 1 - (1/32 + 1/30)/2, scaled to 1; its float32 steps are 1e-7.
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    positive = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([negative, [0.0], positive])) / positive.max()
    assert TABLE.shape == (16,)
    np.testing.assert_allclose(TABLE, expected, rtol=0, atol=3e-7)


def test_nf4_takes_the_nearest_of_its_table_and_the_lower_at_a_threshold():
    x = every_bfloat16_and_its_neighbours()
    x = np.unique(x[np.abs(x) <= 1])
    thresholds = (TABLE[:-1] + TABLE[1:]) * np.float32(0.5)
    x = np.concatenate(
        [x, thresholds, np.nextafter(thresholds, np.float32(-2)), np.nextafter(thresholds, np.float32(2))]
    )
    blocks = in_blocks(x.astype(np.float32), 1.0, 64)  # amax 1: multiplied by 1 before and after
    distance = np.abs(blocks.astype(np.float64)[..., None] - TABLE.astype(np.float64))
    expected = TABLE[np.argmin(distance, axis=-1)]
    at, code = np.nonzero(blocks.reshape(-1)[:, None] == thresholds)
    expected.reshape(-1)[at] = TABLE[code]
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(blocks), "nf4_g64"), expected)


def test_nf4_toward_zero_and_stochastic_choose_between_the_neighbours():
    x = every_bfloat16_and_its_neighbours()
    blocks = in_blocks(x[np.abs(x) <= 1], 1.0, 64)
    below = TABLE[np.searchsorted(TABLE, blocks, side="right") - 1]
    above = TABLE[np.searchsorted(TABLE, blocks, side="left")]
    scheme = lsfast.scheme("nf4_g64")
    toward = lsfast.fake_quantize(torch.from_numpy(blocks), scheme.replace(rounding="toward_zero"))
    assert_same_bits(toward, np.where(blocks < 0, above, below))
    drawn = lsfast.fake_quantize(torch.from_numpy(blocks), scheme.replace(rounding="stochastic"), seed=2).numpy()
    assert ((drawn == below) | (drawn == above)).all()
    against_reference(blocks, scheme.replace(rounding="stochastic"))


def test_nf4_just_below_zero_may_still_go_down():
    # The float32 quotient rounds to 1 there, and is kept below it: with 8 bits one draw in 256 goes to -0.091.
    x = np.full((80, 64), -1e-30, np.float32)
    x[:, 0] = 1.0
    scheme = lsfast.scheme("nf4_g64").replace(rounding="stochastic", random_bits=8)
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme, seed=5).numpy()
    down = words_of(x.shape, 5) >> np.uint32(24) == 0
    down[:, 0] = False
    assert 0 < down.sum() < 100
    assert_same_bits(result[down], np.full(down.sum(), TABLE[6]))
    against_reference(x, scheme)


def test_nf4_and_integers_of_infinity_take_their_end_and_keep_the_rest():
    x = torch.tensor([float("inf"), -float("inf"), 0.3, -2.0])
    assert lsfast.fake_quantize(x, "int8").tolist() == [127.0, -127.0, 0.0, -2.0]
    result = lsfast.fake_quantize(x, "nf4_g64")
    assert torch.equal(result, torch.tensor([1.0, -1.0, 0.33791524171829224, -1.0]))
