"""Every loss, by mean and by sum, over seven rows to be split unevenly: plain, with a further dimension, by keyword."""

from __future__ import annotations

from typing import Any

import torch
from problems import Problem
from torch import Tensor, nn

ROWS, STEPS, FEATURES, OUTPUTS = 7, 3, 4, 3
INPUTS = ("rows", "sequences", "keywords")
REDUCTIONS = ("mean", "sum")


class ByKeyword(nn.Module):
    """A model whose inputs are given by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.net(x + shift)


def loss_problem(loss: str, reduction: str, inputs: str) -> Problem:
    """Return a two-layer perceptron under a loss; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = (ROWS, STEPS) if inputs == "sequences" else (ROWS,)
        net = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, OUTPUTS))
        if loss == "nll":
            net.append(nn.LogSoftmax(-1))
        if loss == "binary cross entropy":
            net.append(nn.Sigmoid())
        loss_fn, targets = _loss(loss, reduction, shape)
        x: Any = torch.randn(*shape, FEATURES, dtype=torch.float64)
        by_class = not isinstance(targets, Tensor) or not targets.dtype.is_floating_point
        if inputs == "keywords":
            x = {"x": x, "shift": torch.randn(ROWS, 1, dtype=torch.float64)}
            net = ByKeyword(net)
        # Losses over classes expect them on axis 1; class probabilities come as outputs do.
        turned = inputs == "sequences" and (by_class or loss == "class probabilities")
        output = (lambda z: z.movedim(-1, 1)) if turned else None
        if turned and not by_class:
            targets = targets.movedim(-1, 1)
        return Problem(net.double(), loss_fn, x, targets, output=output)


def _loss(name: str, reduction: str, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    classes = torch.randint(0, OUTPUTS, shape)
    classes.view(-1)[2] = 0
    ignored = classes.clone()
    ignored.view(-1)[[1, -1]] = -100
    weight = torch.rand(OUTPUTS, dtype=torch.float64) + 0.5
    numbers = torch.randn(*shape, OUTPUTS, dtype=torch.float64)
    probabilities = torch.rand(*shape, OUTPUTS, dtype=torch.float64)
    return {
        "cross entropy": lambda: (nn.CrossEntropyLoss(reduction=reduction), classes),
        "ignored classes": lambda: (nn.CrossEntropyLoss(reduction=reduction), ignored),
        "class weights": lambda: (nn.CrossEntropyLoss(weight, reduction=reduction), ignored),
        "label smoothing": lambda: (
            nn.CrossEntropyLoss(weight, label_smoothing=0.2, reduction=reduction),
            ignored,
        ),
        "class probabilities": lambda: (
            nn.CrossEntropyLoss(label_smoothing=0.1, reduction=reduction),
            probabilities.softmax(-1),
        ),
        "nll": lambda: (nn.NLLLoss(weight, reduction=reduction), ignored),
        "mse": lambda: (nn.MSELoss(reduction=reduction), numbers),
        "l1": lambda: (nn.L1Loss(reduction=reduction), numbers),
        "smooth l1": lambda: (nn.SmoothL1Loss(beta=0.5, reduction=reduction), numbers),
        "huber": lambda: (nn.HuberLoss(delta=0.7, reduction=reduction), numbers),
        "binary cross entropy with logits": lambda: (
            nn.BCEWithLogitsLoss(weight, pos_weight=2 * weight, reduction=reduction),
            probabilities,
        ),
        "binary cross entropy": lambda: (nn.BCELoss(reduction=reduction), probabilities),
    }[name]()


LOSSES = (
    "cross entropy",
    "ignored classes",
    "class weights",
    "label smoothing",
    "class probabilities",
    "nll",
    "mse",
    "l1",
    "smooth l1",
    "huber",
    "binary cross entropy with logits",
    "binary cross entropy",
)
