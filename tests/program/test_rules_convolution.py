"""Convolution rules against the generic one: options, odd sizes, memory formats, both ways of adding K terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from program.rule_cases import K, check_rule
from torch import Tensor

from lsfast.program.rules import convolution, find_rule
from lsfast.program.rules.generic import all_arguments

aten = torch.ops.aten


@pytest.fixture(params=["side by side", "one by one"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 2**62 if request.param == "side by side" else -1
    monkeypatch.setattr(convolution, "WIDE_BELOW", {"cpu": limit, "cuda": limit})


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": [2, 3]},
        {"padding": [1, 2]},
        {"dilation": [2, 1]},
        {"stride": [2, 2], "padding": [1, 1]},
        {"stride": [2, 1], "padding": [2, 0], "dilation": [1, 2]},
        {"stride": [3, 3], "padding": [1, 1], "dilation": [2, 2]},
    ],
    ids=str,
)
def test_conv2d_with_any_stride_padding_and_dilation(options: dict[str, Any]) -> None:
    check_rule(aten.conv2d.default, normal(2, 3, 8, 7), normal(4, 3, 3, 2), normal(4), **options)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv2d_in_groups_up_to_one_for_each_channel(groups: int) -> None:
    weight = normal(8, 4 // groups, 3, 3)
    check_rule(aten.conv2d.default, normal(2, 4, 6, 6), weight, normal(8), stride=[2, 1], padding=[1, 1], groups=groups)
    check_rule(aten.conv1d.default, normal(2, 4, 6), normal(4, 4 // groups, 3), normal(4), groups=groups)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 5, 5), (3, 1, 4, 5), (2, 6, 1, 3), (0, 2, 4, 4)])
def test_conv2d_of_one_pixel_one_channel_one_image_and_none(shape: tuple[int, ...]) -> None:
    check_rule(aten.conv2d.default, normal(*shape), normal(1, shape[1], 1, 1), normal(1))
    check_rule(aten.conv2d.default, normal(*shape), normal(5, shape[1], 3, 3), None, padding=[1, 1])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_stride_that_does_not_divide_in_every_dimension(dims: int) -> None:
    conv = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}[dims].default
    for size in (5, 6, 7):
        x = normal(2, 2, *[size] * dims)
        check_rule(conv, x, normal(3, 2, *[2] * dims), normal(3), stride=[3] * dims, padding=[1] * dims)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (4, 1)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(kernel: tuple[int, int], padding: str) -> None:
    x, bias = normal(2, 2, 7, 6), normal(3)
    check_rule(aten.conv2d.padding, x, normal(3, 2, *kernel), bias, padding=padding)
    check_rule(aten.conv2d.padding, x, normal(3, 2, *kernel), bias, padding=padding, dilation=[1, 2])
    check_rule(aten.conv1d.padding, normal(2, 2, 6), normal(3, 2, kernel[0]), bias, padding=padding)
    check_rule(aten.conv3d.padding, normal(1, 1, 3, 4, 4), normal(2, 1, 2, *kernel), normal(2), padding=padding)


def test_inputs_without_a_batch() -> None:
    check_rule(aten.conv2d.default, normal(2, 5, 5), normal(3, 2, 3, 3), normal(3))
    check_rule(aten.conv1d.default, normal(2, 5), normal(3, 2, 3), normal(3), padding=[1])
    check_rule(aten.conv_transpose2d.input, normal(2, 5, 5), normal(2, 3, 3, 3), normal(3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": [2, 2]},
        {"stride": [2, 3], "padding": [1, 1], "output_padding": [1, 2]},
        {"dilation": [2, 1], "padding": [0, 1]},
        {"stride": [2, 2], "groups": 2},
    ],
    ids=str,
)
def test_transposed_convolutions(options: dict[str, Any]) -> None:
    groups = options.get("groups", 1)
    check_rule(aten.conv_transpose2d.input, normal(2, 4, 4, 3), normal(4, 6 // groups, 3, 2), normal(6), **options)


def test_transposed_convolutions_of_sequences_and_volumes() -> None:
    check_rule(aten.conv_transpose1d.default, normal(2, 3, 5), normal(3, 2, 4), normal(2), stride=[2], padding=[1])
    check_rule(aten.conv_transpose3d.input, normal(1, 2, 2, 3, 2), normal(2, 3, 2, 2, 2), normal(3), stride=[2, 1, 2])


def test_the_general_overload() -> None:
    x, weight, bias = normal(2, 3, 6, 5), normal(3, 3, 3, 3), normal(3)
    check_rule(aten.convolution.default, x, weight, bias, [2, 1], [1, 1], [1, 1], False, [0, 0], 1)
    check_rule(aten.convolution.default, x, weight, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1)


@pytest.mark.parametrize("channels_last_x", [False, True])
@pytest.mark.parametrize("channels_last_weight", [False, True])
def test_conv2d_in_both_memory_formats(channels_last_x: bool, channels_last_weight: bool) -> None:
    x, weight = normal(3, 5, 7, 6), normal(4, 5, 3, 3)
    if channels_last_x:
        x = x.contiguous(memory_format=torch.channels_last)
    if channels_last_weight:
        weight = weight.contiguous(memory_format=torch.channels_last)
    check_rule(aten.conv2d.default, x, weight, normal(4), padding=[1, 1])


def products(
    x: Tensor, weight: Tensor, bias: Tensor, rows: list[Tensor], adjoint: Tensor, adjoints: Tensor
) -> list[Any]:
    make = find_rule(aten.conv2d.default)
    assert make is not None
    rule = make((True, True, True, False, False, False, False))
    rule.forward(*all_arguments(aten.conv2d.default, (x, weight, bias), {"padding": [1, 1]}))
    rule.hold(adjoint)
    nothing = [None] * 4
    return [rule.jvp(*rows, *nothing), *rule.vjp_jvp(adjoints, *rows, *nothing)[:3]]


def test_tangents_and_adjoints_of_any_strides_are_only_read() -> None:
    x, weight, bias = normal(2, 3, 5, 4), normal(4, 3, 3, 3), normal(4)
    adjoint, adjoints = normal(2, 4, 5, 4, seed=1), normal(K, 2, 4, 5, 4, seed=2)
    rows = [normal(K, *t.shape, seed=3 + i) for i, t in enumerate((x, weight, bias))]
    expected = products(x, weight, bias, rows, adjoint, adjoints)

    flat = torch.cat([rows[1].flatten(1), rows[2]], 1)  # views of rows of all parameters
    strided = [
        rows[0].transpose(3, 4).contiguous().transpose(3, 4),
        flat[:, : weight.numel()].view_as(rows[1]),
        flat[:, -4:],
    ]
    channels_last = adjoints.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(adjoints)
    kept = [t.clone() for t in (*strided, channels_last, adjoint)]
    found = products(x, weight, bias, strided, adjoint.transpose(2, 3).contiguous().transpose(2, 3), channels_last)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for before, after in zip(kept, (*strided, channels_last, adjoint), strict=True):
        assert torch.equal(before, after)

    same = [row[:1].expand_as(row) for row in rows]  # stride 0 along the vectors
    for part in products(x, weight, bias, same, adjoint, adjoints[:1].expand_as(adjoints)):
        torch.testing.assert_close(part, part[:1].expand_as(part), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)])
def test_low_precision_accumulates_in_float32(dtype: torch.dtype, unit: float) -> None:
    # A result is the rounded addition of two rounded sums of n products, each of them off by n 2^-24 sum |a||b| at most
    # before it is rounded to the dtype: (4 u + 2 n 2^-24) sum |a||b| in all, with n = 27 + 1 for jvp (bias), 36 for the
    # adjoint of the input, 40 pixels for that of the weight and the bias.
    x, weight, bias = normal(2, 3, 5, 4), normal(4, 3, 3, 3), normal(4)
    adjoint, adjoints = normal(2, 4, 5, 4, seed=1), normal(K, 2, 4, 5, 4, seed=2)
    rows = [normal(K, *t.shape, seed=3 + i) for i, t in enumerate((x, weight, bias))]
    low = [t.to(dtype) for t in (x, weight, bias, *rows, adjoint, adjoints)]
    found = products(*low[:3], low[3:6], *low[6:])
    wide = [t.double() for t in low]
    expected = products(*wide[:3], wide[3:6], *wide[6:])
    sizes = [t.abs() for t in wide]
    bounds = products(*sizes[:3], sizes[3:6], *sizes[6:])
    for a, b, size in zip(found, expected, bounds, strict=True):
        assert a.dtype == dtype
        assert ((a.double() - b).abs() <= (4 * unit + 80 * 2.0**-24) * size).all()


def test_results_are_channels_last_images_one_vector_after_the_other() -> None:
    x, weight, bias = (normal(*s, dtype=torch.float32) for s in ((2, 3, 5, 4), (4, 3, 3, 3), (4,)))
    rows = [normal(K, *t.shape, dtype=torch.float32, seed=3) for t in (x, weight, bias)]
    adjoints = normal(K, 2, 4, 5, 4, dtype=torch.float32)
    y, of_input, *_ = products(x, weight, bias, rows, adjoints[0], adjoints)
    for images in (y, of_input):
        assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert images.stride(0) == images[0].numel()


def test_the_adjoint_of_the_weight_is_written_where_the_engine_wants_it() -> None:
    for conv, shape in ((aten.conv2d.default, (2, 3, 5, 4)), (aten.conv1d.default, (2, 3, 5))):
        x, weight = normal(*shape), normal(4, 3, *(3,) * (len(shape) - 2))
        make = find_rule(conv)
        assert make is not None
        rule = make((True, True, False, False, False, False, False))
        y = rule.forward(*all_arguments(conv, (x, weight), {}))
        rule.hold(normal(*y.shape))
        tangents = [normal(K, *x.shape, seed=1), normal(K, *weight.shape, seed=2), *[None] * 5]
        adjoints = normal(K, *y.shape, seed=3)
        expected = rule.vjp_jvp(adjoints, *tangents)[1]
        rule.into[1] = torch.full((K, weight.numel() + 3), torch.nan, dtype=x.dtype)[:, 1:-2].view(K, *weight.shape)
        assert rule.vjp_jvp(adjoints, *tangents)[1] is rule.into[1]
        assert torch.equal(rule.into[1], expected)
