"""Values under compat="torchao" against torchao 0.18, and where the two cannot agree.

torchao states its `rceil` as ceil(log2(amax / largest)) with float32 logarithms. Just above largest * 2^k the logarithm
rounds to k itself where |k| is not small, and torchao's scale is one power of two too small, so that amax saturates:
measured for every k, within |k| / 3 ulps, 43 at most. lsfast takes the smallest power of two that suffices.
"""

import logging

import numpy as np
import pytest
import torch
from hard_tensors import assert_same_bits, hard_tensor
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import lsfast
from lsfast.formats import element_format
from lsfast.quantization import reference

logging.disable(logging.WARNING)  # torchao tells at import which of its CUDA libraries do not load
from torchao.prototype.mx_formats.config import ScaleCalculationMode  # noqa: E402
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4  # noqa: E402
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx  # noqa: E402
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale  # noqa: E402

logging.disable(logging.NOTSET)

MX = {
    "mxfp8_e4m3": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp4": torch.float4_e2m1fn_x2,
}
RULES = ["floor", "rceil", "ceil", "even"]
MOST_ULPS = 48
# From here on down, 1/tensor_scale/block_scale overflows float32, and torchao makes of zeros what comes of 0 * Inf.
LEAST_NVFP4_AMAX = 2688.0 * 2.0**-122


def just_above_a_turn(x: np.ndarray, name: str) -> np.ndarray:
    """Which lines of x have their amax within MOST_ULPS above largest * 2^k."""
    mantissa, _ = np.frexp(np.abs(x).max(-1))
    turn, _ = np.frexp(element_format(lsfast.scheme(name).element).largest)
    return (mantissa > turn) & (mantissa <= turn + MOST_ULPS * 2.0**-24)


def torchao_mx(x: np.ndarray, name: str, rule: str) -> np.ndarray:
    """Return x as torchao's MX tensor of that element gives it back."""
    scales, codes = to_mx(torch.from_numpy(x), MX[name], 32, ScaleCalculationMode(rule))
    return to_dtype(codes, scales, MX[name], 32, torch.float32).numpy()


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_mx_values_are_those_of_torchao(name, rule, seed):
    x = hard_tensor(seed, (6, 96))
    x[1, 7] = np.nan
    if rule == "rceil":
        blocks = x.reshape(-1, 32)
        blocks[just_above_a_turn(blocks, name)] = 0.0
    scheme = lsfast.scheme(name).replace(scale_rule=rule, compat="torchao")
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme), torchao_mx(x, name, rule), seed)


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
def test_mx_values_are_those_of_torchao_at_every_exponent(name, rule):
    # 16 mantissas for each exponent, the denormal ones too: each itself, and two within an ulp of it.
    bits = (np.arange(2**12, dtype=np.int64)[:, None] << 19) + np.arange(-1, 2)
    amax = bits[(bits >= 0) & (bits < 0x7F800000)].astype(np.uint32).view(np.float32)
    x = np.random.default_rng(0).uniform(-1, 1, (len(amax), 32)).astype(np.float32) * amax[:, None]
    x[:, 11] = -amax
    x = x[~just_above_a_turn(x, name)] if rule == "rceil" else x
    scheme = lsfast.scheme(name).replace(scale_rule=rule, compat="torchao")
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme), torchao_mx(x, name, rule))


@pytest.mark.parametrize("name", MX)
def test_torchaos_rceil_is_too_small_just_above_some_turns_and_exact_elsewhere(name):
    element = element_format(lsfast.scheme(name).element)
    with np.errstate(over="ignore"):
        turns = np.ldexp(element.largest, np.arange(-126, 128)).astype(np.float32)
    turns = turns[np.isfinite(turns)]
    ulps = np.arange(-10, 2 * MOST_ULPS)
    amax = (turns.view(np.uint32)[:, None] + ulps).astype(np.uint32).view(np.float32)
    amax = np.where(np.isfinite(amax), amax, np.float32(1.0))
    x = np.zeros((amax.size, 32), np.float32)
    x[:, 0] = amax.reshape(-1)
    theirs, _ = to_mx(torch.from_numpy(x), MX[name], 32, ScaleCalculationMode.RCEIL)
    exact = np.clip(reference.e8m0_exponent(x[:, 0], element, "rceil") + 127, 0, 254)
    difference = (theirs.view(torch.uint8).numpy().reshape(-1).astype(int) - exact).reshape(amax.shape)
    assert set(np.unique(difference)) <= {0, -1}
    assert (difference[:, (ulps < 1) | (ulps > MOST_ULPS)] == 0).all()
    # By the exact scale, torchao's arithmetic or not, nothing saturates.
    result, statistics = lsfast.fake_quantize(
        torch.from_numpy(x), lsfast.scheme(name).replace(compat="torchao"), statistics=True
    )
    assert_same_bits(result, reference.fake_quantize(x, lsfast.scheme(name)))
    assert statistics.saturated == 0


@pytest.mark.parametrize("two_levels", [True, False])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
@example(seed=3)
def test_nvfp4_values_are_those_of_torchao(two_levels, seed):
    x = hard_tensor(seed, (6, 96))
    amax = np.abs(x).max()
    assume(amax >= LEAST_NVFP4_AMAX)
    tensor_scale = per_tensor_amax_to_scale(torch.tensor(amax)) if two_levels else None
    scales, codes = nvfp4_quantize(torch.from_numpy(x), 16, tensor_scale)
    factors = scales.float() * tensor_scale if two_levels else scales.float()
    numbers = f4_unpacked_to_f32(unpack_uint4(codes)).reshape(-1, 16)
    expected = (numbers * factors.reshape(-1, 1)).reshape(x.shape).numpy()
    scheme = lsfast.scheme("nvfp4").replace(compat="torchao", tensor_scale=two_levels)
    assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme), expected, seed)


def test_nvfp4_of_zeros_is_zeros_where_torchao_has_nan():
    x = torch.zeros(2, 32)
    scales, _ = nvfp4_quantize(x, 16, per_tensor_amax_to_scale(x.abs().max()))
    assert scales.float().isnan().all()
    assert torch.equal(lsfast.fake_quantize(x, lsfast.scheme("nvfp4").replace(compat="torchao")), x)
