"""Tensors made to break a quantizer, every scheme it has, and the comparison of bits, for the tests of this folder."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import lsfast
from lsfast.formats import ROUNDINGS, SCALE_RULES, QuantScheme
from lsfast.quantization import reference

LARGEST = np.finfo(np.float32).max


def hard_tensor(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Gaussian values over a huge dynamic range, with outliers, denormals, zero blocks, signed zeros; ties; 3e38.

    The seed chooses one of four kinds: a scale for each line, a scale for each number, few bits (which ties), 3e38.
    """
    rng = np.random.default_rng(seed)
    kind = seed % 4
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-12, 8, size=(*shape[:-1], 1))
    if kind == 1:
        x *= 10.0 ** rng.uniform(-30, 28, size=shape)
    if kind == 2:
        line = np.abs(x).max(-1, keepdims=True)
        x = np.rint(x * 16 / line) * 2.0 ** rng.integers(-100, 100)
    x[rng.random(shape) < 0.02] *= 1e6
    x[rng.random(shape) < 0.05] = 0.0
    x[rng.random(shape) < 0.02] = -0.0
    x[rng.random(shape) < 0.02] = 1e-42
    if kind == 3:
        x[rng.random(shape) < 0.01] = -3e38
    x[..., : min(16, shape[-1])] *= rng.integers(0, 2)
    return np.clip(x, -LARGEST, LARGEST).astype(np.float32)


def every_bfloat16_and_its_neighbours() -> np.ndarray:
    """Finite bfloat16 values, the midpoints between them, and the float32 on either side of each."""
    top = (np.arange(65536, dtype=np.uint32)) << 16
    patterns = np.concatenate([top, top + 1, top + 0xFFFF, top + 0x7FFF, top + 0x8000, top + 0x8001])
    values = patterns.astype(np.uint32).view(np.float32)
    return values[np.isfinite(values)]


def assert_same_bits(result: torch.Tensor | np.ndarray, expected: np.ndarray, *context: object) -> None:
    """Equal bit for bit, any NaN being equal to any other; or name the first place where not."""
    values = np.asarray(result)
    assert values.dtype == expected.dtype == np.float32
    assert values.shape == expected.shape
    same = (values.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(values) & np.isnan(expected))
    if not same.all():
        first = tuple(np.argwhere(~same)[0])
        pytest.fail(
            f"{(~same).sum()} of {same.size} differ, first at {first}: got {values[first]!r}, "
            f"expected {expected[first]!r} {context}"
        )


def words_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The draws of a tensor of that shape."""
    return reference.philox(np.arange(np.prod(shape, dtype=np.int64)), seed).reshape(shape)


def against_reference(x: np.ndarray, scheme: QuantScheme, axis: int = -1, seed: int = 5) -> None:
    """The kernel's result is the reference's."""
    result = lsfast.fake_quantize(torch.from_numpy(x), scheme, axis=axis, seed=seed)
    expected = reference.fake_quantize(x, scheme, axis, words_of(x.shape, seed))
    assert_same_bits(result, expected, scheme, x.shape, axis)


def label(scheme: QuantScheme) -> str:
    parts = [scheme.name, scheme.scale_rule, scheme.compat, scheme.rounding[:2]]
    parts.append("alone" if scheme.scale == "e4m3" and not scheme.tensor_scale else None)
    return "-".join(str(part) for part in parts if part)


def _families() -> Iterator[QuantScheme]:
    """Each named scheme; and blocks, elements and formats that no name has."""
    yield from map(lsfast.scheme, lsfast.schemes())
    yield from map(lsfast.scheme, ("e8m3", "e7m7", "e5m10", "e3m4", "e2m0", "e8m23"))
    nvfp4, mxfp4, int8 = map(lsfast.scheme, ("nvfp4", "mxfp4", "int8"))
    yield nvfp4.replace(tensor_scale=False)
    yield nvfp4.replace(name="nvfp4_block32", block=32)
    yield mxfp4.replace(name="mx_e4m2_2d", element="e4m2", block=(32, 32))
    yield mxfp4.replace(name="mx_e3m4_block16", element="e3m4", block=16)
    yield mxfp4.replace(name="mx_int8", element="int8")
    yield mxfp4.replace(name="mx_int4_full", element="int4_full", block=64)
    yield int8.replace(name="int8_full", element="int8_full")
    yield int8.replace(name="int4_full_g32", element="int4_full", block=32)
    yield int8.replace(name="int8_tensor", block="tensor")
    yield int8.replace(name="e2m1_2d", element="e2m1", block=(16, 16))
    yield lsfast.scheme("nf4_g64").replace(name="nf4_row", block="row")
    yield lsfast.scheme("nf4_g64").replace(name="nf4_2d", block=(32, 32))


def every_variant() -> list[QuantScheme]:
    """Each family with each scale rule, each compat and each rounding that it may have."""
    variants = []
    for family in _families():
        rules = SCALE_RULES[family.scale] if family.scale else (None,)
        rules = (family.scale_rule,) if family.element == "nf4" else rules
        compats = {"e8m0": (None, "torchao"), "e4m3": (None, "torchao", "modelopt")}.get(family.scale, (None,))
        variants += [
            family.replace(scale_rule=rule, compat=compat, rounding=rounding)
            for rule in rules
            for compat in compats
            for rounding in ROUNDINGS
        ]
    return variants
