"""Objectives whose value at every point is known."""

import torch
from torch import nn

import lsfast


class Parameters(nn.Module):
    """Returns its parameters as one vector, in the order of an objective."""

    def __init__(self, *parts: torch.Tensor) -> None:
        super().__init__()
        self.parts = nn.ParameterList(part.clone() for part in parts)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.reshape(-1) for part in self.parts])


def of_parameters(function, *parts: torch.Tensor) -> lsfast.Objective:
    """The objective L(theta) = function(theta), theta the given parts as one vector."""
    return lsfast.Objective(
        Parameters(*parts), lambda outputs, targets: function(outputs), (torch.ones(1), torch.ones(1))
    )


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 4)
    ).to(dtype)


def evaluated(dtype: torch.dtype = torch.float32) -> lsfast.Objective:
    """Return the objective of the network in eval mode, whose batch norm reads its running statistics."""
    objective = of_network(dtype)
    objective.model.eval()
    return objective


def of_network(dtype: torch.dtype = torch.float32, **changes) -> lsfast.Objective:
    model = network(dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(4, (10,), generator=generator)
    loss_fn = changes.pop("loss_fn", nn.CrossEntropyLoss())
    return lsfast.Objective(model, loss_fn, (inputs, targets), **changes)
