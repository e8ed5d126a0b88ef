"""How the factors of float32 matrix products and convolutions are rounded: ``ieee``, ``tf32`` or ``bf16``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = ("ieee", "tf32", "bf16")


@contextmanager
def matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Set how torch rounds the factors of float32 products on a device; what was set before comes back.

    Parameters
    ----------
    precision
        ``"ieee"``: not at all; ``"tf32"``: to 10 bits of mantissa (where the device has it); ``"bf16"``: to 7, and on
        CUDA, which has no such products, as ``"tf32"``. Sums are in float32 always. Other dtypes are not touched.
    """
    if device.type == "cuda":
        # Convolutions and recurrent networks together: torch refuses to read the older switch where they differ.
        cudnn: Any = torch.backends.cudnn
        switches = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        precision = "tf32" if precision == "bf16" else precision
    else:
        mkldnn: Any = torch.backends.mkldnn
        switches = [mkldnn.matmul, mkldnn.conv]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
