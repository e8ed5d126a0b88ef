"""Pooling rules against the generic one: windows, padding, ceilings, sizes that do not divide, both memory formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from program.rule_cases import K, check_rule
from torch import Tensor

from lsfast.program.rules import find_rule

aten = torch.ops.aten
MAXIMA = {1: aten.max_pool1d, 2: aten.max_pool2d, 3: aten.max_pool3d}
MAXIMA_AND_PLACES = {1: aten.max_pool1d_with_indices, 2: aten.max_pool2d_with_indices, 3: aten.max_pool3d_with_indices}
AVERAGES = {1: aten.avg_pool1d, 2: aten.avg_pool2d, 3: aten.avg_pool3d}
ADAPTIVE_MAXIMA = {1: aten.adaptive_max_pool1d, 2: aten.adaptive_max_pool2d, 3: aten.adaptive_max_pool3d}
ADAPTIVE_AVERAGES = {1: aten.adaptive_avg_pool1d, 2: aten.adaptive_avg_pool2d, 3: aten.adaptive_avg_pool3d}
SIZES = (7, 6, 5)


def images(*shape: int, channels_last: bool = False) -> Tensor:
    """Distinct numbers, so that every maximum is at one place."""
    generator = torch.Generator().manual_seed(0)
    count = torch.Size(shape).numel()
    x = torch.randperm(count, generator=generator).double().div(count).view(shape)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": [2, 2]},
        {"kernel_size": [2]},
        {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]},
        {"kernel_size": [3, 2], "stride": [1, 3]},
        {"kernel_size": [2, 2], "stride": [2, 2], "dilation": [2, 3]},
        {"kernel_size": [3, 3], "stride": [2, 2], "ceil_mode": True},
        {"kernel_size": [1, 1], "stride": [2, 2]},
    ],
    ids=str,
)
def test_max_pool2d_over_any_windows(options: dict[str, Any], channels_last: bool) -> None:
    x = images(2, 3, 7, 6, channels_last=channels_last)
    check_rule(aten.max_pool2d.default, x, **options)
    check_rule(aten.max_pool2d_with_indices.default, x, **options)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_windows_in_every_dimension_with_a_batch_and_without(dims: int) -> None:
    for shape in ((2, 3, *SIZES[:dims]), (3, *SIZES[:dims])):
        x = images(*shape)
        for options in ({"kernel_size": [2]}, {"kernel_size": [3] * dims, "stride": [2] * dims, "padding": [1] * dims}):
            check_rule(MAXIMA[dims].default, x, **options)
            check_rule(MAXIMA_AND_PLACES[dims].default, x, **options)
            check_rule(AVERAGES[dims].default, x, **options)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": [2, 2]},
        {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]},
        {"kernel_size": [3, 2], "stride": [1, 2], "padding": [1, 0], "count_include_pad": False},
        {"kernel_size": [3, 3], "stride": [2, 2], "ceil_mode": True},
        {"kernel_size": [2, 2], "divisor_override": 3},
    ],
    ids=str,
)
def test_avg_pool2d_over_any_windows(options: dict[str, Any], channels_last: bool) -> None:
    check_rule(aten.avg_pool2d.default, images(2, 3, 7, 6, channels_last=channels_last), **options)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_adaptive_pools_of_sizes_that_divide_and_do_not(dims: int, count: int) -> None:
    for shape in ((2, 3, *SIZES[:dims]), (3, *SIZES[:dims])):
        check_rule(ADAPTIVE_MAXIMA[dims].default, images(*shape), [count] * dims)
        check_rule(ADAPTIVE_AVERAGES[dims].default, images(*shape), [count] * dims)


@pytest.mark.parametrize("counts", [(1, 1), (3, 2), (2, 4), (7, 1)])
def test_adaptive_pools_of_channels_last_images(counts: tuple[int, int]) -> None:
    x = images(2, 3, 6, 4, channels_last=True)
    check_rule(aten.adaptive_max_pool2d.default, x, list(counts))
    check_rule(aten.adaptive_avg_pool2d.default, x, list(counts))
    check_rule(aten._adaptive_avg_pool2d.default, x, list(counts))


@pytest.mark.parametrize(
    "operation", [aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default]
)
def test_pooled_rows_keep_the_memory_format(operation: Any) -> None:
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x, options = images(2, 3, 6, 4).contiguous(memory_format=memory_format), [[2, 2]]
        make = find_rule(operation)
        assert make is not None
        rule = make((True, False))
        if operation is aten.max_pool2d.default:
            options += [[], [0, 0], [1, 1], False]
        if operation is aten.avg_pool2d.default:
            options += [[], [0, 0], False, True, None]
        y = rule.forward(x, *options)
        rows = torch.randn(K * 2, 3, 6, 4, dtype=x.dtype).contiguous(memory_format=memory_format).view(K, *x.shape)
        adjoints = torch.randn(K * 2, *y.shape[1:], dtype=x.dtype).contiguous(memory_format=memory_format)
        for result in (rule.jvp(rows), rule.vjp(adjoints.view(K, *y.shape))[0]):
            assert result.flatten(0, 1).is_contiguous(memory_format=memory_format)


def test_a_maximum_over_half_precision_selects_exactly() -> None:
    x = images(2, 3, 6, 4).bfloat16()
    make = find_rule(aten.max_pool2d.default)
    assert make is not None
    rule = make((True,))
    y = rule.forward(x, [2, 2], [], [0, 0], [1, 1], False)
    rows = torch.stack([x, 2 * x])
    assert torch.equal(rule.jvp(rows), torch.stack([y, 2 * y]))
