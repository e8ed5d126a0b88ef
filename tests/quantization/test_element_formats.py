"""Element formats against gfloat and ml_dtypes, on every finite bfloat16 and its half-ulp neighbours."""

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from hard_tensors import against_reference, every_bfloat16_and_its_neighbours

import lsfast
from lsfast import _numerics
from lsfast.formats import element_format
from lsfast.quantization import reference

GFLOAT = {
    "e4m3": gfloat.formats.format_info_ocp_e4m3,
    "e5m2": gfloat.formats.format_info_ocp_e5m2,
    "e3m2": gfloat.formats.format_info_ocp_e3m2,
    "e2m3": gfloat.formats.format_info_ocp_e2m3,
    "e2m1": gfloat.formats.format_info_ocp_e2m1,
}
ML_DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
UNNAMED = ["e8m3", "e8m7", "e7m7", "e6m1", "e5m10", "e4m2", "e3m4", "e2m5", "e8m22", "e8m23"]


def arguments(name: str) -> tuple[int, int, str]:
    element = element_format(name)
    return element.exponent_bits, element.mantissa_bits, element.special


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.asarray(a, np.float32).view(np.uint32), np.asarray(b, np.float32).view(np.uint32))


@pytest.mark.parametrize("name", GFLOAT)
def test_fake_quantize_equals_gfloat_on_every_bfloat16_and_half_ulp_neighbour(name):
    x = every_bfloat16_and_its_neighbours()
    expected = gfloat.round_ndarray(GFLOAT[name], x.astype(np.float64), gfloat.RoundMode.TiesToEven, sat=True)
    assert same_bits(lsfast.fake_quantize(torch.from_numpy(x), name).numpy(), expected)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_fake_quantize_equals_ml_dtypes_on_every_bfloat16_and_half_ulp_neighbour(name):
    x = every_bfloat16_and_its_neighbours()
    largest = float(ml_dtypes.finfo(ML_DTYPES[name]).max)
    expected = np.clip(x, -largest, largest).astype(ML_DTYPES[name]).astype(np.float32)
    assert same_bits(lsfast.fake_quantize(torch.from_numpy(x), name).numpy(), expected)


@pytest.mark.parametrize("name", [*GFLOAT, *UNNAMED])
def test_kernel_equals_the_reference_in_any_format(name):
    x = every_bfloat16_and_its_neighbours()
    expected = reference.round_to_element(x, element_format(name))
    assert same_bits(lsfast.fake_quantize(torch.from_numpy(x), name).numpy(), expected)


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m3", "e5m10"])
def test_float64_is_rounded_once(name):
    # A double just above the midpoint of two e2m1 numbers would round to the midpoint in float32, then to even.
    element = element_format(name)
    rng = np.random.default_rng(0)
    grid = reference.round_to_element(rng.standard_normal(2000) * element.largest / 4, element)
    step = np.abs(grid) * 2.0 ** -(element.mantissa_bits + 1)
    x = grid + step * (1 + rng.choice([-1.0, 1.0], grid.shape) * 2.0**-40)
    expected = reference.round_to_element(x, element)
    assert np.array_equal(lsfast.fake_quantize(torch.from_numpy(x), name).numpy(), expected)


@pytest.mark.parametrize("name", [*GFLOAT, "bf16", "fp16", "e4m2"])
def test_every_code_decodes_and_encodes_to_itself(name):
    bits = element_format(name).bits
    codes = np.arange(2**bits, dtype=np.uint32)
    values = _numerics.decode(codes, *arguments(name))
    numbers = ~np.isnan(values)
    assert np.array_equal(_numerics.encode(values, *arguments(name))[numbers], codes[numbers])
    assert same_bits(_numerics.round(values[np.isfinite(values)], *arguments(name)), values[np.isfinite(values)])


@pytest.mark.parametrize("name", GFLOAT)
def test_codes_mean_what_gfloat_says(name):
    codes = np.arange(2 ** element_format(name).bits, dtype=np.uint32)
    expected = np.array([gfloat.decode_float(GFLOAT[name], int(code)).fval for code in codes])
    assert np.array_equal(_numerics.decode(codes, *arguments(name)), expected.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "bf16", "fp16", "e7m7", "e2m5"])
def test_descriptions_in_python_and_csrc_agree(name):
    element = element_format(name)
    assert _numerics.largest(*arguments(name)) == element.largest
    assert _numerics.decode(np.array([1], np.uint32), *arguments(name))[0] == element.smallest_subnormal
    first_normal = np.array([1 << element.mantissa_bits], np.uint32)
    assert _numerics.decode(first_normal, *arguments(name))[0] == element.smallest_normal


def test_e2m1_ties_go_to_even():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert lsfast.fake_quantize(ties, "e2m1").tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert lsfast.fake_quantize(-ties, "e2m1").tolist() == [-0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]


@pytest.mark.parametrize("mantissa_bits", range(1, 7))
def test_truncation_of_bfloat16_clears_the_low_bits(mantissa_bits):
    bits = torch.arange(0, 0x7F80, dtype=torch.int16)
    x = torch.cat([bits, bits | -0x8000]).view(torch.bfloat16)
    scheme = lsfast.scheme(f"e8m{mantissa_bits}").replace(rounding="toward_zero")
    expected = x.view(torch.int16) & ~((1 << (7 - mantissa_bits)) - 1)
    assert torch.equal(lsfast.fake_quantize(x, scheme).view(torch.int16), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_conversions_equal_torchs(dtype):
    x = torch.from_numpy(every_bfloat16_and_its_neighbours()).clone()
    bits = _numerics.to_half(x.numpy(), dtype == torch.bfloat16)
    assert np.array_equal(bits, x.to(dtype).view(torch.uint16).numpy())
    every = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(every.copy()).view(dtype).float().numpy()
    assert np.array_equal(_numerics.from_half(every, dtype == torch.bfloat16), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "overflow", "expected"),
    [
        ("e4m3", "saturate", 448.0),
        ("e4m3", "nan", float("nan")),
        ("e5m2", "inf", float("inf")),
        ("e2m1", "saturate", 6.0),
    ],
)
def test_overflow_does_what_the_scheme_says(name, overflow, expected):
    scheme = lsfast.scheme(name).replace(overflow=overflow)
    x = torch.tensor([1e6, float("inf")])
    result = lsfast.fake_quantize(x, scheme)
    assert torch.equal(result.nan_to_num(-1.0, posinf=-2.0), torch.full((2,), expected).nan_to_num(-1.0, posinf=-2.0))
    assert torch.equal(torch.signbit(lsfast.fake_quantize(-x, scheme)), torch.tensor([True, True]))


def test_bf16_and_fp16_overflow_to_infinity():
    assert torch.isinf(lsfast.fake_quantize(torch.tensor([3.4e38]), "bf16")).all()
    assert torch.isinf(lsfast.fake_quantize(torch.tensor([65520.0]), "fp16")).all()
    x = torch.from_numpy(every_bfloat16_and_its_neighbours()).clone()
    assert same_bits(lsfast.fake_quantize(x, "bf16").numpy(), x.bfloat16().float().numpy())
    assert same_bits(lsfast.fake_quantize(x, "fp16").numpy(), x.half().float().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m3"])
def test_half_precision_tensors_are_computed_in_float32(name, dtype):
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = lsfast.fake_quantize(x.float(), name).to(dtype)
    assert torch.equal(lsfast.fake_quantize(x, name), expected)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "bf16", "fp16", "e8m3", "e5m0"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "toward_zero"])
def test_every_rounding_and_overflow_equals_the_reference(name, rounding):
    x = np.concatenate([every_bfloat16_and_its_neighbours(), np.array([np.nan, np.inf, -np.inf], np.float32)])
    for overflow in ("saturate", "inf", "nan"):
        against_reference(x, lsfast.scheme(name).replace(rounding=rounding, overflow=overflow))


def test_toward_zero_never_leaves_the_finite_numbers():
    # IEEE 754-2019, 7.4: roundTowardZero carries all overflows to the format's largest finite number.
    x = torch.tensor([7e4, -3e38, float("inf")])
    scheme = lsfast.scheme("fp16").replace(rounding="toward_zero")
    assert lsfast.fake_quantize(x, scheme).tolist() == [65504.0, -65504.0, float("inf")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e4m3", "e2m1"])
def test_every_float32_pattern_rounds_like_ml_dtypes(name):
    largest = float(ml_dtypes.finfo(ML_DTYPES[name]).max)
    for top in range(256):
        x = (np.arange(2**24, dtype=np.uint32) | np.uint32(top << 24)).view(np.float32)
        x = x[np.isfinite(x)]
        expected = np.clip(x, -largest, largest).astype(ML_DTYPES[name]).astype(np.float32)
        assert same_bits(lsfast.fake_quantize(torch.from_numpy(x), name).numpy(), expected)
