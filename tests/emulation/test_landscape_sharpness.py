"""The CUDA kernels of sharpness, run by the emulation against the CPU kernels."""

import math

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_bits, assert_same_under_schedules

REAL = [torch.float32, torch.float64]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("n", [1, 5200, 9001])  # 16-byte accesses, and rows that do not allow them
def test_sums_and_steps_of_an_ascent_have_the_bits_of_the_cpu(emulated, n, given, dtype):
    u, gradient, theta = draw(3, n, dtype=dtype), draw(3, n, dtype=dtype, seed=1), draw(n, dtype=dtype, seed=2)
    u = u if given else None
    sums = (u, gradient, theta, 1.0, 0.5)
    assert_same_bits(assert_same_under_schedules(lambda: emulated.ascent_sums(*sums)), ops.ascent_sums(*sums))
    for box in (False, True):
        step = (u, gradient, theta, draw(3, 2, seed=3).abs(), 1.0, 0.5, box)
        assert_same_bits(
            assert_same_under_schedules(lambda step=step: emulated.ascent_step(*step)), ops.ascent_step(*step)
        )


def test_sums_over_more_chunks_than_a_block_has_threads_have_the_bits_of_the_cpu(emulated):
    gradient, theta = draw(1, 300_001, dtype=torch.float32), draw(300_001, dtype=torch.float32, seed=1)
    sums = (None, gradient, theta, 0.0, 1.0)
    assert_same_bits(emulated.ascent_sums(*sums), ops.ascent_sums(*sums))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 70, 1031, 4096])  # a warp for a row; a block for a row, without and with packs
def test_logit_sharpness_is_the_cpus_within_the_stated_error(emulated, classes, dtype):
    logits = (4 * draw(9, classes)).to(dtype)
    targets = torch.arange(9) * 7 % classes
    logits[0] = logits[0].sort().values
    logits[1, targets[1]] = 9.0
    logits[2, 1:] = -math.inf
    logits[2, targets[2]] = 1.0
    logits[3, 0], logits[4, classes - 1], logits[5, targets[5]] = math.nan, math.inf, -math.inf
    targets[6], targets[7] = -100, classes
    arguments = logits, targets, 1e-3, -100
    found = assert_same_under_schedules(lambda: emulated.logit_sharpness(*arguments))
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    # Each side errs by the bound derived in sharpness.h.
    torch.testing.assert_close(
        found, ops.logit_sharpness(*arguments), rtol=2 * (3 * math.log(classes) + 24) * unit, atol=0, equal_nan=True
    )
    assert found.isnan().tolist() == [False, False, False, True, True, True, False, True, False]
