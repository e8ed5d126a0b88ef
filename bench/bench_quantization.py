"""Fake quantization against copying the tensor: the bytes it must move over the speed at which they can be moved."""

import numpy as np
import pytest
import torch

import lsfast
from lsfast import _numerics
from lsfast.formats import element_format
from lsfast.quantization import reference

# The bytes are those of a copy, and one more read where the scheme needs the largest magnitude (the first two).
CASES = ["nvfp4", "fp8_e4m3", "e4m3", "e8m3"]


def expected(x: np.ndarray, name: str, rounding: str) -> np.ndarray:
    """Return what the reference of the room makes of x, with the draws of seed 0."""
    words = _numerics.philox(np.arange(x.size, dtype=np.uint64), 0) if rounding == "stochastic" else None
    element = element_format(lsfast.scheme(name).element)
    if name == "nvfp4":
        return reference.fake_quantize_nvfp4(x, words=words)
    if words is None:
        scaled = name.startswith("fp8")
        return reference.fake_quantize_tensor_scaled(x, element) if scaled else reference.round_to_element(x, element)
    scale = np.float32(element.largest) / np.abs(x).max() if name.startswith("fp8") else np.float32(1.0)
    codes = reference.stochastic_element(x * scale, element, words, random_bits=32)
    return codes.astype(np.float32) * (np.float32(1.0) / scale)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", CASES)
def test_fake_quantize(compare, device, name, rounding):
    count = 2**24 if device.type == "cpu" else 2**28
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(device)
    out = torch.empty_like(x)
    part = x[:4096]
    result = lsfast.fake_quantize(part, scheme, seed=0).cpu().numpy()
    assert (result == expected(part.cpu().numpy(), name, rounding)).all()
    compare(
        f"fake_quantize {name} {rounding}, out=",
        f"2^{count.bit_length() - 1} float32",
        lambda: lsfast.fake_quantize(x, scheme, seed=0, out=out),
        lambda: out.copy_(x),
        "y.copy_(x)",
    )
