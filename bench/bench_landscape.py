"""Forming parameter points against moving their bytes, and a loss grid against a plain loop over its points."""

import torch
from torch import nn
from torch.func import functional_call

import lsfast
from lsfast.program.points import parameter_points


def test_parameter_points(compare, device):
    n, g = 10**7, 8
    generator = torch.Generator().manual_seed(0)
    theta, directions = torch.randn(n, generator=generator), torch.randn(2, n, generator=generator)
    theta, directions = theta.to(device), directions.to(device)
    coordinates = torch.randn(g, 2, generator=generator).to(device)
    out = torch.empty(g, n, device=device)
    parameter_points(theta, directions, coordinates, out=out)
    assert torch.equal(out[3], theta + coordinates[3, 0] * directions[0] + coordinates[3, 1] * directions[1])
    spare = torch.empty_like(theta)
    compare(
        "theta + a d1 + b d2, 8 points, out=",
        "n = 1e7 float32",
        lambda: parameter_points(theta, directions, coordinates, out=out),
        lambda: spare.copy_(theta),
        "3 reads and 8 writes at copy speed",
        factor=11 / 2,
    )


def test_loss_grid(compare, device):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    inputs = torch.randn(1797, 64, generator=generator).to(device)
    targets = torch.randint(0, 10, (1797,), generator=generator).to(device)
    loss_fn = nn.CrossEntropyLoss()
    objective = lsfast.Objective(model, loss_fn, (inputs, targets))
    d = lsfast.random_directions(objective)
    x, theta = torch.linspace(-1, 1, 21, device=device), objective.parameters

    def loop():
        values = torch.empty(21, 21)
        with torch.no_grad():
            for i, a in enumerate(x):
                for j, b in enumerate(x):
                    point = objective.unflatten(theta + a * d.vectors[0] + b * d.vectors[1])
                    values[i, j] = loss_fn(functional_call(model, point, (inputs,)), targets)
        return values

    grid = lsfast.loss_grid(objective, d, steps=(21, 21))
    assert torch.allclose(grid.values.float(), loop(), rtol=1e-4)
    compare(
        "loss_grid, two directions",
        "21 x 21, MLP 64-64-64-10",
        lambda: lsfast.loss_grid(objective, d, steps=(21, 21)),
        loop,
        "functional_call in a Python loop",
        rounds=5,
    )
