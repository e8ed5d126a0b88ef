"""The demo's data: the handwritten digits that scikit-learn ships, 1797 images of 8x8 pixels, nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEST_IMAGES = 360


@dataclass(frozen=True)
class Digits:
    """Images [b, 1, 8, 8] float32, centred and of unit scale, and labels [b] of the training and the test set."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int, device: torch.device | str = "cpu") -> Digits:
    """Load the digits, split at random by `seed` into 1437 training and 360 test images."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('the demo needs scikit-learn for its images: pip install "lsfast[demo]"') from error
    raw = datasets.load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None]
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    mean, scale = images[train].mean(), images[train].std()
    images = (images - mean) / scale
    return Digits(images[train].to(device), labels[train].to(device), images[test].to(device), labels[test].to(device))
