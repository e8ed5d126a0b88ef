"""NVFP4 and per-tensor FP8 against the NumPy reference, over tensors made to break them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lsfast
from lsfast.formats import element_format
from lsfast.quantization import reference


def hard_tensor(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Gaussian values over a huge dynamic range, with outliers, denormals, zero blocks and signed zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-12, 8, size=shape[:-1] + (1,))
    x[rng.random(shape) < 0.02] *= 1e6
    x[rng.random(shape) < 0.05] = 0.0
    x[rng.random(shape) < 0.02] = -0.0
    x[rng.random(shape) < 0.02] = 1e-42
    x[..., : min(16, shape[-1])] *= rng.integers(0, 2)
    return x.astype(np.float32)


def same(result: torch.Tensor, expected: np.ndarray) -> bool:
    nan = np.isnan(expected)
    bits = result.numpy().view(np.uint32) == expected.astype(np.float32).view(np.uint32)
    return bool((bits | nan).all() and np.isnan(result.numpy())[nan].all())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(64,), (3, 16), (5, 48), (4, 37), (2, 7), (2, 3, 33)]))
def test_nvfp4_equals_the_reference(seed, shape):
    x = hard_tensor(seed, shape)
    assert same(lsfast.fake_quantize(torch.from_numpy(x), "nvfp4"), reference.fake_quantize_nvfp4(x))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_nvfp4_blocks_run_along_any_axis(axis):
    x = hard_tensor(1, (20, 35, 17))
    assert same(lsfast.fake_quantize(torch.from_numpy(x), "nvfp4", axis=axis), reference.fake_quantize_nvfp4(x, axis))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["fp8_e4m3", "fp8_e5m2"]))
def test_fp8_per_tensor_equals_the_reference(seed, name):
    x = hard_tensor(seed, (5, 37))
    element = element_format(lsfast.scheme(name).element)
    assert same(lsfast.fake_quantize(torch.from_numpy(x), name), reference.fake_quantize_tensor_scaled(x, element))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("name", ["nvfp4", "fp8_e4m3", "fp8_e5m2"])
def test_extreme_magnitudes_follow_the_reference(name, scale):
    x = (np.random.default_rng(0).uniform(-1, 1, (4, 32)) * scale).astype(np.float32)
    if name == "nvfp4":
        expected = reference.fake_quantize_nvfp4(x)
    else:
        expected = reference.fake_quantize_tensor_scaled(x, element_format(lsfast.scheme(name).element))
    assert same(lsfast.fake_quantize(torch.from_numpy(x), name), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", lsfast.schemes())
def test_an_all_zero_tensor_gives_zeros(name, dtype):
    result = lsfast.fake_quantize(torch.zeros(3, 40, dtype=dtype), name)
    assert torch.equal(result, torch.zeros(3, 40, dtype=dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_or_inf_makes_its_nvfp4_block_nan_and_no_other(bad):
    x = torch.from_numpy(hard_tensor(3, (4, 64)))
    clean = lsfast.fake_quantize(x.clone().index_put_((torch.tensor(2), torch.tensor(20)), torch.tensor(0.0)), "nvfp4")
    x[2, 20] = bad
    result = lsfast.fake_quantize(x, "nvfp4")
    assert torch.isnan(result[2, 16:32]).all()
    outside = torch.ones_like(x, dtype=torch.bool)
    outside[2, 16:32] = False
    x[2, 20] = 0.0
    largest_is_elsewhere = x[2, 16:32].abs().max() < x.abs().max()
    assert largest_is_elsewhere
    assert torch.equal(result[outside], clean[outside])


def test_infinity_saturates_in_fp8_with_scale_one():
    x = torch.tensor([float("inf"), -float("inf"), 1.0, 1000.0])
    assert lsfast.fake_quantize(x, "fp8_e4m3").tolist() == [448.0, -448.0, 1.0, 448.0]


def test_nvfp4_of_a_block_of_representable_numbers_is_nearly_exact():
    # With amax 6 every number is a code; what is left is the error of the float32 roundings of the scales.
    x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] * 2)
    assert torch.allclose(lsfast.fake_quantize(x, "nvfp4"), x, rtol=4 * 2**-24, atol=0)


@pytest.mark.parametrize("name", ["nvfp4", "fp8_e4m3", "e4m3"])
def test_views_quantize_like_their_copies(name):
    x = torch.from_numpy(hard_tensor(4, (48, 64)))
    for view in (x.T, x[::2, 5:], x[:, None, ::3], x.reshape(4, 12, 64).permute(2, 0, 1)):
        assert torch.equal(lsfast.fake_quantize(view, name), lsfast.fake_quantize(view.contiguous(), name))


@pytest.mark.parametrize("name", ["nvfp4", "fp8_e4m3", "e4m3"])
def test_out_is_written_and_may_be_the_input(name):
    x = torch.from_numpy(hard_tensor(5, (8, 64)))
    expected = lsfast.fake_quantize(x, name)
    out = torch.full_like(x, float("nan"))
    assert lsfast.fake_quantize(x, name, out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(lsfast.fake_quantize(x, name, out=x), expected)


@pytest.mark.parametrize("name", ["nvfp4", "fp8_e4m3", "e4m3", "e8m3"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_one_and_two_threads_give_the_same_bits(name, rounding):
    x = torch.from_numpy(hard_tensor(6, (700, 1000)))
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(lsfast.fake_quantize(x, scheme, seed=0))
    assert torch.equal(*results)


def test_streaming_stores_write_every_element():
    # Above the streaming threshold, with a tail that is not a full tile, and at an unaligned address.
    x = torch.randn(3 * 2**20 + 5, generator=torch.Generator().manual_seed(0))
    for name in ("e4m3", "nvfp4"):
        small = torch.cat([lsfast.fake_quantize(x, name)])
        out = torch.full((x.numel() + 1,), float("nan"))[1:]
        assert torch.equal(lsfast.fake_quantize(x, name, out=out), small)
    assert torch.equal(lsfast.fake_quantize(x, "e4m3")[-1000:], lsfast.fake_quantize(x[-1000:], "e4m3"))


def test_the_order_of_the_scale_operations_is_the_reference_one():
    # Block maxima within an ulp of where their scale ties between two E4M3 numbers: there the association of
    # amax * (encode * (1/6)) decides, and (amax * encode) * (1/6) would give another scale.
    one, rng = np.float32(1.0), np.random.default_rng(0)
    differ = 0
    for _ in range(20):
        amax = np.float32(rng.uniform(0.5, 2.0))
        ties = (np.arange(8, 16) + 0.5) * 2.0 ** np.arange(-4, 5)[:, None]
        blocks = (ties.reshape(-1) * (float(amax) / 448.0)).astype(np.float32)
        blocks = np.concatenate([blocks, np.nextafter(blocks, one * 0), np.nextafter(blocks, one * 1e9)])
        x = np.zeros((len(blocks) + 1, 16), np.float32)
        x[:, 3] = np.concatenate([[amax], blocks])
        x[:, 7] = x[:, 3] * np.float32(0.37)
        assert same(lsfast.fake_quantize(torch.from_numpy(x), "nvfp4"), reference.fake_quantize_nvfp4(x))
        encode, sixth = np.float32(2688.0) / amax, one / np.float32(6.0)
        e4m3 = element_format("e4m3")
        differ += np.sum(
            reference.round_to_element(blocks * (encode * sixth), e4m3)
            != reference.round_to_element((blocks * encode) * sixth, e4m3)
        )
    assert differ > 0
