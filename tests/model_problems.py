"""Whole models with data and a loss: plain torch networks, and Hugging Face models called with dict batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hugging_face
import torch
from models import GPT, Encoder, Llama, ResNet
from problems import Problem
from torch import Tensor, nn

LENGTHS = (6, 4, 5)  # tokens of each sequence of a padded batch


def model_problem(name: str) -> Problem:
    """Return a problem by name; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _PROBLEMS[name]()


def _padded_tokens(vocabulary: int) -> dict[str, Tensor]:
    lengths = torch.tensor(LENGTHS)[:, None]
    mask = (torch.arange(max(LENGTHS)) < lengths).long()
    tokens = torch.randint(1, vocabulary, mask.shape)
    return {"input_ids": tokens * mask, "attention_mask": mask}


def _next_tokens(batch: dict[str, Tensor]) -> Tensor:
    """The token after each, -100 (ignored) at the end and in the padding."""
    following = batch["input_ids"].roll(-1, 1)
    following[:, -1] = 0
    return following.masked_fill(following == 0, -100)


def _resnet(train: bool) -> Problem:
    model = ResNet((4, 6), blocks=1, classes=3, pool=True, channels=2).double().train(train)
    inputs = torch.randn(6, 2, 10, 10, dtype=torch.float64)
    return Problem(model, nn.CrossEntropyLoss(), inputs, torch.randint(0, 3, (6,)), smooth=False)


def _encoder() -> Problem:
    model = Encoder(vocabulary=11, positions=6, width=8, blocks=2, heads=2, classes=3).double().eval()
    return Problem(model, nn.CrossEntropyLoss(), _padded_tokens(11), torch.randint(0, 3, (len(LENGTHS),)))


def _gpt() -> Problem:
    model = GPT(vocabulary=13, positions=5, width=8, blocks=2, heads=2).double()
    return Problem(model, nn.CrossEntropyLoss(), torch.randint(0, 13, (3, 5)), torch.randint(0, 13, (15,)))


def _llama() -> Problem:
    model = Llama(vocabulary=13, width=16, blocks=2, heads=4, groups=2, hidden=12).double()
    tokens, targets = torch.randint(0, 13, (3, 5)), torch.randint(0, 13, (3, 5))
    return Problem(model, nn.CrossEntropyLoss(), tokens, targets, output=lambda logits: logits.transpose(1, 2))


def _bert(attention: str) -> Problem:
    model = hugging_face.bert(attention).double()
    targets = torch.randint(0, hugging_face.CLASSES, (len(LENGTHS),))
    inputs = _padded_tokens(hugging_face.VOCABULARY)
    return Problem(model, nn.CrossEntropyLoss(), inputs, targets, output=lambda result: result.logits)


def _language_model(make: Callable[[str], nn.Module], attention: str, **options: Any) -> Problem:
    inputs = _padded_tokens(hugging_face.VOCABULARY)
    return Problem(
        make(attention).double(),
        nn.CrossEntropyLoss(),
        inputs,
        _next_tokens(inputs),
        output=lambda result: result.logits.transpose(1, 2),
        **options,
    )


def _hugging_face_llama(attention: str) -> Problem:
    return _language_model(hugging_face.llama, attention, precision=torch.finfo(torch.float32).eps)


_PROBLEMS: dict[str, Callable[[], Problem]] = {
    "resnet in eval mode": lambda: _resnet(train=False),
    "resnet in train mode": lambda: _resnet(train=True),
    "bert-like encoder": _encoder,
    "gpt-like decoder": _gpt,
    "llama-like decoder": _llama,
    "hugging face bert": lambda: _bert("sdpa"),
    "hugging face bert, eager attention": lambda: _bert("eager"),
    "hugging face gpt2": lambda: _language_model(hugging_face.gpt2, "sdpa"),
    "hugging face gpt2, eager attention": lambda: _language_model(hugging_face.gpt2, "eager"),
    "hugging face llama": lambda: _hugging_face_llama("sdpa"),
    "hugging face llama, eager attention": lambda: _hugging_face_llama("eager"),
}
MODEL_NAMES = tuple(_PROBLEMS)
