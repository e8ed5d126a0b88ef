"""Number formats and quantization schemes: descriptions that every room may name, no arithmetic.

An element format is written ``eXmY`` (X exponent and Y mantissa bits) or by a name; a scheme says which element, how
numbers are scaled before rounding, and how they are rounded. Sources: OCP 8-bit Floating Point 1.0 (E4M3, E5M2); OCP
Microscaling Formats 1.0 (E3M2, E2M3, E2M1); NVIDIA Transformer Engine (NVFP4).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Any

from lsfast import checks

ROUNDINGS = ("nearest", "stochastic", "toward_zero")
OVERFLOWS = ("saturate", "inf", "nan")
SPECIALS = ("finite", "nan_only", "ieee")


@dataclass(frozen=True)
class ElementFormat:
    """A floating-point format of one sign bit, an exponent and a mantissa, with gradual underflow.

    Attributes
    ----------
    exponent_bits, mantissa_bits
        2 to 8, and 0 to 23.
    special
        What the top of the code space means: ``"finite"`` all codes are numbers, ``"nan_only"`` the all-ones code is
        NaN (E4M3), ``"ieee"`` the top exponent holds Inf and NaN.
    """

    exponent_bits: int
    mantissa_bits: int
    special: str

    @property
    def bits(self) -> int:
        """Bits of a code, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What the exponent field exceeds the exponent by."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def largest(self) -> float:
        """The largest number."""
        exponent = 2**self.exponent_bits - (2 if self.special == "ieee" else 1) - self.bias
        ones = 2**self.mantissa_bits - 1 - (1 if self.special == "nan_only" else 0)
        return float((1.0 + ones * 2.0**-self.mantissa_bits) * 2.0**exponent)

    @property
    def smallest_normal(self) -> float:
        """The smallest number with a full mantissa."""
        return float(2.0 ** (1 - self.bias))

    @property
    def smallest_subnormal(self) -> float:
        """The smallest number above zero."""
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))


_NAMED_ELEMENTS = {
    "e4m3": ElementFormat(4, 3, "nan_only"),
    "bf16": ElementFormat(8, 7, "ieee"),
    "fp16": ElementFormat(5, 10, "ieee"),
    "fp32": ElementFormat(8, 23, "ieee"),
}


def element_format(name: str) -> ElementFormat:
    """Return the element format of a name: ``eXmY``, ``bf16``, ``fp16`` or ``fp32``.

    ``e4m3`` is the one with 448 and NaN; any other has Inf and NaN from five exponent bits on, else finite codes only.

    Raises
    ------
    ValueError
        If the name is none of these, or X lies outside 2..8 or Y outside 0..23; for ``e8m0``, which only scales have.

    Examples
    --------
    >>> lsfast.formats.element_format("e2m1").largest
    6.0
    """
    if name in _NAMED_ELEMENTS:
        return _NAMED_ELEMENTS[name]
    match = re.fullmatch(r"e(\d+)m(\d+)", name)
    if not match:
        raise ValueError(f"element_format: name must be eXmY, bf16, fp16 or fp32, got {name!r}")
    exponent_bits, mantissa_bits = int(match[1]), int(match[2])
    if not (2 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23):
        raise ValueError(f"element_format: eXmY needs X in 2..8 and Y in 0..23, got {name!r}")
    if name == "e8m0":
        raise ValueError("element_format: e8m0 holds scales only (no sign, no zero), got it as an element")
    return ElementFormat(exponent_bits, mantissa_bits, "ieee" if exponent_bits >= 5 else "finite")


@dataclass(frozen=True)
class QuantScheme:
    """How a tensor is quantized: which element, which scales, which rounding.

    Attributes
    ----------
    name
        The scheme's name.
    element
        Name of the element format, see `element_format`.
    block
        What shares a scale: None (no scale), ``"tensor"``, or a number of consecutive elements along the axis.
    scale
        Format of the block's scale: None, ``"fp32"`` or ``"e4m3"``.
    tensor_scale
        Whether the block scales are themselves scaled by one float32 number for the tensor.
    rounding
        ``"nearest"`` (ties to even), ``"stochastic"`` or ``"toward_zero"``.
    random_bits
        Bits of a draw in stochastic rounding, 1 to 32.
    overflow
        What becomes of a number that rounds beyond the largest: ``"saturate"``, ``"inf"`` or ``"nan"``.
    """

    name: str
    element: str
    block: str | int | None = None
    scale: str | None = None
    tensor_scale: bool = False
    rounding: str = "nearest"
    random_bits: int = 32
    overflow: str = "saturate"

    def __post_init__(self) -> None:
        element_format(self.element)
        checks.one_of("scheme", "rounding", self.rounding, ROUNDINGS)
        checks.one_of("scheme", "overflow", self.overflow, OVERFLOWS)
        checks.positive_integer("scheme", "random_bits", self.random_bits)
        if self.random_bits > 32:
            raise ValueError(f"scheme: random_bits must be at most 32, got {self.random_bits}")
        scaling = (self.block, self.scale, self.tensor_scale)
        if scaling not in ((None, None, False), ("tensor", "fp32", False), (16, "e4m3", True)):
            raise ValueError(
                "scheme: (block, scale, tensor_scale) must be (None, None, False), ('tensor', 'fp32', False) or "
                f"(16, 'e4m3', True), got {scaling}"
            )
        if self.block is not None and self.overflow != "saturate":
            raise ValueError(f"scheme: a scaled scheme saturates, got overflow={self.overflow!r}")
        if self.block == 16 and self.element != "e2m1":
            raise ValueError(f"scheme: blocks of 16 with an e4m3 scale hold e2m1, got {self.element!r}")

    def replace(self, **changes: Any) -> QuantScheme:
        """Return the scheme with some attributes changed.

        Examples
        --------
        >>> lsfast.scheme("nvfp4").replace(rounding="stochastic").rounding
        'stochastic'
        """
        unknown = set(changes) - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise TypeError(f"replace: a scheme has no attribute {sorted(unknown)[0]!r}")
        return dataclasses.replace(self, **changes)


_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantScheme("fp32", "fp32", overflow="inf"),
        QuantScheme("bf16", "bf16", overflow="inf"),
        QuantScheme("fp16", "fp16", overflow="inf"),
        QuantScheme("fp8_e4m3", "e4m3", block="tensor", scale="fp32"),
        QuantScheme("fp8_e5m2", "e5m2", block="tensor", scale="fp32"),
        QuantScheme("nvfp4", "e2m1", block=16, scale="e4m3", tensor_scale=True),
        QuantScheme("e4m3", "e4m3"),
        QuantScheme("e5m2", "e5m2"),
        QuantScheme("e3m2", "e3m2"),
        QuantScheme("e2m3", "e2m3"),
        QuantScheme("e2m1", "e2m1"),
    )
}


def schemes() -> tuple[str, ...]:
    """Return the names of the named schemes; beside them any unscaled ``eXmY`` is one."""
    return tuple(_SCHEMES)


def scheme(name: str | QuantScheme) -> QuantScheme:
    """Return the scheme of a name; a scheme is returned as it is.

    Raises
    ------
    ValueError
        If there is no such scheme; the message names the nearest.

    Examples
    --------
    >>> lsfast.scheme("nvfp4").element
    'e2m1'
    """
    if isinstance(name, QuantScheme):
        return name
    if not isinstance(name, str):
        raise TypeError(f"scheme: name must be a string or a QuantScheme, got {type(name).__name__}")
    if name in _SCHEMES:
        return _SCHEMES[name]
    if re.fullmatch(r"e\d+m\d+", name):
        return QuantScheme(name, name)
    near = difflib.get_close_matches(name, _SCHEMES, n=1, cutoff=0.0)
    raise ValueError(f"scheme: name must be one of {', '.join(_SCHEMES)} or eXmY, got {name!r}; nearest is {near[0]!r}")
