"""The CUDA kernels of the curvature room, emulated, against the CPU kernels."""

import pytest
import torch

from .schedules import assert_same_under_schedules


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 9, 10), (1, 1, 1), (2, 5, 100), (2, 20, 33)])
def test_softmax_hessian_product_is_the_cpus_to_rounding(emulated, dtype, shape):
    k, rows, classes = shape
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, dtype=dtype, generator=generator)
    scale = torch.rand(rows, dtype=dtype, generator=generator)
    tangents = torch.randn(k, rows, classes, dtype=dtype, generator=generator)
    result = assert_same_under_schedules(lambda: emulated.softmax_hessian_product(logits, scale, tangents))
    expected = torch.ops.lsfast.softmax_hessian_product(logits, scale, tangents)
    # The sums over classes run in another order: (classes / 16 + 16) roundings of terms bounded by |u|.
    bound = (classes / 16 + 16) * torch.finfo(dtype).eps * float(tangents.abs().max())
    assert (result - expected).abs().max() <= bound
