"""The CUDA kernels of elementwise operations, emulated, against the CPU kernels: the same bits."""

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_bits, assert_same_under_schedules


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("k", "n", "gap"), [(3, 40, 0), (1, 1, 0), (2, 4112, 0), (2, 17, 0), (3, 32, 8), (3, 32, 1)])
def test_products_of_rows_have_the_bits_of_the_cpus(emulated, dtype, k, n, gap):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(k, n + gap, generator=generator).to(dtype)[:, :n] for _ in range(2))
    f, g = (torch.randn(n, generator=generator).to(dtype) for _ in range(2))

    def scaled(library):
        out = torch.full((k, n), 7.0, dtype=dtype)
        library.scale_rows(a, f, out)
        return out

    def combined(library):
        out = a.clone()
        library.combine_rows(out, f, b, g, out)
        return out

    for product in (scaled, combined):
        result = assert_same_under_schedules(lambda product=product: product(emulated))
        assert_same_bits(result, product(ops))
