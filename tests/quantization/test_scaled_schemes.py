"""Every scheme, scale rule, compat and rounding against the NumPy reference, bit for bit, on hard tensors."""

import numpy as np
import pytest
import torch
from hard_tensors import against_reference, assert_same_bits, every_variant, hard_tensor, label
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays

import lsfast
from lsfast.formats import element_format
from lsfast.quantization import reference

VARIANTS = every_variant()
FLAT = [scheme for scheme in VARIANTS if not isinstance(scheme.block, tuple)]
# One of each kind of arithmetic and of each kind of block.
REPRESENTATIVE = [
    "e4m3",
    "fp8_e4m3",
    "fp8_e4m3_row",
    "fp8_e4m3_1x128",
    "mxfp4",
    "mxint8",
    "nvfp4",
    "int4_g32",
    "nf4_g64",
]
TWO_DIMENSIONAL = ["nvfp4_2d", "fp8_e4m3_128x128"]
SHAPES = [(64,), (3, 16), (5, 48), (4, 37), (2, 7), (2, 3, 33), (1,), (2, 1, 130), (18, 70)]


@pytest.mark.parametrize("scheme", VARIANTS, ids=label)
def test_each_variant_equals_the_reference(scheme):
    for seed, shape in enumerate([(5, 96), (3, 37), (2, 18, 40), (33, 129)]):
        against_reference(hard_tensor(seed, shape), scheme)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(FLAT), st.sampled_from(SHAPES), st.data())
def test_any_tensor_along_any_axis_equals_the_reference(seed, scheme, shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    against_reference(hard_tensor(seed, shape), scheme, axis, seed)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FLAT),
    hypothesis_arrays.arrays(np.float32, st.sampled_from([(17,), (2, 33)]), elements=st.floats(width=32)),
)
def test_any_floats_nan_and_infinity_among_them_equal_the_reference(scheme, x):
    against_reference(x, scheme)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_blocks_run_along_any_axis_and_the_last_may_be_partial(name, axis):
    against_reference(hard_tensor(1, (20, 35, 17)), lsfast.scheme(name), axis)


@pytest.mark.parametrize("shape", [(130, 140), (2, 33, 16), (1, 5), (40, 3), (2, 2, 17, 31)])
@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_a_two_dimensional_block_covers_the_axis_and_the_one_before_it(name, shape):
    for axis in range(1, len(shape)):
        for seed in range(4):
            against_reference(hard_tensor(seed, shape), lsfast.scheme(name), axis)


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
@pytest.mark.parametrize("shape", [(64, 48), (130, 140), (3, 20, 37)])
def test_a_tensor_and_its_transpose_give_transposed_results(name, shape):
    for seed in range(4):
        x = torch.from_numpy(hard_tensor(seed, shape))
        result = lsfast.fake_quantize(x, name)
        assert_same_bits(lsfast.fake_quantize(x.mT, name).mT, result.numpy(), seed)
        assert_same_bits(lsfast.fake_quantize(x.mT.contiguous(), name).mT, result.numpy(), seed)


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_a_vector_has_no_two_dimensional_blocks(name):
    with pytest.raises(ValueError, match="fake_quantize: .*got"):
        lsfast.fake_quantize(torch.ones(64), name)


@pytest.mark.parametrize("scale", [1e-44, 1e-41, 1e-38, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("compat", [None, "torchao", "modelopt"])
def test_extreme_magnitudes_follow_the_reference(scale, compat):
    x = (np.random.default_rng(0).uniform(-1, 1, (4, 32)) * scale).astype(np.float32)
    x[1, :16] = 0.0
    x[2, 5] = -0.0
    for scheme in VARIANTS:
        if scheme.compat == compat and scheme.rounding == "nearest":
            against_reference(x, scheme)


@pytest.mark.parametrize("amax", [0.0, 1e-42, 1e-30, 0.7, 3.0, 1e6, 3e38])
@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_2d", "fp8_e4m3", "fp8_e5m2"])
def test_a_given_amax_takes_the_place_of_the_tensors_own(name, amax):
    for seed in range(4):
        x = hard_tensor(seed, (18, 40))
        for compat in (None, "torchao", "modelopt") if name == "nvfp4" else (None,):
            scheme = lsfast.scheme(name).replace(compat=compat)
            expected = reference.fake_quantize(x, scheme, amax=amax)
            assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme, amax=amax), expected)
            assert_same_bits(lsfast.fake_quantize(torch.from_numpy(x), scheme, amax=torch.tensor(amax)), expected)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp8_e4m3", "fp8_e4m3", "int8", "nvfp4_2d", "e2m1"])
def test_scales_are_computed_after_the_hadamard_transform(name, size):
    for hadamard_seed, rounding in ((None, "nearest"), (7, "stochastic")):
        scheme = lsfast.scheme(name).replace(hadamard=size, hadamard_seed=hadamard_seed, rounding=rounding)
        for axis, shape in ((-1, (19, 256)), (1, (3, 128, 20))):
            against_reference(hard_tensor(0, shape), scheme, axis)


@pytest.mark.parametrize("name", [*REPRESENTATIVE, *TWO_DIMENSIONAL])
def test_views_quantize_like_their_copies(name):
    x = torch.from_numpy(hard_tensor(4, (48, 64)))
    for view in (x.T, x[::2, 5:], x[:, None, ::3].mT, x.reshape(4, 12, 64).permute(2, 0, 1)):
        assert torch.equal(lsfast.fake_quantize(view, name), lsfast.fake_quantize(view.contiguous(), name))


@pytest.mark.parametrize("name", [*REPRESENTATIVE, *TWO_DIMENSIONAL])
def test_out_is_written_and_may_be_the_input(name):
    x = torch.from_numpy(hard_tensor(5, (8, 64)))
    expected = lsfast.fake_quantize(x, name)
    out = torch.full_like(x, float("nan"))
    assert lsfast.fake_quantize(x, name, out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(lsfast.fake_quantize(x, name, out=x), expected)


@pytest.mark.parametrize("name", [*REPRESENTATIVE, *TWO_DIMENSIONAL, "e8m3"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_one_and_two_threads_give_the_same_bits(name, rounding):
    x = torch.from_numpy(hard_tensor(6, (300, 1000)))
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(lsfast.fake_quantize(x, scheme, seed=0))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_half_precision_and_double_are_computed_in_float32(name):
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        expected = lsfast.fake_quantize(x.to(dtype).float(), name).to(dtype)
        assert torch.equal(lsfast.fake_quantize(x.to(dtype), name), expected)
    if lsfast.scheme(name).block is not None:
        assert torch.equal(lsfast.fake_quantize(x, name), lsfast.fake_quantize(x.float(), name).double())


def test_streaming_stores_write_every_element():
    # Above the streaming threshold, with a tail that is not a full tile, and at an unaligned address.
    x = torch.randn(3 * 2**20 + 5, generator=torch.Generator().manual_seed(0))
    for name in ("e4m3", "mxfp4", "nvfp4"):
        small = lsfast.fake_quantize(x, name)
        out = torch.full((x.numel() + 1,), float("nan"))[1:]
        assert torch.equal(lsfast.fake_quantize(x, name, out=out), small)
    for name in ("e4m3", "mxfp4"):
        tail = x[-997:]  # 2**20 * 3 + 5 - 997 is a multiple of 32
        assert torch.equal(lsfast.fake_quantize(x, name)[-997:], lsfast.fake_quantize(tail, name))


def test_the_order_of_the_scale_operations_is_the_reference_one():
    # Block maxima within an ulp of where their scale ties between two E4M3 numbers: there the order of operations
    # decides, and each library's, or another one of Transformer Engine's operations, would give some other scale.
    one, six, rng = np.float32(1.0), np.float32(6.0), np.random.default_rng(0)
    different = np.zeros(4, int)
    for _ in range(20):
        amax = np.float32(rng.uniform(0.5, 2.0))
        ties = (np.arange(8, 16) + 0.5) * 2.0 ** np.arange(-4, 5)[:, None]
        blocks = (ties.reshape(-1) * (float(amax) / 448.0)).astype(np.float32)
        blocks = np.concatenate([blocks, np.nextafter(blocks, one * 0), np.nextafter(blocks, one * 1e9)])
        x = np.zeros((len(blocks) + 1, 16), np.float32)
        x[:, 3] = np.concatenate([[amax], blocks])
        x[:, 7] = x[:, 3] * np.float32(0.37)
        for compat in (None, "torchao", "modelopt"):
            against_reference(x, lsfast.scheme("nvfp4").replace(compat=compat))
        encode, unit = np.float32(2688.0) / amax, amax / np.float32(2688.0)
        orders = [
            blocks * (encode * (one / six)),  # Transformer Engine
            blocks * encode * (one / six),
            blocks * (encode / six),
            blocks / six / unit,  # torchao
            blocks / (six * unit),  # ModelOpt
        ]
        scales = [reference.round_to_element(order, element_format("e4m3")) for order in orders]
        pairs = [(0, 1), (0, 2), (0, 3), (3, 4)]
        different += [int((scales[i] != scales[j]).sum()) for i, j in pairs]
    assert (different > 0).all(), different
