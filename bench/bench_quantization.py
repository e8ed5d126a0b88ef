"""Fake quantization against copying the tensor: the bytes it must move over the speed at which they can be moved."""

import pytest
import torch

import lsfast
from lsfast.quantization import reference

# The bytes are those of a copy, and one more read where the scheme needs the largest magnitude (the first two).
CASES = ["nvfp4", "fp8_e4m3", "e4m3", "e8m3"]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", CASES)
def test_fake_quantize(compare, device, name, rounding):
    count = 2**24 if device.type == "cpu" else 2**28
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(device)
    out = torch.empty_like(x)
    if name == "nvfp4" and rounding == "nearest":
        lsfast.fake_quantize(x[:4096], scheme, out=out[:4096])
        assert (out[:4096].cpu().numpy() == reference.fake_quantize_nvfp4(x[:4096].cpu().numpy())).all()
    compare(
        f"fake_quantize {name} {rounding}, out=",
        f"2^{count.bit_length() - 1} float32",
        lambda: lsfast.fake_quantize(x, scheme, seed=0, out=out),
        lambda: out.copy_(x),
        "y.copy_(x)",
    )
