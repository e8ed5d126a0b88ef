"""NaN, infinity and zero: contained where the scheme has block scales, and what the scheme says elsewhere."""

import math

import numpy as np
import pytest
import torch
from hard_tensors import LARGEST, against_reference, assert_same_bits, every_variant, hard_tensor, label

import lsfast
from lsfast.formats import element_format
from lsfast.quantization import reference

BAD = [math.nan, math.inf, -math.inf]
VARIANTS = every_variant()
E8M0_AND_E4M3 = [scheme for scheme in VARIANTS if scheme.scale in ("e8m0", "e4m3") and scheme.rounding == "nearest"]
FLOAT_SCALED = ["fp8_e4m3_row", "fp8_e4m3_1x128", "fp8_e4m3_128x128", "int8", "int4_g32", "nf4_g64"]


def block_of(scheme: lsfast.formats.QuantScheme, shape: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """Where a matrix shares its block with one element."""
    if scheme.block == "tensor":
        return np.ones(shape, bool)
    height, length = scheme.block if isinstance(scheme.block, tuple) else (1, scheme.block)
    length = shape[1] if length == "row" else length
    rows, columns = np.indices(shape)
    return (rows // height == at[0] // height) & (columns // length == at[1] // length)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scheme", E8M0_AND_E4M3, ids=label)
def test_nan_or_infinity_makes_its_block_nan_and_changes_no_other(scheme, bad):
    shape, at = (70, 150), (37, 68)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[0, 0] = 50.0  # the tensor's largest is elsewhere
    x[at] = 0.0
    clean = lsfast.fake_quantize(torch.from_numpy(x), scheme).numpy()
    x[at] = bad
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme).numpy()
    block = block_of(scheme, shape, at)
    assert 1 < block.sum() < block.size
    assert np.isnan(result[block]).all()
    assert_same_bits(result[~block], clean[~block])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", [*FLOAT_SCALED, "fp8_e4m3", "fp8_e5m2"])
def test_under_float32_scales_nan_stays_one_element_infinity_saturates_and_the_scale_is_one(name, bad):
    scheme = lsfast.scheme(name)
    shape, at = (130, 300), (37, 68)
    x = (np.random.default_rng(0).standard_normal(shape) * 0.4).astype(np.float32)
    clean = lsfast.fake_quantize(torch.from_numpy(x), scheme).numpy()
    x[at] = bad
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme).numpy()
    block = block_of(scheme, shape, at)
    assert_same_bits(result[~block], clean[~block])
    largest = element_format(scheme.element).largest
    assert np.isnan(result[at]) if math.isnan(bad) else result[at] == math.copysign(largest, bad)
    block[at] = False
    assert_same_bits(result[block], reference.round_to_element(x[block], element_format(scheme.element)).astype("f4"))


@pytest.mark.parametrize("scheme", VARIANTS, ids=label)
def test_tensors_full_of_special_values_follow_the_reference(scheme):
    rng = np.random.default_rng(0)
    x = hard_tensor(0, (19, 133))
    x[rng.random(x.shape) < 0.02] = rng.choice(BAD)
    x[:, 64:80] = rng.choice([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, LARGEST], (19, 16))
    against_reference(x, scheme)
    against_reference(np.full((2, 33), math.nan, np.float32), scheme)
    against_reference(np.full((2, 33), -math.inf, np.float32), scheme)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", lsfast.schemes())
def test_an_all_zero_tensor_gives_zeros(name, dtype):
    result = lsfast.fake_quantize(torch.zeros(3, 40, dtype=dtype), name)
    assert torch.equal(result, torch.zeros(3, 40, dtype=dtype))


@pytest.mark.parametrize("scheme", VARIANTS, ids=label)
def test_zeros_of_either_sign_stay_zero_and_floats_keep_the_sign(scheme):
    x = torch.tensor([[0.0, -0.0] * 40] * 2)
    for filled in (x, x + torch.eye(2, 80)):
        result = lsfast.fake_quantize(filled, scheme, seed=0)
        zero = filled == 0
        assert (result[zero] == 0).all()
        keeps = element_format(scheme.element).is_float
        assert torch.equal(torch.signbit(result[zero]), torch.signbit(filled[zero]) & keeps)


@pytest.mark.parametrize(
    "name", ["e4m3", "e5m2", "e2m1", "e2m3", "bf16", "fp16", "fp8_e4m3", "nf4_g64", "int8", "mxint8"]
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "toward_zero"])
def test_nan_stays_nan(name, rounding):
    x = torch.ones(64)
    x[3] = math.nan
    assert torch.isnan(lsfast.fake_quantize(x, lsfast.scheme(name).replace(rounding=rounding), seed=0)[3])


def test_infinity_saturates_in_fp8_with_scale_one():
    x = torch.tensor([math.inf, -math.inf, 1.0, 1000.0])
    assert lsfast.fake_quantize(x, "fp8_e4m3").tolist() == [448.0, -448.0, 1.0, 448.0]


def test_nan_may_be_refused():
    scheme = lsfast.scheme("mxfp4").replace(nan="raise")
    x = torch.ones(3, 40)
    assert torch.equal(lsfast.fake_quantize(x, scheme), lsfast.fake_quantize(x, "mxfp4"))
    x[1, 2] = math.inf
    out = torch.full_like(x, 7.0)
    with pytest.raises(ValueError, match="fake_quantize: x must be finite"):
        lsfast.fake_quantize(x, scheme, out=out)
    assert (out == 7.0).all()
