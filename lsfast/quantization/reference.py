"""The arithmetic of the quantization room written out in NumPy: slow, short, and the oracle of the kernels' tests.

Nothing here is shared with the kernels: exponents come from ``frexp``, ties from ``rint``, blocks from a loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsfast.formats import ElementFormat, element_format

Floats = NDArray[Any]


def round_to_element(x: Floats, element: ElementFormat) -> Floats:
    r"""Round to nearest even in an element format, saturating: :math:`e = \max(\lfloor\log_2|x|\rfloor, 1 - bias)`."""
    exact = np.asarray(x, dtype=np.float64)
    _, exponent = np.frexp(np.where(np.isfinite(exact), exact, 1.0))
    step = np.ldexp(1.0, np.maximum(exponent - 1, 1 - element.bias) - element.mantissa_bits)
    with np.errstate(invalid="ignore"):
        rounded = np.where(np.isfinite(exact), np.rint(exact / step) * step, exact)
    return np.copysign(np.minimum(np.abs(rounded), element.largest), exact)


def stochastic_element(x: Floats, element: ElementFormat, words: NDArray[np.uint32], random_bits: int) -> Floats:
    r"""Round up iff :math:`\lfloor f 2^b \rfloor + \lfloor w / 2^{32 - b} \rfloor \ge 2^b`, f the step's fraction."""
    exact = np.abs(np.asarray(x, dtype=np.float64))
    _, exponent = np.frexp(exact)
    step = np.ldexp(1.0, np.maximum(exponent - 1, 1 - element.bias) - element.mantissa_bits)
    below = np.floor(exact / step)
    fraction = np.floor((exact / step - below) * 2.0**random_bits).astype(np.uint64)
    up = fraction + (words.astype(np.uint64) >> np.uint64(32 - random_bits)) >= 2**random_bits
    result: Floats = np.copysign(np.minimum((below + up) * step, element.largest), x)
    return result


def fake_quantize_tensor_scaled(x: Floats, element: ElementFormat) -> Floats:
    """Per tensor: scale = largest/amax in float32, 1 for an amax of 0, Inf or NaN; value = round(x scale) (1/scale)."""
    x = np.asarray(x, dtype=np.float32)
    amax = np.max(np.abs(x))
    scale = np.float32(1.0)
    if amax != 0 and np.isfinite(amax):
        with np.errstate(over="ignore"):
            scale = min(np.float32(element.largest) / amax, np.finfo(np.float32).max)
    return round_to_element(x * scale, element).astype(np.float32) * (np.float32(1.0) / scale)


def fake_quantize_nvfp4(x: Floats, axis: int = -1, words: NDArray[np.uint32] | None = None) -> Floats:
    """NVFP4 as Transformer Engine computes it, every operation in float32, block by block.

    With `words`, in the shape of x, the elements are rounded stochastically with 32 random bits.
    """
    one, f32 = np.float32(1.0), np.float32
    largest = np.finfo(np.float32).max
    moved = np.moveaxis(np.asarray(x, dtype=np.float32), axis, -1)
    draws = None if words is None else np.moveaxis(words, axis, -1)
    finite = np.abs(moved[np.isfinite(moved)])
    amax = finite.max() if finite.size else f32(0.0)
    e2m1, e4m3 = element_format("e2m1"), element_format("e4m3")
    result = np.empty_like(moved)
    with np.errstate(all="ignore"):
        encode = min(f32(2688.0) / amax, largest) if amax > 0 else one
        encode = one if encode == 0 else encode
        decode = one / encode
        for line in np.ndindex(moved.shape[:-1]):
            for first in range(0, moved.shape[-1], 16):
                at = (*line, slice(first, first + 16))
                block = moved[at]
                if not np.isfinite(block).all():
                    result[at] = np.nan
                    continue
                scale = f32(round_to_element(np.abs(block).max() * (encode * (one / f32(6.0))), e4m3))
                inverse = min(one / (scale * decode), largest)
                scaled = np.clip(block * inverse, f32(-6.0), f32(6.0))
                codes = (
                    round_to_element(scaled, e2m1)
                    if draws is None
                    else stochastic_element(scaled, e2m1, draws[at], random_bits=32)
                )
                result[at] = codes.astype(np.float32) * (scale * amax * (one / f32(2688.0)))
    return np.moveaxis(result, -1, axis)
