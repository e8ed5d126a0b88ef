"""Hessian and GGN products, per vector at K = 8, against one gradient of the same loss."""

import pytest
import torch
from torch import nn

import lsfast


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_product_of_an_mlp(compare, device, kind):
    generator = torch.Generator().manual_seed(0)
    sizes = [784, 512, 512, 10]
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).to(device)
    data = (
        torch.randn(512, 784, generator=generator).to(device),
        torch.randint(0, 10, (512,), generator=generator).to(device),
    )
    objective = lsfast.Objective(model, nn.CrossEntropyLoss(), data)
    operator = {"hessian": lsfast.HessianOperator, "ggn": lsfast.GGNOperator}[kind](objective)
    rows = torch.randn(8, objective.n, generator=generator).to(device)
    assert operator.check().symmetry < 1e-4
    compare(
        f"{kind} product, K = 8",
        "MLP 784-512-512-10, 512 rows",
        lambda: operator.apply(rows),
        objective.gradient,
        "8 calls of objective.gradient()",
        factor=8.0,
        rounds=5,
    )
