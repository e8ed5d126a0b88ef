"""Hessian and GGN products, per vector at K = 8, against one gradient of the same loss."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn.functional import cross_entropy

import lsfast


def plain_product(kind, model, data, objective, v):
    """One product as torch's users write it: double backward, or J^T H J by jvp, the loss's own Hessian and vjp."""
    inputs, targets = data

    def outputs(theta):
        return functional_call(model, objective.unflatten(theta), (inputs,))

    if kind == "hessian":
        theta = objective.parameters.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(outputs(theta), targets), theta, create_graph=True)
        return torch.autograd.grad(gradient @ v, theta)[0]
    z, tangent = jvp(outputs, (objective.parameters,), (v,))
    pull_loss = vjp(grad(lambda z: cross_entropy(z, targets)), z)[1]
    return vjp(outputs, objective.parameters)[1](pull_loss(tangent)[0])[0]


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
    product = plain_product(kind, model, data, objective, rows[0])
    assert (operator @ rows[0] - product).norm() < 1e-4 * product.norm()
    compare(
        f"{kind} product, K = 8",
        "MLP 784-512-512-10, 512 rows",
        lambda: operator.apply(rows),
        objective.gradient,
        "8 calls of objective.gradient()",
        factor=8.0,
        rounds=5,
    )
