"""The loss on the straight line between two states, and its barrier."""

import copy

import pytest
import torch
from torch import nn

import lsfast

from .problems import evaluated, of_network, of_parameters


def two_ends(dtype=torch.float64):
    """An objective in eval mode, and two states that differ in parameters and running statistics."""
    objective = evaluated(dtype)
    states = []
    for seed in (5, 6):
        model = copy.deepcopy(objective.model)
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.5 * torch.rand(tensor.shape, generator=generator, dtype=dtype)
        states.append(model.state_dict())
    return objective, *states


def loss_of(objective, state):
    model = copy.deepcopy(objective.model)
    model.load_state_dict(state)
    inputs, targets = objective.data
    return nn.functional.cross_entropy(model(inputs), targets).detach()


@pytest.mark.parametrize("steps", [2, 5])  # one by one, and together
def test_each_point_of_a_line_has_its_own_parameters_and_statistics(steps):
    objective, a, b = two_ends()
    ones = {"ones": lambda outputs, targets: 1.0}
    line = lsfast.interpolate(objective, a, b, steps, metrics=ones)
    for t, value in zip(line.coordinates[0], line.values, strict=True):
        state = {name: x.lerp(b[name], t.item()) if x.is_floating_point() else x for name, x in a.items()}
        torch.testing.assert_close(value, loss_of(objective, state).double(), rtol=1e-13, atol=0)
    assert line.coordinates[0].tolist() == [k / (steps - 1) for k in range(steps)]
    assert torch.equal(line.metrics["ones"], torch.ones(steps, dtype=torch.float64))
    assert line.stderr.isfinite().all()


def test_recomputed_statistics_are_those_of_train_mode():
    objective, a, b = two_ends()
    recomputed = lsfast.interpolate(objective, a, b, 5, batch_norm="recompute").values
    training = of_network(torch.float64)
    for k, t in enumerate(torch.linspace(0, 1, 5).tolist()):
        point = torch.cat([a[name].lerp(b[name], t).reshape(-1) for name in training.names])
        torch.testing.assert_close(recomputed[k], training.at(point).loss(), rtol=1e-12, atol=0)


def test_barrier_is_the_rise_above_the_line_through_the_ends():
    # L(t) = 16 t^2 (1-t)^2 + 3 t on the line: a hill of height 1 at t = 1/2 on a slope. All numbers are dyadic.
    objective = of_parameters(lambda x: 16 * (x[0] * (1 - x[0])) ** 2 + 3 * x[0], torch.zeros(2, dtype=torch.float64))
    a, b = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    found = lsfast.barrier(objective, a, b, steps=17)
    assert found.value == 1.0
    assert found.position == 0.5
    assert found.above_mean == found.grid.values.max() - 1.5
    assert found.grid.values[0] == 0.0
    assert found.grid.values[-1] == 3.0
    downhill = lsfast.barrier(of_parameters(lambda x: (x[0] - 0.5) ** 2, torch.zeros(2)), a.float(), b.float())
    assert downhill.value == 0.0
    assert downhill.position == 0.0
    assert downhill.above_mean == 0.0
    assert lsfast.barrier(objective, a, a).value == 0.0


def test_barrier_keeps_nan_and_is_read_back(tmp_path):
    objective = of_parameters(lambda x: (x[0] - 0.5).sqrt().log() ** 2, torch.ones(2, dtype=torch.float64))
    a, b = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="barrier: 3 of 5 values are NaN or Inf"):
        found = lsfast.barrier(objective, a, b, steps=5)
    assert found.value.isnan()
    found.save(tmp_path / "barrier.npz")
    again = lsfast.Barrier.load(tmp_path / "barrier.npz")
    assert torch.equal(again.grid.values.view(torch.int64), found.grid.values.view(torch.int64))
    lsfast.LossGrid(torch.ones(2), (torch.arange(2.0) * 2,)).save(tmp_path / "other")
    with pytest.raises(ValueError, match="Barrier.load: path must be of a line from 0 to 1"):
        lsfast.Barrier.load(tmp_path / "other")


def test_bad_arguments_are_named():
    objective, a, b = two_ends()
    for call, error, message in (
        (lambda: lsfast.barrier(a, a, b), TypeError, "barrier: objective must be an Objective"),
        (lambda: lsfast.barrier(objective, a, b, steps=2), ValueError, "barrier: steps must be at least 3, got 2"),
        (lambda: lsfast.interpolate(objective, a, b, 1), ValueError, "interpolate: steps must be at least 2, got 1"),
        (lambda: lsfast.interpolate(objective, a, b, metrics={"x": 1}), TypeError, "interpolate: metrics must map"),
        (lambda: lsfast.interpolate(objective, a, b, batch_norm="no"), ValueError, "interpolate: batch_norm must be"),
        (lambda: lsfast.interpolate(objective, a, torch.ones(3)), ValueError, "interpolate: b must have dtype"),
        (lambda: lsfast.barrier(objective, {}, b), ValueError, "barrier: a must hold '0.weight'"),
    ):
        with pytest.raises(error, match=message):
            call()
