"""A scheme as the numbers the compiled operators take, beneath every room that quantizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import lsfast._numerics as numerics
from lsfast import checks
from lsfast.formats import COMPATS, HADAMARD_SIZES, OVERFLOWS, ROUNDINGS, SPECIALS, QuantScheme, element_format

FIXED_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
_RULES = {None: 0, "fp32": 1, "power_of_two": 2, "floor": 5, "ceil": 6, "even": 7, "rceil": 8}  # csrc's ScaleRule
_ABSMAX, _E4M3 = 3, 4
_NAMED_BLOCKS = {None: 0, "row": -1, "tensor": -2}


def scheme_numbers(scheme: QuantScheme) -> list[int]:
    """Return the numbers of a scheme in the order of csrc/quantization/scheme_numbers.h."""
    return list(_numbers(scheme))


# All that torch.compiler.assume_constant_result does, without importing torch's compiler: two seconds at each start.
scheme_numbers._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _numbers(scheme: QuantScheme) -> tuple[int, ...]:
    element = element_format(scheme.element)
    rule = _E4M3 if scheme.scale == "e4m3" else _ABSMAX if scheme.element == "nf4" else _RULES[scheme.scale_rule]
    if isinstance(scheme.block, tuple):
        height, length = scheme.block
    else:
        height, length = 1, scheme.block if isinstance(scheme.block, int) else _NAMED_BLOCKS[scheme.block]
    words = sign_words(hadamard_signs(scheme.hadamard, scheme.hadamard_seed)) if scheme.hadamard else [0, 0, 0, 0]
    return (
        element.exponent_bits,
        element.mantissa_bits,
        SPECIALS.index(element.special),
        rule,
        COMPATS.index(scheme.compat),
        height,
        length,
        int(scheme.tensor_scale),
        ROUNDINGS.index(scheme.rounding),
        scheme.random_bits,
        OVERFLOWS.index(scheme.overflow),
        scheme.hadamard,
        *words,
    )


def hadamard_signs(size: int, seed: int | None = None) -> Tensor:
    """Return the signs of a Hadamard transform, [size] numbers that are 1 or -1.

    Parameters
    ----------
    size
        16, 32, 64 or 128.
    seed
        None for the 16 fixed signs, repeated; else the sign of element i is the top bit of word i of Philox4x32-10
        under the key `seed`, 1 for negative.

    Returns
    -------
    Tensor
        [size] float32, on the CPU.

    Raises
    ------
    TypeError, ValueError
        If the size is another, or the seed is no integer in 0 .. 2^63 - 1.

    References
    ----------
    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).

    Examples
    --------
    >>> lsfast.hadamard_signs(16)[:4]
    tensor([ 1.,  1.,  1., -1.])
    """
    check_hadamard_size("hadamard_signs", size)
    if seed is None:
        return torch.tensor(FIXED_SIGNS, dtype=torch.float32).repeat(size // len(FIXED_SIGNS))
    checks.seed("hadamard_signs", seed)
    words = numerics.philox(np.arange(size, dtype=np.uint64), seed)
    return torch.from_numpy(1 - 2 * (words >> 31).astype(np.float32))


def sign_words(signs: Tensor) -> list[int]:
    """Pack signs, [size] numbers that are 1 or -1, as kernels take them: bit i % 32 of word i // 32 is set for a -1."""
    return list(pack_signs(signs.tolist()))


def pack_signs(signs: Sequence[float]) -> tuple[int, ...]:
    """Pack numbers that are 1 or -1 in the same way."""
    return tuple(
        sum(1 << i for i, sign in enumerate(signs[first : first + 32]) if sign < 0) for first in range(0, 128, 32)
    )


def check_hadamard_size(function: str, size: object) -> None:
    """Raise if `size` is not one that a Hadamard transform has."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{function}: size must be an integer, got {size!r}")
    if size not in HADAMARD_SIZES[1:]:
        raise ValueError(f"{function}: size must be one of {', '.join(map(str, HADAMARD_SIZES[1:]))}, got {size}")
