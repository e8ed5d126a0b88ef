"""Stochastic rounding: the draws, their independence of layout, exactness given the bits, and unbiasedness."""

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch
from hard_tensors import against_reference, assert_same_bits, hard_tensor, words_of

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
    "fp8_e4m3": gfloat.formats.format_info_ocp_e4m3,
    "mxfp4": gfloat.formats.format_info_ocp_e2m1,
    "mxint8": gfloat.formats.format_info_ocp_int8,
    "nvfp4": gfloat.formats.format_info_ocp_e2m1,
}
SCALED = ["nvfp4", "mxfp4", "mxfp8_e4m3", "mxint8", "fp8_e5m2", "int8", "int4_g32", "nf4_g64"]


def test_philox_gives_the_published_words():
    # Random123's known-answer test with counter and key all zeros.
    zeros = _numerics.philox(np.arange(4, dtype=np.uint64), 0, 0)
    assert [hex(word) for word in zeros] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def independent_philox(counter: list[int], key: list[int]) -> list[int]:
    """The rounds of Philox4x32-10 in Python integers."""
    counter, key = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_philox_counters_are_index_and_stream():
    ones = 0xFFFFFFFF
    # The rounds above are right: Random123's known-answer test with counter and key all ones.
    assert independent_philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    seed, stream, index = 0x123456789ABCDEF0, 0x0FEDCBA987654321, 4 * (2**33 + 5)
    expected = independent_philox(
        [5, 2, stream & ones, stream >> 32],
        [seed & ones, seed >> 32],
    )
    words = _numerics.philox(np.arange(index, index + 4, dtype=np.uint64), seed, stream)
    assert words.tolist() == expected


def test_the_references_philox_is_that_of_the_kernels():
    index = np.array([0, 1, 6, 2**32 + 3, 2**34 - 1, 2**34, 2**61 + 2], np.uint64)
    for seed, stream in ((0, 0), (7, 1), (2**63 - 1, 2**40 + 5)):
        assert np.array_equal(reference.philox(index, seed, stream), _numerics.philox(index, seed, stream))


@pytest.mark.parametrize("name", GFLOAT)
@pytest.mark.parametrize("random_bits", [32, 8, 1])
def test_rounding_equals_gfloat_given_the_same_bits(name, random_bits):
    # Under a scale, gfloat rounds what the scale makes of x.
    scheme = lsfast.scheme(name).replace(rounding="stochastic", random_bits=random_bits)
    x = (np.random.default_rng(0).standard_normal(4096) * element_format(scheme.element).largest / 3).astype(np.float32)
    x[:100] *= 1e-4
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme, seed=7)
    draws = (_numerics.philox(np.arange(len(x), dtype=np.uint64), 7) >> np.uint32(32 - random_bits)).astype(np.int64)
    scaled, factor = reference.scale(x, scheme)
    rounded = gfloat.round_ndarray(
        GFLOAT[name],
        scaled.astype(np.float64),
        gfloat.RoundMode.StochasticFastest,
        sat=True,
        srbits=draws,
        srnumbits=random_bits,
    )
    if not element_format(scheme.element).is_float:
        rounded = np.maximum(rounded, -element_format(scheme.element).largest) + 0.0  # gfloat's has -2, ours is narrow
    assert_same_bits(result, rounded.astype(np.float32) * factor)


@pytest.mark.parametrize("random_bits", [1, 8, 31])
def test_fewer_random_bits_round_like_the_reference(random_bits):
    for name in ("e8m3", "nvfp4", "nvfp4_2d", "mxfp6_e2m3", "mxint8", "int4_g32", "nf4_g64", "fp8_e4m3_row"):
        scheme = lsfast.scheme(name).replace(rounding="stochastic", random_bits=random_bits)
        for axis in (0, 1, 2):
            if axis > 0 or name != "nvfp4_2d":
                against_reference(hard_tensor(random_bits, (3, 20, 37)), scheme, axis)


@pytest.mark.parametrize("name", [*SCALED, "e4m3", "nvfp4_2d"])
def test_a_view_and_its_copy_draw_the_same(name):
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    scheme = lsfast.scheme(name).replace(rounding="stochastic")
    for view in (x.T, x[3:, 1::2], x.reshape(4, 16, 48).permute(2, 0, 1)):
        for axis in (-1, 1):
            copied = lsfast.fake_quantize(view.contiguous(), scheme, axis, seed=1)
            assert torch.equal(lsfast.fake_quantize(view, scheme, axis, seed=1), copied)


@pytest.mark.parametrize("name", [*SCALED, "nvfp4_2d", "e2m1"])
def test_one_and_two_threads_draw_the_same(name):
    x = torch.randn(500, 700, generator=torch.Generator().manual_seed(0))
    scheme = lsfast.scheme(name).replace(rounding="stochastic")
    for axis in (-1, 1 if name == "nvfp4_2d" else 0):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(lsfast.fake_quantize(x, scheme, axis, seed=0))
        assert torch.equal(*results)


def test_the_draws_of_a_tile_are_those_of_its_place_in_the_tensor():
    # 1.5 lies halfway: each element shows the top bit of its own word, wherever it lies in a block or a tile.
    x = np.full((70, 130), 1.5, np.float32)
    expected = 1.0 + (words_of(x.shape, 3) >> np.uint32(31))
    scheme = lsfast.scheme("int8").replace(rounding="stochastic", random_bits=1, block="tensor")
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme, seed=3, amax=127.0)
    assert np.array_equal(result.numpy(), expected)


def test_seeds_and_streams_are_independent():
    x = torch.full((1000,), 0.3)
    scheme = lsfast.scheme("e2m1").replace(rounding="stochastic")
    base = lsfast.fake_quantize(x, scheme, seed=0)
    assert torch.equal(base, lsfast.fake_quantize(x, scheme, seed=0))
    for other in (
        lsfast.fake_quantize(x, scheme, seed=1),
        lsfast.fake_quantize(x, scheme, seed=0, stream=1),
    ):
        # Two independent draws of p = 0.6 differ in 48% of places; 5 standard errors of 1000 are 8%.
        assert abs(float((other != base).float().mean()) - 0.48) < 0.08


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m3", *SCALED])
def test_stochastic_rounding_is_unbiased(name):
    # 10^7 draws, 64 numbers of 156250 each. Each result is one of two neighbours, known from the reference by words
    # all zeros and all ones, so the standard error is exact; what a scale's own rounding adds is some 2^-23 of x.
    scheme = lsfast.scheme(name).replace(rounding="stochastic")
    element = element_format(scheme.element)
    line = np.random.default_rng(0).uniform(-0.95, 0.95, (1, 64)).astype(np.float32)
    line[0, ::8] = 1.0
    line *= np.float32(element.largest / 2)
    scaled, _ = reference.scale(line, scheme)
    assert np.abs(scaled).max() <= element.largest * (1 + 2.0**-22)  # nothing clamps
    ends = [
        reference.fake_quantize(line, scheme, words=np.full(line.shape, word, np.uint32)).astype(np.float64)
        for word in (0, 2**32 - 1)
    ]
    variance = np.maximum((line - ends[0]) * (ends[1] - line), 0.0)
    repeats = 156250
    x = torch.from_numpy(line).expand(repeats, 64).contiguous()
    result = lsfast.fake_quantize(x, scheme, seed=11)
    error = result.double().mean(0).numpy() - line[0].astype(np.float64)
    own = 4 * 2.0**-23 * np.abs(line[0])
    assert (np.abs(error) <= 5 * np.sqrt(variance[0] / repeats) + own).all()
    assert abs(error.sum()) <= 5 * np.sqrt(variance.sum() / repeats) + own.sum()
    assert variance.sum() > 0


def test_numbers_on_the_grid_never_move():
    grid = torch.from_numpy(_numerics.decode(np.arange(127, dtype=np.uint32), 4, 3, "nan_only"))
    scheme = lsfast.scheme("e4m3").replace(rounding="stochastic")
    for seed in range(5):
        assert torch.equal(lsfast.fake_quantize(grid, scheme, seed=seed), grid)
