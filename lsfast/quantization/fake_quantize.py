"""Fake quantization: a tensor rounded to what a low-bit format can hold, differentiable straight through."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops, register_fake
from lsfast.formats import OVERFLOWS, ROUNDINGS, SPECIALS, QuantScheme, element_format
from lsfast.formats import scheme as scheme_of

_SCALINGS: tuple[str | int | None, ...] = (None, "tensor", 16)  # QuantScheme.block, in the order of csrc's Scaling


class _Call(NamedTuple):
    """The arguments of the operator that follow x, in its order; `axis` counts from the end."""

    exponent_bits: int
    mantissa_bits: int
    special: int
    scaling: int
    rounding: int
    random_bits: int
    overflow: int
    axis: int
    batched: bool
    derivative: bool
    seed: int
    stream: int

    def run(self, x: Tensor) -> Tensor:
        result: Tensor = ops.fake_quantize(x, *self.arguments(x))
        return result

    def arguments(self, x: Tensor) -> tuple[int | bool, ...]:
        return (*self[:7], max(x.dim(), 1) + self.axis, *self[8:])


def fake_quantize(
    x: Tensor,
    scheme: str | QuantScheme,
    axis: int = -1,
    seed: int | None = None,
    out: Tensor | None = None,
    *,
    stream: int = 0,
    mask_saturated: bool = False,
) -> Tensor:
    r"""Round a tensor to the numbers a scheme can hold, and return them in the tensor's own dtype.

    Unscaled: :math:`e = \max(\lfloor \log_2 |x| \rfloor, 1 - bias)`, and x is rounded to a multiple of
    :math:`2^{e - y}`. ``fp8_*``: :math:`Q(x s) / s` with :math:`s = largest / \max|x|`. ``nvfp4``: blocks of 16 along
    `axis` with an E4M3 scale each, over one float32 scale for the tensor, in the order of operations of NVIDIA's
    Transformer Engine, all in float32 (a float64 tensor is rounded to float32 first; unscaled schemes round float64
    directly).

    Parameters
    ----------
    x
        Any shape and strides; float32, float64, bfloat16 or float16.
    scheme
        A name of `lsfast.schemes`, any ``eXmY``, or a `QuantScheme`.
    axis
        The axis that blocks run along; a last block that is not full is scaled by what is there.
    seed
        Required by stochastic rounding. The draw of an element depends on (seed, stream, row-major index) alone.
    out
        Contiguous, with the shape, dtype and device of x; may be x itself.
    stream
        Number of an independent sequence of draws under one seed.
    mask_saturated
        Zero the gradient where the value lay beyond the largest of its scale.

    Returns
    -------
    Tensor
        In the shape of x, contiguous. Its derivative is the identity (straight-through), or 0 where masked; the second
        derivative is zero. NaN stays NaN; in ``nvfp4`` a NaN or Inf makes its block NaN, and no other.

    Raises
    ------
    TypeError, ValueError
        If x is not floating-point or empty, the scheme is unknown, the axis is out of range, a seed is missing, or
        `out` does not fit; `out` is then untouched.

    References
    ----------
    OCP 8-bit Floating Point Specification 1.0; NVIDIA Transformer Engine, NVFP4 recipe; straight-through: Bengio,
    Leonard, Courville 2013, arXiv:1308.3432.

    Examples
    --------
    >>> lsfast.fake_quantize(torch.tensor([0.3, 2.4, 7.0]), "e2m1")
    tensor([0.5000, 2.0000, 6.0000])
    """
    checks.floating("fake_quantize", "x", x)
    chosen = scheme_of(scheme)
    if x.numel() == 0:
        raise ValueError(f"fake_quantize: x must not be empty, got shape {list(x.shape)}")
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"fake_quantize: axis must be an integer, got {axis!r}")
    dims = max(x.dim(), 1)
    if not -dims <= axis < dims:
        raise ValueError(f"fake_quantize: axis must lie in {-dims}..{dims - 1}, got {axis}")
    if chosen.rounding == "stochastic" and seed is None:
        raise ValueError("fake_quantize: seed must be given for stochastic rounding, got None")
    checks.seed("fake_quantize", 0 if seed is None else seed)
    checks.positive_integer("fake_quantize", "stream", stream, least=0)
    call = _call(chosen, axis if axis < 0 else axis - dims, 0 if seed is None else seed, stream)
    identity = chosen.element == "fp32"
    if out is not None:
        _check_out(x, out)
        if identity:
            return out.copy_(x)
        _into(x, out, call)
        return out
    if identity:
        return x.clone(memory_format=torch.contiguous_format)
    function = _StraightThrough if torch.compiler.is_compiling() else _StraightThroughTransformable
    result: Tensor = function.apply(x, call, mask_saturated)  # type: ignore[no-untyped-call]
    return result


def _call(chosen: QuantScheme, axis: int, seed: int, stream: int) -> _Call:
    element = element_format(chosen.element)
    return _Call(
        exponent_bits=element.exponent_bits,
        mantissa_bits=element.mantissa_bits,
        special=SPECIALS.index(element.special),
        scaling=_SCALINGS.index(chosen.block),
        rounding=ROUNDINGS.index(chosen.rounding),
        random_bits=chosen.random_bits,
        overflow=OVERFLOWS.index(chosen.overflow),
        axis=axis,
        batched=False,
        derivative=False,
        seed=seed,
        stream=stream,
    )


def _check_out(x: Tensor, out: Tensor) -> None:
    checks.like("fake_quantize", "out", out, x.dtype, x.device)
    if out.shape != x.shape:
        raise ValueError(f"fake_quantize: out must have shape {list(x.shape)}, got {list(out.shape)}")
    if not out.is_contiguous():
        raise ValueError(f"fake_quantize: out must be contiguous, got strides {out.stride()}")
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError("fake_quantize: out= has no derivative; call it without out, or under torch.no_grad()")
    same = x.data_ptr() == out.data_ptr() and x.is_contiguous()
    if not same and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
        raise ValueError("fake_quantize: out must be x itself or must not share its memory, got another view of it")


def _into(x: Tensor, out: Tensor, call: _Call) -> None:
    ops.fake_quantize_out(torch.atleast_1d(x), torch.atleast_1d(out), *call.arguments(x))


class _StraightThrough(torch.autograd.Function):
    """Rounding forward, the identity (or the mask of what did not saturate) backward."""

    @staticmethod
    def forward(x: Tensor, call: _Call, mask_saturated: bool) -> Tensor:
        return call.run(torch.atleast_1d(x)).reshape(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.call, ctx.mask_saturated = inputs
        if ctx.mask_saturated:
            ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _times_derivative(ctx, gradient), None, None


class _StraightThroughTransformable(_StraightThrough):
    """The same with rules for jvp and vmap, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _StraightThrough.setup_context(ctx, inputs, output)
        if ctx.mask_saturated:
            ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _call: None, _mask: None) -> Tensor:
        return _times_derivative(ctx, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, call: _Call, mask_saturated: bool) -> tuple[Tensor, int]:
        # Each example is a tensor of its own, with its own largest magnitude and its own indices.
        stacked = x.movedim(in_dims[0], 0)
        examples = stacked.flatten(0, 1) if call.batched else stacked
        shaped = examples[:, None] if examples.dim() == 1 else examples
        each = call._replace(batched=True)
        result = _StraightThroughTransformable.apply(shaped, each, mask_saturated)  # type: ignore[no-untyped-call]
        return result.reshape(stacked.shape), 0


def _times_derivative(ctx: Any, vector: Tensor) -> Tensor:
    if ctx.call.derivative:
        return torch.zeros_like(vector)
    if not ctx.mask_saturated:
        return vector.clone()
    (x,) = ctx.saved_tensors
    function = _StraightThrough if torch.compiler.is_compiling() else _StraightThroughTransformable
    derivative: Tensor = function.apply(x, ctx.call._replace(derivative=True), False)  # type: ignore[no-untyped-call]
    return vector * derivative


@register_fake("fake_quantize")
def _(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@register_fake("fake_quantize_out")
def _(x: Tensor, out: Tensor, *arguments: Any) -> None:
    return None
