"""Sharpness on a GPU against the CPU: an ascent bit for bit, logits within their stated error."""

import math

import pytest
import torch

import lsfast
from lsfast.landscape.ascent import ascent_step, ascent_sums

pytestmark = pytest.mark.cuda


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4096, 300_001])
def test_sums_and_steps_of_an_ascent_have_the_bits_of_the_cpu(n, dtype):
    u, gradient, theta = normal(3, n, dtype=dtype), normal(3, n, dtype=dtype, seed=1), normal(n, dtype=dtype, seed=2)
    on_gpu = u.cuda(), gradient.cuda(), theta.cuda()
    scale = (1.0, 0.5)
    assert torch.equal(ascent_sums(*on_gpu, scale).cpu(), ascent_sums(u, gradient, theta, scale))
    pairs = torch.full((3, 2), 0.3, dtype=torch.float64)
    for box in (False, True):
        found = ascent_step(*on_gpu, pairs.cuda(), scale, box)
        for one, other in zip(found, ascent_step(u, gradient, theta, pairs, scale, box), strict=True):
            assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [10, 1031, 128_256])
def test_logit_sharpness_is_the_cpus_within_the_stated_error(classes, dtype):
    logits, targets = (4 * normal(33, classes)).to(dtype), torch.arange(33) % classes
    targets[3] = -100
    logits[4, classes - 1], logits[5, targets[5]] = math.nan, -math.inf
    found = lsfast.logit_sharpness(logits.cuda(), targets.cuda()).cpu()
    bound = 2 * (3 * math.log(classes) + 24) * (2.0**-53 if dtype == torch.float64 else 2.0**-24)
    expected = lsfast.logit_sharpness(logits, targets)
    torch.testing.assert_close(found, expected, rtol=bound, atol=0, equal_nan=True)


def test_every_method_runs_there_with_the_cpus_values():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    inputs, targets = normal(20, 6, dtype=torch.float64), torch.arange(20) % 5
    results = []
    for device in ("cpu", "cuda"):
        data = (inputs.to(device), targets.to(device))
        objective = lsfast.Objective(model.to(device), torch.nn.CrossEntropyLoss(), data)
        values = [lsfast.sharpness(objective, name) for name in ("sam", "asam", "worst", "keskar", "critical")]
        values += [lsfast.sharpness(objective, "average").value, lsfast.sharpness(objective, per_sample=True).mean()]
        results.append(torch.stack([value.cpu() for value in values]))
    # The ascent of worst and keskar decides by losses that round apart, and the bracket of critical is 4^-7 wide.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-12)
