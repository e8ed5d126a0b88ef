"""Stochastic rounding: the draws, their independence of layout, exactness given the bits, and unbiasedness."""

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch

import lsfast
from lsfast import _numerics
from lsfast.formats import element_format
from lsfast.quantization import reference


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


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1"])
@pytest.mark.parametrize("random_bits", [32, 8, 1])
def test_rounding_equals_gfloat_given_the_same_bits(name, random_bits):
    info = {
        "e4m3": gfloat.formats.format_info_ocp_e4m3,
        "e5m2": gfloat.formats.format_info_ocp_e5m2,
        "e2m1": gfloat.formats.format_info_ocp_e2m1,
    }[name]
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(4000) * element_format(name).largest / 3).astype(np.float32)
    x[:100] *= 1e-4
    scheme = lsfast.scheme(name).replace(rounding="stochastic", random_bits=random_bits)
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme, seed=7).numpy()
    words = _numerics.philox(np.arange(len(x), dtype=np.uint64), 7)
    draws = (words >> np.uint32(32 - random_bits)).astype(np.int64)
    expected = gfloat.round_ndarray(
        info, x.astype(np.float64), gfloat.RoundMode.StochasticFastest, sat=True, srbits=draws, srnumbits=random_bits
    )
    assert np.array_equal(result, expected.astype(np.float32))


def test_nvfp4_rounds_stochastically_like_the_reference():
    x = np.random.default_rng(1).standard_normal((6, 80)).astype(np.float32)
    words = _numerics.philox(np.arange(x.size, dtype=np.uint64), 3).reshape(x.shape)
    scheme = lsfast.scheme("nvfp4").replace(rounding="stochastic")
    for axis in (-1, 0):
        result = lsfast.fake_quantize(torch.from_numpy(x), scheme, axis=axis, seed=3).numpy()
        assert np.array_equal(result, reference.fake_quantize_nvfp4(x, axis, words))


@pytest.mark.parametrize("name", ["e4m3", "fp8_e5m2", "nvfp4"])
def test_a_view_and_its_copy_draw_the_same(name):
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    scheme = lsfast.scheme(name).replace(rounding="stochastic")
    for view in (x.T, x[3:, 1::2]):
        copied = lsfast.fake_quantize(view.contiguous(), scheme, seed=1)
        assert torch.equal(lsfast.fake_quantize(view, scheme, seed=1), copied)


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


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m3"])
def test_stochastic_rounding_is_unbiased(name):
    # 10^6 draws of one value: the mean lies within 5 standard errors, each draw being one of two neighbours.
    draws, value = 10**6, 1.3
    scheme = lsfast.scheme(name).replace(rounding="stochastic")
    result = lsfast.fake_quantize(torch.full((draws,), value), scheme, seed=11).double()
    below, above = result.min(), result.max()
    fraction = (float(torch.tensor(value).double()) - below) / (above - below)
    error = (above - below) * (fraction * (1 - fraction) / draws) ** 0.5
    assert abs(result.mean() - float(torch.tensor(value))) < 5 * error


def test_numbers_on_the_grid_never_move():
    grid = torch.from_numpy(_numerics.decode(np.arange(127, dtype=np.uint32), 4, 3, "nan_only"))
    scheme = lsfast.scheme("e4m3").replace(rounding="stochastic")
    for seed in range(5):
        assert torch.equal(lsfast.fake_quantize(grid, scheme, seed=seed), grid)
