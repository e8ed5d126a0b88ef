"""Rules of fixed linear maps against the generic one: every mode, axis and size, negative padding, 0-dim tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from program.rule_cases import K, check_rule
from torch import Tensor

from lsfast.program.rules import find_rule

aten = torch.ops.aten


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padding", [[1, 2], [0, 0], [1, 0, 0, 2], [-1, 2, 1, -2], [0, 1, 2, 0, 1, 1]], ids=str)
def test_constant_padding(padding: list[int]) -> None:
    for x in (normal(2, 3, 4), normal(2, 2, 3, 4).contiguous(memory_format=torch.channels_last)):
        check_rule(aten.pad.default, x, padding)
        check_rule(aten.pad.default, x, padding, "constant", 2.0)
        check_rule(aten.constant_pad_nd.default, x, padding, 3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_by_elements_of_the_input(mode: str) -> None:
    for shape, paddings in (
        ((2, 5), ([1, 2], [0, 3])),
        ((2, 3, 5), ([2, 0], [4, 1])),
        ((2, 3, 4, 5), ([1, 2, 3, 0], [0, 1, 0, 0])),
        ((2, 3, 4, 3, 5), ([1, 2, 1, 0, 0, 3],)),
    ):
        for padding in paddings:
            if not (mode == "circular" and len(shape) == 2):
                check_rule(aten.pad.default, normal(*shape), padding, mode)
    check_rule(aten.pad.default, normal(3, 4, 5), [1, 2, 0, 1], mode)  # an image without a batch


def test_padding_a_constant_keeps_channels_last() -> None:
    make = find_rule(aten.pad.default)
    assert make is not None
    rule = make((True, False, False, False))
    rule.forward(normal(2, 3, 4, 5), [1, 1, 1, 1], "constant", None)
    rows = normal(K * 2, 3, 4, 5).contiguous(memory_format=torch.channels_last).view(K, 2, 3, 4, 5)
    assert rule.jvp(rows).flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("shifts", "dims"), [([1], [0]), ([-2], [-1]), ([1, 5], [1, -1]), ([2], []), ([0], [0])])
def test_rolls_along_dimensions_and_flattened(shifts: list[int], dims: list[int]) -> None:
    check_rule(aten.roll.default, normal(3, 4, 5), shifts, dims)


def test_flips_triangles_and_cumulative_sums() -> None:
    for dims in ([0], [-1], [0, 2], []):
        check_rule(aten.flip.default, normal(3, 4, 5), dims)
    for diagonal in (-1, 0, 2):
        check_rule(aten.tril.default, normal(2, 4, 5), diagonal)
        check_rule(aten.triu.default, normal(4, 4), diagonal)
    for dim in (0, 1, -1):
        check_rule(aten.cumsum.default, normal(3, 4, 5), dim)
    check_rule(aten.cumsum.default, normal(), 0)
    check_rule(aten.cumsum.default, normal(0, 3), 0)
    check_rule(aten.cumsum.default, normal(3).float(), 0, dtype=torch.float64, tolerance=1e-6)


@pytest.mark.parametrize(
    "sizing", [([5, 7], None), ([2, 3], None), ([4, 5], None), (None, [2.0, 1.5]), (None, [0.6, 2.3])]
)
def test_resizing_images(sizing: tuple[Any, Any]) -> None:
    size, scale = sizing
    x = normal(2, 3, 4, 5)
    check_rule(aten.upsample_nearest2d.vec, x, size, scale)
    check_rule(aten._upsample_nearest_exact2d.vec, x, size, scale)
    for corners in (False, True):
        check_rule(aten.upsample_bilinear2d.vec, x, size, corners, scale)
        check_rule(aten.upsample_bicubic2d.vec, x, size, corners, scale)
    check_rule(aten._upsample_bilinear2d_aa.vec, x, size, False, scale)


def test_resizing_sequences_and_volumes() -> None:
    for size, scale in (([7], None), (None, [0.5])):
        check_rule(aten.upsample_nearest1d.vec, normal(2, 3, 5), size, scale)
        check_rule(aten.upsample_linear1d.vec, normal(2, 3, 5), size, False, scale)
    check_rule(aten.upsample_nearest3d.vec, normal(1, 2, 3, 2, 4), [4, 4, 3], None)
    check_rule(aten.upsample_trilinear3d.vec, normal(1, 2, 3, 2, 4), None, True, [2.0, 2.0, 0.5])


def test_patches_and_shuffled_pixels() -> None:
    windows = ([2, 3], [1, 2], [1, 0], [2, 1])
    x = normal(2, 3, 5, 6)
    columns = aten.im2col(x, *windows)
    check_rule(aten.im2col.default, x, *windows)
    check_rule(aten.im2col.default, x[0], *windows)
    check_rule(aten.col2im.default, columns, [5, 6], *windows)
    check_rule(aten.col2im.default, columns[0], [5, 6], *windows)
    check_rule(aten.pixel_shuffle.default, normal(2, 8, 2, 3), 2)
    check_rule(aten.pixel_unshuffle.default, normal(2, 4, 6), 2)
