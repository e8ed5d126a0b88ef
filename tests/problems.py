"""Small models with data and a loss: the cases that products, grids and studies are tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5


@dataclass(frozen=True)
class Problem:
    """A model, its loss and one batch, in float64."""

    model: nn.Module
    loss_fn: Any
    inputs: Any
    targets: Tensor

    @property
    def data(self) -> tuple[Any, Tensor]:
        return self.inputs, self.targets

    def split(self, first: int) -> list[tuple[Any, Tensor]]:
        return [(self.inputs[:first], self.targets[:first]), (self.inputs[first:], self.targets[first:])]


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer behind affine layer norms, a mean over tokens, a linear head."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.feed_forward(self.norm2(x))
        return self.head(x.mean(1))


class ScaledDotProduct(nn.Module):
    """Causal attention by torch's fused function, whose CPU kernel has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


class Tied(nn.Module):
    """One weight used as embedding and as head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


def problem(name: str) -> Problem:
    """Return a problem by name; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = torch.randint(0, CLASSES, (10,))
        model, inputs, loss_fn, targets = _PROBLEMS[name](labels)
        return Problem(model.double(), loss_fn, inputs, targets)


def _mlp(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    return model, torch.randn(10, 6).double(), nn.CrossEntropyLoss(), labels


def _cnn(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    return model.eval(), torch.randn(10, 1, 6, 6).double(), nn.CrossEntropyLoss(), labels


def _silu_regression(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.GroupNorm(2, 8), nn.Linear(8, 3))
    return model, torch.randn(10, 6).double(), nn.MSELoss(), torch.randn(10, 3).double()


def _huber(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    model = nn.Sequential(nn.Linear(6, 4), nn.Softplus(), nn.Linear(4, 2))
    return model, torch.randn(10, 6).double(), nn.HuberLoss(), 2 * torch.randn(10, 2).double()


def _weighted(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    ignored = labels.clone()
    ignored[[1, 8]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.rand(CLASSES).double() + 0.5, label_smoothing=0.1)
    return _mlp(labels)[0], torch.randn(10, 6).double(), loss, ignored


def _tokens(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    class PerToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied = Tied()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.tied(tokens).movedim(-1, 1)

    tokens = torch.randint(0, CLASSES, (10, 3))
    return PerToken(), tokens, nn.CrossEntropyLoss(), torch.randint(0, CLASSES, (10, 3))


_PROBLEMS = {
    "mlp": _mlp,
    "cnn": _cnn,
    "transformer": lambda y: (TransformerBlock(), torch.randn(10, 4, 8).double(), nn.CrossEntropyLoss(), y),
    "causal attention": lambda y: (ScaledDotProduct(), torch.randn(10, 4, 6).double(), nn.CrossEntropyLoss(), y),
    "tied tokens": _tokens,
    "silu and group norm, mse": _silu_regression,
    "huber": _huber,
    "class weights, smoothing, ignored targets": _weighted,
}
NAMES = tuple(_PROBLEMS)
