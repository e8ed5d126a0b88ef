"""Norms, inner products and scaling over segments."""

import math

import pytest
import torch

from lsfast.landscape.segments import scale_segments_, segment_dots, segment_norms

ops = torch.ops.lsfast
REAL = [torch.float32, torch.float64]
OFFSETS = [0, 1, 1, 16, 33, 1057, 1057, 3105, 9000]  # empty ones, single elements, whole and partial chunks


def rows(count=2, n=9000, dtype=torch.float32, seed=0):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exact_sum(x, y):
    return math.fsum(a * b for a, b in zip(x.double().tolist(), y.double().tolist(), strict=True))


@pytest.mark.parametrize("dtype", REAL)
def test_norms_and_inner_products_are_those_of_each_segment_to_rounding(dtype):
    x, y = rows(dtype=dtype), rows(dtype=dtype, seed=1)
    offsets = torch.tensor(OFFSETS)
    norms, dots = segment_norms(x, offsets), segment_dots(x, y, offsets)
    assert norms.dtype == dots.dtype == torch.float64
    # A sum passes 64 additions in a lane, 4 between lanes and one for each chunk; a product rounds once (not at all
    # from float32): below 80 roundings of 2^-53 each, relative to the sum of magnitudes.
    bound = 80 * 2.0**-53
    for row in range(2):
        for i, (first, end) in enumerate(zip(OFFSETS[:-1], OFFSETS[1:], strict=True)):
            a, b = x[row, first:end], y[row, first:end]
            expected = math.sqrt(exact_sum(a, a))
            assert abs(norms[row, i].item() - expected) <= bound * expected
            assert abs(dots[row, i].item() - exact_sum(a, b)) <= 2 * bound * exact_sum(a.abs(), b.abs())


def test_integers_are_summed_exactly():
    x = torch.arange(3000, dtype=torch.float32).remainder(7)[None]
    offsets = torch.tensor([0, 1500, 3000])
    expected = [[int((x[0, :1500].long() ** 2).sum()), int((x[0, 1500:].long() ** 2).sum())]]
    assert segment_dots(x, x, offsets).tolist() == expected


def test_norms_of_float32_neither_overflow_nor_vanish():
    x = torch.tensor([[3e38, 3e38, 1e-45, 1e-45, 0.0, float("inf"), float("nan")]])
    norms = segment_norms(x, torch.tensor([0, 2, 4, 5, 6, 7]))[0]
    expected = x.double()[0, [0, 2]] * math.sqrt(2.0)
    torch.testing.assert_close(norms[:2], expected, rtol=1e-15, atol=0)
    assert norms[2:].tolist()[:2] == [0.0, math.inf]
    assert norms[4].isnan()


@pytest.mark.parametrize("dtype", REAL)
def test_scaling_multiplies_by_the_factor_rounded_once_and_nothing_else(dtype):
    x = rows(dtype=dtype)
    offsets = torch.tensor([3, *OFFSETS[3:-1], 8000])  # elements before the first and after the last are left alone
    factors = rows(2, len(offsets) - 1, torch.float64, seed=2)
    expected = x.clone()
    for i, (first, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        expected[:, first:end] *= factors[:, i, None].to(dtype)
    assert torch.equal(scale_segments_(x, offsets, factors), expected)


def test_norms_do_not_depend_on_where_a_segment_lies():
    x = rows(1, 5000)
    moved = torch.cat([rows(1, 777, seed=3), x], dim=1)
    alone = segment_norms(x, torch.tensor([0, 2500, 5000]))
    assert torch.equal(alone, segment_norms(moved, torch.tensor([777, 3277, 5777])))


def test_rows_of_any_strides_are_read():
    x = rows(4, 300)
    offsets = torch.tensor([0, 100, 150])
    assert torch.equal(segment_norms(x[::2, ::2], offsets), segment_norms(x[::2, ::2].contiguous(), offsets))


@pytest.mark.parametrize("dtype", REAL)
def test_operators_keep_the_rules_of_torch_library(dtype):
    x, offsets = rows(dtype=dtype), torch.tensor(OFFSETS)
    torch.library.opcheck(ops.segment_norms, (x, offsets))
    torch.library.opcheck(ops.segment_dots, (x, 2 * x, offsets))
    torch.library.opcheck(ops.scale_segments_, (x, offsets, rows(2, len(OFFSETS) - 1, torch.float64)))


def test_bad_arguments_are_named_and_nothing_is_changed():
    x, offsets = rows(), torch.tensor(OFFSETS)
    before = x.clone()
    for bad, message in (
        (torch.tensor([0, 5, 4]), "offsets must ascend in 0 .. 9000, got 4 at 2"),
        (torch.tensor([0, 9001]), "got 9001 at 1"),
        (torch.tensor([-1, 5]), "got -1 at 0"),
        (torch.tensor([0.0, 5.0]), "offsets must be int64"),
        (offsets[:0], "offsets must be int64 of shape"),
    ):
        for call in (
            segment_norms,
            lambda x, offsets: scale_segments_(x, offsets, torch.ones(2, len(offsets) - 1).double()),
        ):
            with pytest.raises(RuntimeError, match=message):
                call(x, bad) if len(bad) else segment_norms(x, bad)
    with pytest.raises(RuntimeError, match=r"factors must be float64 of shape \[2, 8\]"):
        scale_segments_(x, offsets, torch.ones(2, 7, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="x must be contiguous"):
        scale_segments_(x.T.contiguous().T, offsets, torch.ones(2, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="y must have the dtype of x"):
        segment_dots(x, x.double(), offsets)
    assert torch.equal(x, before)
