"""Points evaluated together on a GPU: the CPU's values to rounding, nothing waits for the device, chunks replayed."""

import pytest
import torch
from problems import problem
from test_curvature import on_cuda
from torch import nn

import lsfast

pytestmark = pytest.mark.cuda


def moved(p):
    """The problem's objective on the CPU and on the GPU."""
    here = p.objective()
    loss_fn = p.loss_fn.cuda() if isinstance(p.loss_fn, nn.Module) else p.loss_fn
    return here, lsfast.Objective(p.model.cuda(), loss_fn, on_cuda(p.data), output=p.output)


def around(objective, count):
    generator = torch.Generator().manual_seed(0)
    directions = 0.1 * torch.randn(2, objective.n, dtype=objective.dtype, generator=generator)
    return directions, torch.randn(count, 2, dtype=objective.dtype, generator=generator)


@pytest.mark.parametrize("options", [{}, {"scheme": "nvfp4"}, {"batch_norm": "recompute"}])
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "tied tokens"])
def test_values_are_those_of_the_cpu(name, options):
    if options.get("scheme") and name == "tied tokens":
        options = {}
    p = problem(name)
    here = p.objective()
    directions, coordinates = around(here, 7)
    expected = here.evaluate(directions=directions, coordinates=coordinates, **options)
    there = moved(p)[1]
    found = there.evaluate(directions=directions.cuda(), coordinates=coordinates.cuda(), **options)
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.stderr.cpu(), expected.stderr, rtol=1e-9, atol=0)


def test_chunks_of_a_size_are_captured_and_replay_what_the_first_gave():
    there = moved(problem("transformer"))[1]
    directions, coordinates = (x.cuda() for x in around(there, 12))
    repeated = coordinates[:2].repeat(6, 1)
    values = there.evaluate(directions=directions, coordinates=repeated, points_at_once=2).values
    assert torch.equal(values, values[:2].repeat(6))


def test_nothing_waits_for_the_device_between_chunks():
    there = moved(problem("mlp"))[1]
    directions, coordinates = (x.cuda() for x in around(there, 64))
    there.evaluate(directions=directions, coordinates=coordinates, points_at_once=4)
    waits = []
    for count in (16, 64):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            there.evaluate(directions=directions, coordinates=coordinates[:count], points_at_once=4)
        waits.append(sum(event.count for event in profile.key_averages() if "Synchronize" in event.key))
    assert waits[0] == waits[1]
