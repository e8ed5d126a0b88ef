"""The models, losses and data that curvature is measured on, at the sizes of a CPU or a GPU, or tiny to see it run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from models import GPT, ResNet  # tests/models.py
from torch import Tensor, nn

import lsfast


@dataclass(frozen=True)
class Case:
    """One batch under a loss, and the number k of vectors that products are measured with.

    `matmul_precision` is how the products of float32 matrices are computed, here and by the peers.
    """

    size: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    k: int = 8
    matmul_precision: str = "ieee"

    loss_fn = nn.CrossEntropyLoss()

    def objective(self) -> lsfast.Objective:
        """Return the objective as a user makes it."""
        # As long as an argument has its default it need not be given.
        options: dict[str, Any] = {} if self.matmul_precision == "ieee" else {"matmul_precision": self.matmul_precision}
        return lsfast.Objective(self.model, self.loss_fn, (self.inputs, self.targets), **options)

    def gradient(self) -> tuple[Tensor, ...]:
        """One gradient as plain torch code takes it."""
        loss = self.loss_fn(self.model(self.inputs), self.targets)
        return torch.autograd.grad(loss, list(self.model.parameters()))

    def vectors(self) -> Tensor:
        """Random rows [k, n]."""
        n = sum(parameter.numel() for parameter in self.model.parameters())
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.k, n, generator=generator).to(self.inputs.device)

    @property
    def tolerance(self) -> float:
        """How far right products may be apart, relative: float32 sums in two orders, or TF32's 11 bits."""
        return 1e-4 if self.matmul_precision == "ieee" else 3e-2


CASES = {"cpu": ("mlp", "cnn", "gpt", "small mlp"), "cuda": ("mlp", "resnet18", "gpt2", "gpt2 tf32")}


def make_case(name: str, device: torch.device, tiny: bool = False) -> Case:
    """Return a case by name, the same each time; tiny ones have the structure of the case and no size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = _CASES[name](tiny)
    model, inputs, targets = (part.to(device) for part in (case.model, case.inputs, case.targets))
    return Case(case.size, model, inputs, targets, case.k, case.matmul_precision)


@contextmanager
def torch_precision(case: Case) -> Iterator[None]:
    """Give plain torch code and the peers the case's precision of matrix products."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if case.matmul_precision == "ieee" else "high")
    torch.backends.cudnn.allow_tf32 = case.matmul_precision != "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def _mlp(sizes: list[int], rows: int, k: int = 8) -> Case:
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    targets = torch.randint(0, sizes[-1], (rows,))
    size = f"MLP {'-'.join(map(str, sizes))}, {rows} rows"
    return Case(size, nn.Sequential(*layers[:-1]), torch.randn(rows, sizes[0]), targets, k)


def _resnet(widths: tuple[int, ...], images: int, side: int) -> Case:
    # In eval mode, as curvature is asked for of a trained model: batch statistics would tie the images together, and
    # peers disagree about what a product then is.
    model = ResNet(widths, blocks=2, classes=10).eval()
    size = f"ResNet {'-'.join(map(str, widths))}, eval, {images} x 3x{side}x{side}"
    return Case(size, model, torch.randn(images, 3, side, side), torch.randint(0, 10, (images,)))


def _gpt(blocks: int, width: int, heads: int, vocabulary: int, batch: int, tokens: int, precision: str) -> Case:
    model = GPT(vocabulary, tokens, width, blocks, heads)
    size = f"GPT {blocks} x {width}, {batch} x {tokens} tokens" + (", TF32" if precision == "tf32" else "")
    inputs = torch.randint(0, vocabulary, (batch, tokens))
    return Case(size, model, inputs, torch.randint(0, vocabulary, (batch * tokens,)), matmul_precision=precision)


def _gpt2(tiny: bool, precision: str) -> Case:
    # The 124M shape: 12 blocks of width 768, 50257 tokens.
    if tiny:
        return _gpt(2, 8, 2, 11, 2, 4, precision)
    return _gpt(12, 768, 12, 50257, 4, 1024, precision)


_CASES: dict[str, Callable[[bool], Case]] = {
    "mlp": lambda tiny: _mlp([8, 6, 6, 3] if tiny else [784, 512, 512, 10], 5 if tiny else 512),
    "small mlp": lambda tiny: _mlp([4, 4, 4, 3] if tiny else [64, 64, 64, 10], 5 if tiny else 256, k=16),
    "cnn": lambda tiny: _resnet((3, 4) if tiny else (16, 32, 64), 2 if tiny else 32, 8 if tiny else 32),
    "gpt": lambda tiny: _gpt(2, 8, 2, 11, 2, 4, "ieee") if tiny else _gpt(4, 128, 4, 256, 8, 64, "ieee"),
    # The blocks of ResNet-18 with the stem that 32x32 images take.
    "resnet18": lambda tiny: _resnet((3, 4) if tiny else (64, 128, 256, 512), 2 if tiny else 512, 8 if tiny else 32),
    "gpt2": lambda tiny: _gpt2(tiny, "ieee"),
    "gpt2 tf32": lambda tiny: _gpt2(tiny, "tf32"),
}
