"""The random Hadamard transform: it spreads an outlier over its neighbours before a block's scale is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops, register_fake
from lsfast.scheme_numbers import FIXED_SIGNS, check_hadamard_size, pack_signs, sign_words


class _Transform(NamedTuple):
    """The arguments of the operator that follow x; `axis` counts from the end, so leading ones do not move it."""

    axis: int
    size: int
    words: tuple[int, ...]
    inverse: bool

    def run(self, x: Tensor) -> Tensor:
        result: Tensor = ops.hadamard(x, x.dim() + self.axis, self.size, list(self.words), self.inverse)
        return result

    def transposed(self) -> _Transform:
        return self._replace(inverse=not self.inverse)


def hadamard(x: Tensor, size: int = 16, signs: Tensor | None = None, axis: int = -1, inverse: bool = False) -> Tensor:
    r"""Transform every `size` consecutive elements along an axis: :math:`y = (x \odot s) H / \sqrt{size}`.

    H is the Hadamard matrix in Sylvester's order, s the signs. The matrix of the whole is orthogonal: norms and inner
    products stay as they are, and the inverse, :math:`x = s \odot (y H) / \sqrt{size}`, is its transpose, which is also
    what a gradient goes through. Additions are made in float32 (float64 for a float64 x), in butterflies of stages 1,
    2, 4 ... `size`/2; the result is rounded once, to the dtype of x. With sizes 16 and 64 the factor is a power of two.

    Parameters
    ----------
    x
        Any shape and strides, with a multiple of `size` elements along `axis`; float32, float64, bfloat16 or float16.
    size
        16, 32, 64 or 128.
    signs
        [size] numbers that are 1 or -1, see `hadamard_signs`; None for the fixed ones. They are read on the host: keep
        them on the CPU, and a GPU is not waited for. Under torch.compile they are data: multiplied, and not checked.
    axis
        The axis whose elements are transformed.
    inverse
        Undo the transform.

    Returns
    -------
    Tensor
        In the shape and dtype of x, contiguous; differentiable any number of times.

    Raises
    ------
    TypeError, ValueError
        If x is not floating-point, the axis is out of range or does not divide by the size, the size is another, or
        the signs are not `size` numbers that are 1 or -1.

    References
    ----------
    NVIDIA, "Pretraining Large Language Models with NVFP4" (2025), arXiv:2509.25149, section 4.

    Examples
    --------
    >>> lsfast.hadamard(torch.eye(16)[0] * 8)[:4]
    tensor([2., 2., 2., 2.])
    """
    checks.floating("hadamard", "x", x)
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"hadamard: x must be float32, float64, bfloat16 or float16, got {x.dtype}")
    check_hadamard_size("hadamard", size)
    axis = checks.axis("hadamard", x, axis)
    length = x.shape[axis] if x.dim() else 1
    if length % size != 0:
        raise ValueError(f"hadamard: x must have a multiple of {size} elements along axis {axis}, got {length}")
    if not isinstance(inverse, bool):
        raise TypeError(f"hadamard: inverse must be True or False, got {inverse!r}")
    if signs is None:
        return _apply(x, _Transform(axis, size, pack_signs(FIXED_SIGNS * (size // len(FIXED_SIGNS))), inverse))
    _check_signs(signs, size)
    if not torch.compiler.is_compiling():
        return _apply(x, _Transform(axis, size, tuple(sign_words(signs)), inverse))
    pattern = signs.to(x).repeat(length // size).reshape(length, *[1] * (-axis - 1))
    plain = _Transform(axis, size, pack_signs(()), inverse)
    return _apply(x, plain) * pattern if inverse else _apply(x * pattern, plain)


def transformed(x: Tensor, axis: int, size: int, words: Sequence[int], inverse: bool) -> Tensor:
    """Transform along an axis counted from the end, with signs as kernels take them; nothing is checked."""
    return _apply(x, _Transform(axis, size, tuple(words), inverse))


def _apply(x: Tensor, transform: _Transform) -> Tensor:
    function = _Orthogonal if torch.compiler.is_compiling() else _OrthogonalTransformable
    result: Tensor = function.apply(x, transform)  # type: ignore[no-untyped-call]
    return result


def _check_signs(signs: object, size: int) -> None:
    if not isinstance(signs, Tensor):
        raise TypeError(f"hadamard: signs must be a tensor or None, got {type(signs).__name__}")
    if signs.shape != (size,) or signs.dtype.is_complex:
        raise ValueError(f"hadamard: signs must be [{size}] real numbers, got {list(signs.shape)} {signs.dtype}")
    if not torch.compiler.is_compiling() and not bool((signs.abs() == 1).all()):
        raise ValueError(f"hadamard: signs must be 1 or -1, got {signs.tolist()}")


class _Orthogonal(torch.autograd.Function):
    """A linear function whose transpose is its inverse."""

    @staticmethod
    def forward(x: Tensor, transform: _Transform) -> Tensor:
        return transform.run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.transform = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _apply(gradient, ctx.transform.transposed()), None


class _OrthogonalTransformable(_Orthogonal):
    """The same with rules for jvp and vmap, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _transform: None) -> Tensor:
        return _apply(tangent, ctx.transform)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, transform: _Transform) -> tuple[Tensor, int]:
        return _apply(x.movedim(in_dims[0], 0), transform), 0


@register_fake("hadamard")
def _(x: Tensor, axis: int, size: int, signs: list[int], inverse: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
