"""The functions that form a block of a point and quantize it give what quantizing the whole point gives."""

import numpy as np
import pytest
import torch

import lsfast
from lsfast import _numerics
from lsfast.formats import element_format
from lsfast.program.points import parameter_points
from lsfast.quantization.operators import scheme_numbers


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8_e4m3", "mxint8", "fp8_e4m3_1x128", "int4_g32", "nf4_g64"])
def test_a_point_formed_and_quantized_by_blocks_is_the_quantized_point(name, rounding):
    rows, length, seed = 6, 150, 3  # a last block that is not full
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(rows * length, generator=generator)
    directions = torch.randn(2, rows * length, generator=generator)
    coordinates = torch.tensor([[0.0, 0.0], [0.3, -1.7], [-2.0, 1e-3]])
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    element = element_format(scheme.element)
    found = _numerics.quantized_points(
        theta.numpy(),
        directions.numpy(),
        coordinates.numpy(),
        element.exponent_bits,
        element.mantissa_bits,
        element.special,
        scheme_numbers(scheme)[3],
        scheme.tensor_scale,
        rounding == "stochastic",
        scheme.block,
        length,
        seed,
    )
    points = parameter_points(theta, directions, coordinates)
    for point, mine in zip(points, found, strict=True):
        expected = lsfast.fake_quantize(point.view(rows, length), scheme, seed=seed).reshape(-1).numpy()
        assert np.array_equal(mine.view(np.uint32), expected.view(np.uint32))
