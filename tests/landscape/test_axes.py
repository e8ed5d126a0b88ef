"""Axes of grids: their ends, their middle, their gaps."""

import pytest
import torch

from lsfast.landscape.axes import grid_axes

REAL = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("steps", [2, 3, 10, 51, 100, 101])
@pytest.mark.parametrize("extent", [1.0, 0.1, 3.3])
def test_axes_include_their_ends_and_are_antisymmetric(steps, extent, dtype):
    (axis,) = grid_axes("f", steps, extent, None, 1, dtype)
    end = torch.tensor(extent, dtype=torch.float64).to(dtype)
    assert axis[0] == -end
    assert axis[-1] == end
    assert torch.equal(axis, -axis.flip(0))
    if steps % 2:
        assert axis[steps // 2] == 0
    gaps = axis.double().diff()
    # Each end of a gap is 3 roundings of float64 off (weight, product, sum), and rounded to dtype; of the extent all.
    bound = 2 * (3 * 2.0**-53 + torch.finfo(dtype).eps / 2) * extent
    assert (gaps - 2 * extent / (steps - 1)).abs().max() <= bound
