"""Number formats and quantization schemes: descriptions that every room may name, no arithmetic.

An element format is written ``eXmY`` (X exponent and Y mantissa bits) or by a name; a scheme says which element, how
numbers are scaled before rounding, and how they are rounded. `lsfast.fake_quantize` gives the formulas. Sources: OCP
8-bit Floating Point 1.0 (E4M3, E5M2); OCP Microscaling Formats 1.0 (E3M2, E2M3, E2M1, INT8, E8M0); NVIDIA Transformer
Engine (FP8 and NVFP4 scaling); Dettmers et al. 2023, arXiv:2305.14314 (NF4).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lsfast import checks

ROUNDINGS = ("nearest", "stochastic", "toward_zero")
OVERFLOWS = ("saturate", "inf", "nan")
SPECIALS = ("finite", "nan_only", "ieee", "integer", "full_integer", "fraction", "table")
COMPATS = (None, "torchao", "modelopt")
SCALES = ("fp32", "e4m3", "e8m0")
SCALE_RULES = {"fp32": ("fp32", "power_of_two"), "e8m0": ("rceil", "floor", "ceil", "even"), "e4m3": (None,)}
HADAMARD_SIZES = (0, 16, 32, 64, 128)
BLOCK_LENGTHS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class ElementFormat:
    """What one number is rounded to: a small float with gradual underflow, an integer, or an entry of a table.

    Attributes
    ----------
    exponent_bits, mantissa_bits
        2 to 8, and 0 to 23. Integers and the table have no exponent; their `mantissa_bits` are those beside the sign.
    special
        What the top of the code space means: ``"finite"`` all codes are numbers, ``"nan_only"`` the all-ones code is
        NaN (E4M3), ``"ieee"`` the top exponent holds Inf and NaN. Or what is no float: ``"integer"`` (-127 .. 127),
        ``"full_integer"`` (-128 .. 127), ``"fraction"`` (k/64, MXINT8), ``"table"`` (NF4).
    """

    exponent_bits: int
    mantissa_bits: int
    special: str

    @property
    def is_float(self) -> bool:
        """Whether it has an exponent."""
        return self.special in ("finite", "nan_only", "ieee")

    @property
    def bits(self) -> int:
        """Bits of a code, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What the exponent field exceeds the exponent by; 0 without one."""
        return (1 << (self.exponent_bits - 1)) - 1 if self.is_float else 0

    @property
    def largest(self) -> float:
        """The largest number."""
        if self.special == "table":
            return 1.0
        if not self.is_float:
            return float((2**self.mantissa_bits - 1) * self.smallest_subnormal)
        exponent = 2**self.exponent_bits - (2 if self.special == "ieee" else 1) - self.bias
        ones = 2**self.mantissa_bits - 1 - (1 if self.special == "nan_only" else 0)
        return float((1.0 + ones * 2.0**-self.mantissa_bits) * 2.0**exponent)

    @property
    def smallest_normal(self) -> float:
        """The smallest number with a full mantissa; the step of an integer."""
        return float(2.0 ** (1 - self.bias)) if self.is_float else self.smallest_subnormal

    @property
    def smallest_subnormal(self) -> float:
        """The smallest number above zero."""
        if self.special == "table":
            return 0.07958029955625534
        if not self.is_float:
            return float(2.0 ** (1 - self.mantissa_bits)) if self.special == "fraction" else 1.0
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))


_NAMED_ELEMENTS = {
    "e4m3": ElementFormat(4, 3, "nan_only"),
    "bf16": ElementFormat(8, 7, "ieee"),
    "fp16": ElementFormat(5, 10, "ieee"),
    "fp32": ElementFormat(8, 23, "ieee"),
    "int8": ElementFormat(0, 7, "integer"),
    "int4": ElementFormat(0, 3, "integer"),
    "int8_full": ElementFormat(0, 7, "full_integer"),
    "int4_full": ElementFormat(0, 3, "full_integer"),
    "mxint8": ElementFormat(0, 7, "fraction"),
    "nf4": ElementFormat(0, 3, "table"),
}


def element_format(name: str) -> ElementFormat:
    """Return the element format of a name: ``eXmY``, or ``bf16``, ``fp16``, ``fp32``, ``int8``, ``int4``, ``nf4`` ...

    ``e4m3`` is the one with 448 and NaN; any other has Inf and NaN from five exponent bits on, else finite codes only.
    ``int8`` and ``int4`` end at -127 and -7; ``int8_full`` and ``int4_full`` have -128 and -8. ``mxint8`` is k/64.

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
        known = ", ".join(_NAMED_ELEMENTS)
        raise ValueError(f"element_format: name must be eXmY or one of {known}, got {name!r}")
    exponent_bits, mantissa_bits = int(match[1]), int(match[2])
    if not (2 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23):
        raise ValueError(f"element_format: eXmY needs X in 2..8 and Y in 0..23, got {name!r}")
    if name == "e8m0":
        raise ValueError("element_format: e8m0 holds scales only (no sign, no zero), got it as an element")
    return ElementFormat(exponent_bits, mantissa_bits, "ieee" if exponent_bits >= 5 else "finite")


Block = str | int | tuple[int, int] | None


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
        What shares a scale: None (no scale), ``"tensor"``, ``"row"`` (all along the axis), a number of consecutive
        elements along the axis, or (n, n) for n along the axis and n along the one before it.
    scale
        Format of a block's scale: None, ``"fp32"``, ``"e4m3"`` or ``"e8m0"``.
    scale_rule
        How the largest magnitude of a block becomes its scale. ``"fp32"``: largest/amax; ``"power_of_two"``: that with
        its mantissa cut off. ``"e8m0"``: ``"floor"`` (OCP), ``"ceil"``, ``"even"`` or ``"rceil"``. ``"e4m3"``: None.
    tensor_scale
        Whether the block scales are themselves scaled by one float32 number for the tensor.
    rounding
        ``"nearest"`` (ties to even), ``"stochastic"`` or ``"toward_zero"``.
    random_bits
        Bits of a draw in stochastic rounding, 1 to 32.
    hadamard
        Size of the Hadamard transform in front, 16 to 128; 0 for none.
    hadamard_seed
        Seed of the transform's signs, see `lsfast.hadamard_signs`; None for the fixed ones.
    overflow
        What becomes of a number that rounds beyond the largest: ``"saturate"``, ``"inf"`` or ``"nan"``.
    nan
        ``"propagate"``, or ``"raise"`` a ValueError where x holds NaN or Inf (which waits for the device).
    compat
        Whose arithmetic: None for the default, ``"torchao"`` or ``"modelopt"`` for theirs where it differs.
    """

    name: str
    element: str
    block: Block = None
    scale: str | None = None
    scale_rule: str | None = None
    tensor_scale: bool = False
    rounding: str = "nearest"
    random_bits: int = 32
    hadamard: int = 0
    hadamard_seed: int | None = None
    overflow: str = "saturate"
    nan: str = "propagate"
    compat: str | None = None

    def __post_init__(self) -> None:
        element = element_format(self.element)
        checks.one_of("scheme", "rounding", self.rounding, ROUNDINGS)
        checks.one_of("scheme", "overflow", self.overflow, OVERFLOWS)
        checks.one_of("scheme", "nan", self.nan, ("propagate", "raise"))
        checks.positive_integer("scheme", "random_bits", self.random_bits)
        if self.random_bits > 32:
            raise ValueError(f"scheme: random_bits must be at most 32, got {self.random_bits}")
        if isinstance(self.hadamard, bool) or self.hadamard not in HADAMARD_SIZES:
            raise ValueError(f"scheme: hadamard must be 0, 16, 32, 64 or 128, got {self.hadamard!r}")
        if self.hadamard_seed is not None:
            checks.seed("scheme", self.hadamard_seed)
        if self.compat not in COMPATS:
            raise ValueError(f"scheme: compat must be None, 'torchao' or 'modelopt', got {self.compat!r}")
        _check_block(self.block)
        if self.block is None:
            self._check_unscaled(element)
        else:
            self._check_scaled(element)

    def _check_unscaled(self, element: ElementFormat) -> None:
        if self.scale is not None or self.scale_rule is not None or self.tensor_scale:
            raise ValueError(
                "scheme: without a block, (scale, scale_rule, tensor_scale) must be (None, None, False), got "
                f"{(self.scale, self.scale_rule, self.tensor_scale)}"
            )
        if not element.is_float:
            raise ValueError(f"scheme: {self.element} needs a block and a scale, got block=None")
        if self.compat is not None:
            raise ValueError(f"scheme: compat is for e4m3 and e8m0 scales, got {self.compat!r} without a scale")

    def _check_scaled(self, element: ElementFormat) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scheme: scale must be one of {', '.join(map(repr, SCALES))}, got {self.scale!r}")
        rules = SCALE_RULES[self.scale]
        if self.scale_rule not in rules:
            raise ValueError(
                f"scheme: scale_rule of an {self.scale} scale must be one of {', '.join(map(repr, rules))}, "
                f"got {self.scale_rule!r}"
            )
        if self.overflow != "saturate":
            raise ValueError(f"scheme: a scaled scheme saturates, got overflow={self.overflow!r}")
        if self.scale != "fp32" and self.block in ("tensor", "row"):
            raise ValueError(f"scheme: an {self.scale} scale needs a block of fixed size, got block={self.block!r}")
        if self.scale == "e4m3" and self.element != "e2m1":
            raise ValueError(f"scheme: blocks with an e4m3 scale hold e2m1, got {self.element!r}")
        if self.tensor_scale and self.scale != "e4m3":
            raise ValueError(f"scheme: tensor_scale goes with an e4m3 scale, got scale={self.scale!r}")
        if element.bits > 8:
            raise ValueError(f"scheme: elements of a scaled scheme have at most 8 bits, got {self.element!r}")
        if self.element == "mxint8" and self.scale != "e8m0":
            raise ValueError(f"scheme: mxint8 needs an e8m0 scale, got {self.scale!r}; int8 is for the others")
        if self.element == "nf4" and ((self.scale, self.scale_rule) != ("fp32", "fp32") or self.block == "tensor"):
            raise ValueError(
                "scheme: nf4 needs an fp32 scale, rule 'fp32', of a block or row, got "
                f"{(self.scale, self.scale_rule, self.block)}"
            )
        allowed = {"e4m3": COMPATS, "e8m0": (None, "torchao"), "fp32": (None,)}[self.scale]
        if self.compat not in allowed:
            raise ValueError(f"scheme: compat with an {self.scale} scale must be one of {allowed}, got {self.compat!r}")

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> QuantScheme:
        """Return the scheme that ``dataclasses.asdict`` gave these fields of, also after a way through JSON."""
        block = fields["block"]
        return QuantScheme(**{**fields, "block": tuple(block) if isinstance(block, list) else block})

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


def _check_block(block: object) -> None:
    if block in (None, "tensor", "row"):
        return
    sides = block if isinstance(block, tuple) and len(block) == 2 and block[0] == block[1] else (block,)
    if not all(isinstance(side, int) and not isinstance(side, bool) and side in BLOCK_LENGTHS for side in sides):
        raise ValueError(
            "scheme: block must be None, 'tensor', 'row', one of "
            f"{', '.join(map(str, BLOCK_LENGTHS))} or (n, n) of them, got {block!r}"
        )


def _mx(name: str, element: str) -> QuantScheme:
    return QuantScheme(name, element, block=32, scale="e8m0", scale_rule="rceil")


def _fp32_scaled(name: str, element: str, block: Block, scale_rule: str = "fp32") -> QuantScheme:
    return QuantScheme(name, element, block=block, scale="fp32", scale_rule=scale_rule)


def _nvfp4(name: str, block: Block) -> QuantScheme:
    return QuantScheme(name, "e2m1", block=block, scale="e4m3", tensor_scale=True)


_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantScheme("fp32", "fp32", overflow="inf"),
        QuantScheme("bf16", "bf16", overflow="inf"),
        QuantScheme("fp16", "fp16", overflow="inf"),
        _fp32_scaled("fp8_e4m3", "e4m3", "tensor"),
        _fp32_scaled("fp8_e5m2", "e5m2", "tensor"),
        _fp32_scaled("fp8_e4m3_row", "e4m3", "row"),
        _fp32_scaled("fp8_e4m3_1x128", "e4m3", 128, "power_of_two"),
        _fp32_scaled("fp8_e4m3_128x128", "e4m3", (128, 128), "power_of_two"),
        _mx("mxfp8_e4m3", "e4m3"),
        _mx("mxfp8_e5m2", "e5m2"),
        _mx("mxfp6_e3m2", "e3m2"),
        _mx("mxfp6_e2m3", "e2m3"),
        _mx("mxfp4", "e2m1"),
        _mx("mxint8", "mxint8"),
        _nvfp4("nvfp4", 16),
        _nvfp4("nvfp4_2d", (16, 16)),
        _fp32_scaled("int8", "int8", "row"),
        _fp32_scaled("int4_g32", "int4", 32),
        _fp32_scaled("nf4_g64", "nf4", 64),
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
