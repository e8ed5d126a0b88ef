"""Layers with data and a loss: the small cases that products, grids and studies are tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

import lsfast
from lsfast.data import call_arguments

CLASSES = 5


@dataclass(frozen=True)
class Problem:
    """A model, its loss and one batch, in float64.

    `output` picks the logits from what the model returns. `smooth` is False where a ReLU or maximum has kinks that a
    finite difference may cross. `precision` is the unit roundoff of the coarsest arithmetic inside the model.
    """

    model: nn.Module
    loss_fn: Any
    inputs: Any
    targets: Tensor
    output: Callable[[Any], Tensor] | None = None
    smooth: bool = True
    precision: float = torch.finfo(torch.float64).eps

    @property
    def data(self) -> tuple[Any, Tensor]:
        return self.inputs, self.targets

    def split(self, first: int) -> list[tuple[Any, Tensor]]:
        """Two ragged batches; targets may have several rows for each of the inputs."""
        per_row = len(self.targets) // len(tree_leaves(self.inputs)[0])
        parts = []
        for rows in (slice(None, first), slice(first, None)):
            rows_of_targets = slice(*(None if end is None else end * per_row for end in (rows.start, rows.stop)))
            parts.append((tree_map(lambda x, rows=rows: x[rows], self.inputs), self.targets[rows_of_targets]))
        return parts

    def objective(self, data: Any = None, **options: Any) -> lsfast.Objective:
        return lsfast.Objective(
            self.model, self.loss_fn, self.data if data is None else data, output=self.output, **options
        )

    def outputs(self, parameters: dict[str, Tensor]) -> Tensor:
        """What the loss is given, by torch alone."""
        arguments, keywords = call_arguments(self.inputs)
        result = functional_call(self.model, parameters, arguments, keywords)
        return result if self.output is None else self.output(result)


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


class WeightedAttention(nn.Module):
    """Attention that also returns its weights, which takes another path through torch; both are used."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.attention(x, x, x, need_weights=True)
        return self.head(y.mean(1)) + weights.square().sum((1, 2))[:, None] * self.head.bias


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
        return Problem(model.double(), loss_fn, inputs, targets, smooth=name not in _KINKED)


def _mlp(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    return model, torch.randn(10, 6).double(), nn.CrossEntropyLoss(), labels


def _cnn(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    return model.eval(), torch.randn(10, 1, 6, 6).double(), nn.CrossEntropyLoss(), labels


def _pooled_cnn(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    first = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(4, CLASSES))
    return model, torch.randn(10, 1, 8, 8).double(), nn.CrossEntropyLoss(), labels


def _silu_regression(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.GroupNorm(2, 8), nn.Linear(8, 3))
    return model, torch.randn(10, 6).double(), nn.MSELoss(), torch.randn(10, 3).double()


def _rms_norm(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.SiLU(), nn.Linear(8, CLASSES))
    return model, torch.randn(10, 6).double(), nn.CrossEntropyLoss(), labels


def _encoder_layer(labels: Tensor) -> tuple[nn.Module, Tensor, Any, Tensor]:
    layer = nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, CLASSES))
    return model.eval(), torch.randn(10, 4, 6).double(), nn.CrossEntropyLoss(), labels


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
    "pooled cnn": _pooled_cnn,
    "transformer": lambda y: (TransformerBlock(), torch.randn(10, 4, 8).double(), nn.CrossEntropyLoss(), y),
    "causal attention": lambda y: (ScaledDotProduct(), torch.randn(10, 4, 6).double(), nn.CrossEntropyLoss(), y),
    "tied tokens": _tokens,
    "attention with weights": lambda y: (
        WeightedAttention(),
        torch.randn(10, 4, 6).double(),
        nn.CrossEntropyLoss(),
        y,
    ),
    "encoder layer in eval mode": _encoder_layer,
    "rms norm": _rms_norm,
    "silu and group norm, mse": _silu_regression,
    "huber": _huber,
    "class weights, smoothing, ignored targets": _weighted,
}
_KINKED = ("cnn", "pooled cnn", "huber")
NAMES = tuple(_PROBLEMS)
