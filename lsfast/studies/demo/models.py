"""The demo's three models of 8x8 images and how they are trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsfast.studies.demo.digits import Digits

BATCH = 64


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    """Three convolutions with batch norm, the last averaged over the image."""
    widths = (1, 8, 16, 32)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        stride = 1 if index == 0 else 2
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


class Block(nn.Module):
    """A pre-norm transformer block: attention over the tokens, then two layers at each token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [b, t, width] to tokens [b, t, width]."""
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(mixed.transpose(1, 2).reshape(b, t, width))
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """The eight rows of an image are its tokens; the classes are read off their mean."""

    def __init__(self, width: int = 24, heads: int = 2, blocks: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(torch.randn(8, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [b, 1, 8, 8] to logits [b, 10]."""
        tokens = self.embed(images.flatten(1, 2)) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


MODELS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "mlp": (mlp, 15, 5e-3),
    "cnn": (cnn, 10, 1e-2),
    "transformer": (Transformer, 20, 5e-3),
}
"""name -> (constructor, epochs, largest learning rate)."""


def train(name: str, digits: Digits, seed: int, step: Callable[[int], object] = lambda steps: None) -> nn.Module:
    """Train one model with AdamW and a one-cycle learning rate; return it in eval mode.

    Deterministic in `seed`, and the state of the global random number generators is as before. `step` is called with
    the number of optimizer steps done since the last call.
    """
    construct, epochs, rate = MODELS[name]
    device = digits.train_images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = construct().to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=training_steps(name, digits))
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_images), generator=generator).to(device)
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch]).backward()
            optimizer.step()
            schedule.step()
            step(1)
    model.zero_grad()
    return model.eval()


def training_steps(name: str, digits: Digits) -> int:
    """Return the number of optimizer steps that `train` takes."""
    return MODELS[name][1] * -(-len(digits.train_images) // BATCH)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images [b, 1, 8, 8] whose label is the largest output."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())
