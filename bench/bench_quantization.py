"""The quantization room: fake-quantization against a copy of the tensor, and to codes and back against torchao."""

from __future__ import annotations

import pytest
import torch
from peers import plain_fp8, plain_nvfp4, torchao_round_trip

import lsfast
from lsfast.quantization import reference

SCHEMES = [
    "nvfp4",
    "nvfp4_2d",
    "mxfp4",
    "mxfp6_e3m2",
    "mxfp6_e2m3",
    "mxfp8_e4m3",
    "mxfp8_e5m2",
    "mxint8",
    "fp8_e4m3",
    "fp8_e4m3_row",
    "fp8_e4m3_1x128",
    "fp8_e4m3_128x128",
    "int8",
    "int4_g32",
    "nf4_g64",
    "bf16",
    "e4m3",
    "e5m2",
    "e8m3",
]
CASES = [(name, {}) for name in SCHEMES] + [
    ("nvfp4", {"rounding": "stochastic"}),
    ("mxfp4", {"rounding": "stochastic"}),
    ("e4m3", {"rounding": "stochastic"}),
    ("nvfp4", {"hadamard": 16}),
]


def matrix(device: torch.device) -> torch.Tensor:
    """Gaussian numbers, 2^24 of them on a CPU and 2^28 (1 GiB) on a GPU, in rows of 4096."""
    count = 2**24 if device.type == "cpu" else 2**28
    return torch.randn(count, generator=torch.Generator().manual_seed(0)).view(-1, 4096).to(device)


def described(name: str, changes: dict[str, object]) -> str:
    return " ".join([name, *(f"{key} {value}" if key == "hadamard" else str(value) for key, value in changes.items())])


def check(scheme: lsfast.QuantScheme, device: torch.device) -> None:
    part = torch.randn(128, 256, generator=torch.Generator().manual_seed(1))
    words = None
    if scheme.rounding == "stochastic":
        from lsfast import _numerics

        words = _numerics.philox(torch.arange(part.numel()).numpy().astype("uint64"), 0).reshape(part.shape)
    result = lsfast.fake_quantize(part.to(device), scheme, seed=0).cpu().numpy()
    assert (result == reference.fake_quantize(part.numpy(), scheme, words=words)).all()


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_fake_quantize(compare, device, name, changes):
    scheme = lsfast.scheme(name).replace(**changes)
    check(scheme, device)
    x = matrix(device)
    out = torch.empty_like(x)
    compare(
        f"fake_quantize {described(name, changes)}, out=",
        f"2^{x.numel().bit_length() - 1} float32",
        lambda: lsfast.fake_quantize(x, scheme, seed=0, out=out),
        lambda: out.copy_(x),
        "y.copy_(x)",
    )


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "e4m3"])
def test_statistics(compare, device, name):
    x = matrix(device)
    out = torch.empty_like(x)
    y, statistics = lsfast.fake_quantize(x, name, statistics=True)
    assert float(statistics.squared_error) == pytest.approx(float((y - x).double().square().sum()), rel=1e-9)
    compare(
        f"fake_quantize {name}, statistics=True",
        f"2^{x.numel().bit_length() - 1} float32",
        lambda: lsfast.fake_quantize(x, name, out=out, statistics=True),
        lambda: lsfast.fake_quantize(x, name, out=out),
        "without statistics",
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_codes_and_back_against_torchao(compare, device, name, compiled):
    x = matrix(device)[:1024]
    scheme = lsfast.scheme(name).replace(compat="torchao")
    theirs = torchao_round_trip(name)
    assert torch.equal(lsfast.quantize(x, scheme).dequantize(), theirs(x))
    if compiled:
        theirs = torch.compile(theirs)
    compare(
        f"{name} to codes and back",
        "2^22 float32",
        lambda: lsfast.quantize(x, scheme).dequantize(),
        lambda: theirs(x),
        "torchao, torch.compile" if compiled else "torchao",
        rounds=7,
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "plain"), [("fp8_e4m3", plain_fp8), ("nvfp4", plain_nvfp4)])
def test_fake_quantize_against_plain_torch(compare, device, name, plain, compiled):
    x = matrix(device)[:1024]
    assert torch.equal(lsfast.fake_quantize(x, name), plain(x))
    theirs = torch.compile(plain) if compiled else plain
    compare(
        f"fake_quantize {name}",
        "2^22 float32",
        lambda: lsfast.fake_quantize(x, name),
        lambda: theirs(x),
        "plain torch, torch.compile" if compiled else "plain torch",
        rounds=7,
    )
