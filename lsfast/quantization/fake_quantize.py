"""Fake quantization: a tensor rounded to what a low-bit format can hold, differentiable straight through."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops, register_fake
from lsfast.formats import QuantScheme
from lsfast.quantization.hadamard import transformed
from lsfast.quantization.operators import checked, given_amax
from lsfast.quantization.statistics import GRANULARITIES, QuantStatistics, statistics_shape
from lsfast.scheme_numbers import scheme_numbers


class _Call(NamedTuple):
    """The arguments of the operator that follow x and amax, in its order; `axis` counts from the end."""

    scheme: list[int]
    axis: int
    batched: bool
    derivative: bool
    seed: int
    stream: int

    def run(self, x: Tensor, amax: Tensor | None) -> Tensor:
        result: Tensor = ops.fake_quantize(x, amax, *self.arguments(x))
        return result

    def arguments(self, x: Tensor) -> tuple[list[int] | int | bool, ...]:
        return (self.scheme, max(x.dim(), 1) + self.axis, *self[2:])

    def transformed(self, vector: Tensor, inverse: bool) -> Tensor:
        """Apply the Hadamard transform in front, where there is one: the derivative goes through it too."""
        size, *words = self.scheme[-5:]
        return transformed(vector, self.axis, size, words, inverse) if size else vector


@overload
def fake_quantize(
    x: Tensor,
    scheme: str | QuantScheme,
    axis: int = ...,
    seed: int | None = ...,
    out: Tensor | None = ...,
    statistics: Literal[False] = ...,
    *,
    amax: float | Tensor | None = ...,
    stream: int = ...,
    mask_saturated: bool = ...,
) -> Tensor: ...


@overload
def fake_quantize(
    x: Tensor,
    scheme: str | QuantScheme,
    axis: int = ...,
    seed: int | None = ...,
    out: Tensor | None = ...,
    *,
    statistics: Literal[True, "tensor", "row", "block"],
    amax: float | Tensor | None = ...,
    stream: int = ...,
    mask_saturated: bool = ...,
) -> tuple[Tensor, QuantStatistics]: ...


def fake_quantize(
    x: Tensor,
    scheme: str | QuantScheme,
    axis: int = -1,
    seed: int | None = None,
    out: Tensor | None = None,
    statistics: bool | str = False,
    *,
    amax: float | Tensor | None = None,
    stream: int = 0,
    mask_saturated: bool = False,
) -> Tensor | tuple[Tensor, QuantStatistics]:
    r"""Round a tensor to the numbers a scheme can hold, and return them in the tensor's own dtype.

    Every scheme is :math:`y = Q(x\,m)\,f` with Q the rounding to its element and (m, f) from the scale of a block, in
    float32 and in the order of operations of the implementation each follows. With a the largest magnitude of a block
    and A that of the tensor:

    - unscaled (``bf16``, ``e4m3``, any ``eXmY``): m = f = 1. With :math:`e = \max(\lfloor \log_2 |x| \rfloor, 1 -
      bias)`, Q rounds to a multiple of :math:`2^{e - Y}`. A float64 tensor is rounded itself; with any other scheme it
      is rounded to float32 first.
    - ``fp8_*``, ``int*``: m = largest/a, f = 1/m; a of 0, Inf or NaN gives 1. ``scale_rule="power_of_two"`` cuts off
      the mantissa of m first. ``nf4_g64``: m = 1/a, f = a, Q the nearest of 16 quantiles of a normal distribution.
    - ``mx*``: f is a power of two, m = 1/f: ``"floor"`` :math:`2^{\lfloor\log_2 a\rfloor - e_{max}}` (OCP; elements
      may saturate), ``"ceil"`` one more if a is no power of two, ``"even"`` floor of a rounded to the element's
      mantissa, ``"rceil"`` (default) a/largest rounded up to a power of two.
    - ``nvfp4``: with E = min(2688/A, FLT_MAX), the block's scale is s = E4M3(a (E (1/6))), m = min(1/(s (1/E)),
      FLT_MAX), f = (s A) (1/2688). ``tensor_scale=False``: E = 1, f = s.
    - ``hadamard``: what is quantized, and returned, is the transform of x: see `lsfast.hadamard`.

    A block runs along `axis` (two-dimensional ones also along the axis before it); a last block that is not full is
    scaled by what is there.

    Parameters
    ----------
    x
        Any shape and strides; float32, float64, bfloat16 or float16.
    scheme
        A name of `lsfast.schemes`, any ``eXmY``, or a `QuantScheme`.
    axis
        The axis that blocks run along.
    seed
        Required by stochastic rounding: a number goes up with the probability of its fraction of the step, by a draw
        that depends on (seed, stream, row-major index) alone.
    out
        Contiguous, with the shape, dtype and device of x; may be x itself.
    statistics
        True or ``"tensor"``: also return what was lost, from the same pass over x. ``"row"``: for each line along
        `axis`; ``"block"``: for each block.
    amax
        A largest magnitude to use in place of the tensor's own A, for schemes that have one (see `lsfast.calibrate`).
    stream
        Number of an independent sequence of draws under one seed.
    mask_saturated
        Zero the gradient where the value lay beyond the largest of its scale.

    Returns
    -------
    Tensor, or (Tensor, QuantStatistics)
        In the shape of x, contiguous. Its derivative is the identity (straight-through), or 0 where masked; with a
        Hadamard transform it is the transform. The second derivative is zero. NaN stays NaN; under an E8M0 or E4M3
        scale a NaN or Inf makes its block NaN, and no other.

    Raises
    ------
    TypeError, ValueError
        If x is not floating-point or empty, the scheme is unknown, the axis is out of range, a seed is missing, or
        `out` does not fit; `out` is then untouched.

    References
    ----------
    OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0; NVIDIA Transformer Engine (FP8 and NVFP4
    recipes); Dettmers et al. 2023, arXiv:2305.14314 (NF4); straight-through: Bengio, Leonard, Courville 2013,
    arXiv:1308.3432.

    Examples
    --------
    >>> lsfast.fake_quantize(torch.tensor([0.3, 2.4, 7.0]), "e2m1")
    tensor([0.5000, 2.0000, 6.0000])
    """
    x, chosen, from_end = checked("fake_quantize", x, scheme, axis, seed, stream)
    largest = given_amax("fake_quantize", amax, x, chosen)
    call = _Call(scheme_numbers(chosen), from_end, False, False, 0 if seed is None else seed, stream)
    identity = chosen.element == "fp32" and not chosen.hadamard
    if out is not None:
        _check_out(x, out)
    if statistics:
        return _with_statistics(x, chosen, call, largest, out, "tensor" if statistics is True else statistics)
    if out is not None:
        if identity:
            return out.copy_(x)
        ops.fake_quantize_out(_with_axis(x), largest, _with_axis(out), None, 0, *call.arguments(x))
        return out
    if identity:
        return x.clone(memory_format=torch.contiguous_format)
    function = _StraightThrough if torch.compiler.is_compiling() else _StraightThroughTransformable
    result: Tensor = function.apply(x, largest, call, mask_saturated)  # type: ignore[no-untyped-call]
    return result


def _with_axis(x: Tensor) -> Tensor:
    """View a number as a line of one."""
    return x if x.dim() > 0 else x.reshape(1)


def _with_statistics(
    x: Tensor, chosen: QuantScheme, call: _Call, amax: Tensor | None, out: Tensor | None, wanted: str
) -> tuple[Tensor, QuantStatistics]:
    checks.one_of("fake_quantize", "statistics", wanted, GRANULARITIES[1:])
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("fake_quantize: statistics have no derivative; call it under torch.no_grad()")
    line = _with_axis(x)
    shape, counts = statistics_shape(line.shape, chosen, line.dim() + call.axis, wanted)
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    sums = torch.zeros(*shape, 5, dtype=torch.float64, device=x.device)
    ops.fake_quantize_out(line, amax, _with_axis(result), sums, GRANULARITIES.index(wanted), *call.arguments(x))
    return result, QuantStatistics.of_sums(sums, counts)


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


class _StraightThrough(torch.autograd.Function):
    """Rounding forward, the identity (or the mask of what did not saturate) backward."""

    @staticmethod
    def forward(x: Tensor, amax: Tensor | None, call: _Call, mask_saturated: bool) -> Tensor:
        return call.run(torch.atleast_1d(x), amax).reshape(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, amax, ctx.call, ctx.mask_saturated = inputs
        if ctx.mask_saturated:
            ctx.save_for_backward(x, amax)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.call.transformed(_times_mask(ctx, gradient), inverse=True), None, None, None


class _StraightThroughTransformable(_StraightThrough):
    """The same with rules for jvp and vmap, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _StraightThrough.setup_context(ctx, inputs, output)
        if ctx.mask_saturated:
            ctx.save_for_forward(inputs[0], inputs[1])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _amax: None, _call: None, _mask: None) -> Tensor:
        return _times_mask(ctx, ctx.call.transformed(tangent, inverse=False))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, amax: Tensor | None, call: _Call, mask_saturated: bool
    ) -> tuple[Tensor, int]:
        # Each example is a tensor of its own, with its own largest magnitude and its own indices.
        if amax is not None:
            raise ValueError("fake_quantize: amax= cannot be used under vmap")
        stacked = x.movedim(in_dims[0], 0)
        examples = stacked.flatten(0, 1) if call.batched else stacked
        shaped = examples[:, None] if examples.dim() == 1 else examples
        each = call._replace(batched=True)
        result = _StraightThroughTransformable.apply(shaped, None, each, mask_saturated)  # type: ignore[no-untyped-call]
        return result.reshape(stacked.shape), 0


def _times_mask(ctx: Any, vector: Tensor) -> Tensor:
    if ctx.call.derivative:
        return torch.zeros_like(vector)
    if not ctx.mask_saturated:
        return vector.clone()
    x, amax = ctx.saved_tensors
    function = _StraightThrough if torch.compiler.is_compiling() else _StraightThroughTransformable
    slope = ctx.call._replace(derivative=True)
    derivative: Tensor = function.apply(x, amax, slope, False)  # type: ignore[no-untyped-call]
    return vector * derivative


@register_fake("fake_quantize")
def _(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@register_fake("fake_quantize_out")
def _(x: Tensor, amax: Tensor | None, out: Tensor, *arguments: Any) -> None:
    return None
