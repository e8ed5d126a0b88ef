"""The CUDA kernels of activations, run by the emulation against the CPU kernels."""

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_bits, assert_same_under_schedules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", range(5))
@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 5, 7), (1, 2, 300)])  # 16-byte accesses, and rows too short for them
def test_activations_have_the_bits_of_the_cpu(emulated, shape, activation, dtype):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(*shape, generator=generator).to(dtype)
    g, _, c = shape
    for x in (None, torch.randn(1, c), torch.randn(g, c), torch.randn(*shape)):
        added = None if x is None else x.to(dtype)

        def call(library, added=added):
            result = y.clone()
            library.activate_(result, added, activation)
            return result

        assert_same_bits(assert_same_under_schedules(lambda call=call: call(emulated)), call(ops))
