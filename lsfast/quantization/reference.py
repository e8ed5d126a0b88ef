r"""The arithmetic of the quantization room written out in NumPy: short, slow, and the oracle of the kernels' tests.

Nothing here is shared with the kernels: exponents come from ``frexp``, ties from ``rint``, a block is the list of
elements that bear its number. Every scheme is :math:`value = round(x \cdot multiplier) \cdot factor`; the operations
on scales are in float32 and in the order of the implementation they follow, the rounding of one number is exact.

Sources: OCP 8-bit Floating Point 1.0; OCP Microscaling Formats 1.0; NVIDIA Transformer Engine (FP8, NVFP4, `rceil`);
torchao 0.18 and NVIDIA ModelOpt 0.46 (``compat``); Dettmers et al. 2023, arXiv:2305.14314 (NF4); Salmon et al. 2011
(Philox).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsfast.formats import Block, ElementFormat, QuantScheme, element_format
from lsfast.formats import scheme as scheme_of

Floats = NDArray[Any]
Words = NDArray[np.uint32]

_float32 = np.float32
_one = np.float32(1.0)
_most = np.finfo(np.float32).max
_normal_float_text = (
    "-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1"
)
_normal_floats = np.array(_normal_float_text.split(), dtype=np.float32)
_fixed_signs = np.array([1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1], dtype=np.float32)


@np.errstate(all="ignore")
def fake_quantize(
    x: Floats,
    scheme: str | QuantScheme,
    axis: int = -1,
    words: Words | None = None,
    amax: float | None = None,
) -> NDArray[np.float32]:
    r"""Round an array to the numbers a scheme can hold: :math:`round(x \cdot multiplier) \cdot factor`, in float32.

    Parameters
    ----------
    x
        Any shape; float32, or what converts to it. An unscaled scheme rounds float64 itself.
    scheme
        A name or a `QuantScheme`.
    axis
        The axis that blocks and the Hadamard transform run along; a 2-D block covers it and the one before it.
    words
        In the shape of x: the 32-bit draws of stochastic rounding, see `philox`.
    amax
        In place of the largest magnitude of the array, for a scheme that has a scale for the tensor.

    Examples
    --------
    >>> import lsfast.quantization.reference as reference
    >>> reference.fake_quantize([0.3, 2.4, 7.0], "e2m1").tolist()
    [0.5, 2.0, 6.0]
    """
    chosen = scheme_of(scheme)
    element = element_format(chosen.element)
    scaled, factor = scale(x, chosen, axis, amax)
    rounded = round_to_element(scaled, element, chosen.rounding, chosen.overflow, words, chosen.random_bits)
    result: NDArray[np.float32] = rounded.astype(np.float32) * factor
    return result


@np.errstate(all="ignore")
def scale(
    x: Floats, scheme: QuantScheme, axis: int = -1, amax: float | None = None
) -> tuple[Floats, NDArray[np.float32]]:
    """Return what is rounded, and what the rounded is multiplied by, each in the shape of x."""
    if scheme.block is None and not scheme.hadamard:
        return np.asarray(x), np.ones(np.shape(x), np.float32)
    x = np.asarray(x, dtype=np.float32)
    if scheme.hadamard:
        x = hadamard(x, hadamard_signs(scheme.hadamard, scheme.hadamard_seed), axis)
    if scheme.block is None:
        return x, np.ones_like(x)
    element = element_format(scheme.element)
    number = block_numbers(x.shape, scheme.block, axis)
    largest = np.zeros(x.size, np.float32)
    np.maximum.at(largest, number, np.abs(x))  # NaN wins
    if scheme.block == "tensor" and amax is not None:
        largest = np.full(1, amax, np.float32)
    if scheme.scale == "e8m0":
        multiplier, factor = e8m0_scale(largest, element, scheme.scale_rule, scheme.compat)
    elif scheme.scale == "e4m3":
        finite = np.abs(x[np.isfinite(x)])
        own = finite.max(initial=0.0) if amax is None else _float32(amax)
        multiplier, factor = e4m3_scale(largest, own if scheme.tensor_scale else None, scheme.compat)
    elif scheme.element == "nf4":
        multiplier, factor = normal_float_scale(largest)
    else:
        multiplier, factor = float_scale(largest, element, scheme.scale_rule == "power_of_two")
    scaled = x / multiplier[number] if scheme.compat == "modelopt" else x * multiplier[number]
    return scaled, factor[number]


def block_numbers(shape: tuple[int, ...], block: Block, axis: int) -> NDArray[np.intp]:
    """Return for every element the number of the block it lies in: two share a scale iff they share a number."""
    coordinates = list(np.indices(shape))
    if block == "tensor":
        coordinates = [0 * coordinate for coordinate in coordinates]
    elif block == "row":
        coordinates[axis] = 0 * coordinates[axis]
    elif isinstance(block, tuple):
        if axis in (0, -len(shape)) or not shape:
            raise ValueError(f"block_numbers: a 2-D block needs an axis before axis {axis}, got shape {list(shape)}")
        coordinates[axis - 1] //= block[0]
        coordinates[axis] //= block[1]
    elif isinstance(block, int) and shape:
        coordinates[axis] //= block
    return np.asarray(np.ravel_multi_index(coordinates, shape) if shape else 0)


def float_scale(amax: Floats, element: ElementFormat, power_of_two: bool) -> tuple[Floats, Floats]:
    """Multiply by largest/amax before, by its reciprocal after; an amax of 0, Inf or NaN gives 1.

    A full integer range is filled up to 127.5 (or 7.5), halfway to the number that only negative ones have.
    """
    largest = _float32(element.largest + (0.5 if element.special == "full_integer" else 0.0))
    multiplier = np.where((amax > 0) & np.isfinite(amax), np.minimum(largest / amax, _most), _one)
    if power_of_two:
        multiplier = np.ldexp(_one, np.frexp(multiplier)[1] - 1)
    return multiplier, _one / multiplier


def normal_float_scale(amax: Floats) -> tuple[Floats, Floats]:
    """Multiply by 1/amax before, by amax after; an amax of 0, Inf or NaN gives 1."""
    usual = (amax > 0) & np.isfinite(amax)
    return np.where(usual, np.minimum(_one / amax, _most), _one), np.where(usual, amax, _one)


def e8m0_exponent(amax: Floats, element: ElementFormat, rule: str | None) -> NDArray[np.intp]:
    """Return the exponent of an MX block's scale before it is clamped, for an amax that is finite and above 0."""
    mantissa, exponent = np.frexp(amax)  # amax = mantissa 2^exponent, mantissa in [1/2, 1)
    top_mantissa, top_exponent = np.frexp(element.largest)
    if rule == "rceil":  # the smallest power of two >= amax/largest
        return np.asarray(exponent - top_exponent + (mantissa > top_mantissa), np.intp)
    above = exponent - top_exponent  # floor(log2 amax) - floor(log2 largest)
    if rule == "ceil":
        return np.asarray(above + (mantissa > 0.5), np.intp)
    if rule == "even":  # amax rounded half up to the element's significant bits: may reach the next power of two
        significant = element.mantissa_bits + (1 if element.is_float else 0)
        rounded = np.floor(np.ldexp(mantissa.astype(np.float64), significant) + 0.5)
        return np.asarray(above + (rounded == 2.0**significant), np.intp)
    return np.asarray(above, np.intp)


def e8m0_scale(amax: Floats, element: ElementFormat, rule: str | None, compat: str | None) -> tuple[Floats, Floats]:
    """Return a power of two from 2^-127 to 2^127, its inverse first; NaN for a block with NaN or Inf.

    torchao multiplies by what its scale byte 0 does not mean: by 1 under `rceil`, else by 2^126.
    """
    usual = (amax > 0) & np.isfinite(amax)
    exponent = e8m0_exponent(np.where(usual, amax, _one), element, rule)
    byte = np.where(usual, np.clip(exponent + 127, 0, 254), 0)
    multiplier = np.ldexp(_one, 127 - byte)
    if compat == "torchao":
        multiplier = np.where(byte == 0, _float32(1.0 if rule == "rceil" else 2.0**126), multiplier)
    return multiplier, np.where(np.isfinite(amax), np.ldexp(_one, byte - 127), _float32(np.nan))


def e4m3_scale(amax: Floats, tensor_amax: np.float32 | None, compat: str | None) -> tuple[Floats, Floats]:
    """NVFP4: an E4M3 scale s per block, in units of what maps the tensor's amax to 448 * 6 = 2688, if it has one.

    With ``compat="modelopt"`` the first is a divisor. A block with NaN or Inf is multiplied by NaN after.
    """
    e4m3, present = element_format("e4m3"), tensor_amax is not None
    whole = _float32(0.0) if tensor_amax is None else _float32(tensor_amax)
    if compat is None:  # Transformer Engine
        encode = min(_float32(2688.0) / whole, _most) if whole > 0 else _one
        encode = _one if encode == 0 else encode
        decode = _one / encode
        s = round_to_element(amax * (encode * (_one / _float32(6.0))), e4m3).astype(np.float32)
        multiplier = np.minimum(_one / (s * decode), _most)
        factor = s * whole * (_one / _float32(2688.0)) if present else s
    else:
        unit = whole / _float32(2688.0) if whole > 0 else _one
        if compat == "torchao":
            wanted = np.maximum(amax / _float32(6.0) / unit, _float32(2.0**-6))
        else:  # ModelOpt: a scale of 0 becomes 1
            wanted = amax / (_float32(6.0) * unit)
            wanted = np.maximum(np.where(wanted == 0, _one, wanted), _float32(2.0**-9))
        s = round_to_element(wanted, e4m3).astype(np.float32)
        multiplier = _one / unit / s if compat == "torchao" else s * unit
        factor = s * (unit if whole > 0 or not present else whole)
    return multiplier, np.where(np.isfinite(amax), factor, _float32(np.nan))


def round_to_element(
    x: Floats,
    element: ElementFormat,
    rounding: str = "nearest",
    overflow: str = "saturate",
    words: Words | None = None,
    random_bits: int = 32,
) -> Floats:
    r"""Round to a multiple of :math:`2^{e - y}`, :math:`e = \max(\lfloor\log_2|x|\rfloor, 1 - bias)`; integers to 1.

    Exact in float64. Nearest goes to even; stochastic goes up in magnitude iff
    :math:`\lfloor f 2^b \rfloor + \lfloor w / 2^{32 - b} \rfloor \ge 2^b`, f the fraction of the step, w the word.
    """
    exact = np.asarray(x, dtype=np.float64)
    if element.special == "table":
        return _round_to_normal_float(np.asarray(x, dtype=np.float32), rounding, words, random_bits)
    magnitude = np.where(np.isfinite(exact), np.abs(exact), 0.0)
    step: Any = element.smallest_subnormal
    if element.is_float:
        step = np.ldexp(1.0, np.maximum(np.frexp(magnitude)[1] - 1, 1 - element.bias) - element.mantissa_bits)
    below = np.floor(magnitude / step)
    if rounding == "nearest":
        rounded = np.rint(magnitude / step) * step
    elif rounding == "toward_zero":
        rounded = below * step
    else:
        rounded = (below + _goes_up(magnitude / step - below, words, random_bits)) * step
    rounded = np.where(np.isfinite(exact), rounded, np.abs(exact))
    largest = element.largest + (element.special == "full_integer") * (exact < 0)
    beyond: Any = {"saturate": largest, "inf": np.inf, "nan": np.nan}[overflow]
    if rounding == "toward_zero":  # what is finite is never rounded to what lies beyond the largest
        beyond = np.where(np.isfinite(exact), largest, beyond)
    signed = np.copysign(np.where(rounded > largest, beyond, rounded), exact)
    return signed if element.is_float else signed + 0.0  # integers have no -0


def _round_to_normal_float(x: Floats, rounding: str, words: Words | None, random_bits: int) -> Floats:
    """Round to a number of the table; halfway goes to the lower one, as in bitsandbytes."""
    inside = np.clip(x, -_one, _one)
    code = np.clip(np.searchsorted(_normal_floats, inside, side="right") - 1, 0, 14)
    below, above = _normal_floats[code], _normal_floats[code + 1]
    if rounding == "nearest":
        up = inside > (below + above) * _float32(0.5)
    elif rounding == "toward_zero":
        up = (inside == 1) | ((inside < 0) & (inside > below))
    else:
        fraction = np.minimum((inside - below) / (above - below), _float32(0.99999994))
        up = (inside == 1) | _goes_up(fraction, words, random_bits)
    return np.where(np.isnan(x), x, np.where(up, above, below))


def _goes_up(fraction: Floats, words: Words | None, random_bits: int) -> NDArray[np.bool_]:
    if words is None:
        raise ValueError("round_to_element: words must be given for stochastic rounding, got None")
    leading = np.floor(np.nan_to_num(fraction.astype(np.float64)) * 2.0**random_bits).astype(np.uint64)
    return leading + (np.asarray(words).astype(np.uint64) >> np.uint64(32 - random_bits)) >= np.uint64(2**random_bits)


def hadamard_signs(size: int, seed: int | None = None) -> NDArray[np.float32]:
    """Return 16 fixed signs, repeated; or from a seed: the top bit of word i of its stream 0, set for -1."""
    if seed is None:
        return np.resize(_fixed_signs, size)
    return np.where(philox(np.arange(size), seed) >> np.uint32(31), -_one, _one)


def hadamard(x: Floats, signs: Floats, axis: int = -1, inverse: bool = False) -> NDArray[np.float32]:
    """Return (x * signs) H / sqrt(size) over consecutive elements, H in Sylvester order: stages 1, 2, 4 ... size/2."""
    size = len(signs)
    moved = np.moveaxis(np.asarray(x, dtype=np.float32), axis, -1)
    groups = moved.reshape(-1, size) * (_one if inverse else signs)
    stage = 1
    while stage < size:
        pairs = groups.reshape(-1, size // (2 * stage), 2, stage)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        groups = np.stack([a + b, a - b], axis=2).reshape(-1, size)
        stage *= 2
    groups = groups * _float32(1.0 / np.sqrt(size))
    groups = groups * signs if inverse else groups
    return np.moveaxis(groups.reshape(moved.shape), -1, axis)


def philox(index: NDArray[Any], seed: int, stream: int = 0) -> Words:
    """Return word i & 3 of Philox4x32-10 with the counter (i >> 2, stream), 64 bits each, and the seed as its key."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    wide = np.asarray(index, dtype=np.uint64)
    counter: list[NDArray[Any]] = [wide >> np.uint64(2) & low, wide >> np.uint64(34)]
    counter += [np.full_like(wide, stream & 0xFFFFFFFF), np.full_like(wide, stream >> 32)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [
            second >> shift ^ counter[1] ^ np.uint64(key[0]),
            second & low,
            first >> shift ^ counter[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    words: Words = np.choose((wide & np.uint64(3)).astype(np.intp), counter).astype(np.uint32)
    return words
