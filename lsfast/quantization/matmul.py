"""The matrix product of two quantized tensors, with the arithmetic of hardware that multiplies their codes."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.formats import QuantScheme
from lsfast.formats import scheme as scheme_of
from lsfast.quantization.fake_quantize import fake_quantize
from lsfast.quantization.operators import checked
from lsfast.scheme_numbers import scheme_numbers

_NVFP4_RANGE = 2688.0  # 448 * 6


def quantized_matmul(
    x: Tensor,
    w: Tensor,
    x_scheme: str | QuantScheme,
    w_scheme: str | QuantScheme | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    r"""Multiply two quantized tensors: :math:`Q_x(x)\, Q_w(w)^T`, both quantized along the axis they share.

    NVFP4 with NVFP4 (E2M1 elements under E4M3 scales) is multiplied as tensor cores do: an element times the scale of
    its block has at most 2 + 4 = 6 significant bits and lies in 2^-10 .. 2688, so it is a BF16 number, and a product of
    two is a float32 number. In this order:

    1. ``a = code_x * scale_x`` and ``b = code_w * scale_w``, exact in BF16; the tensors' scales are left out;
    2. ``c = a b^T``, its products exact, added up in float32 (on a GPU as BF16 with float32 output; a CPU's BF16
       product rounds its output, so there the same numbers are multiplied as float32, which is the same arithmetic);
    3. ``y = c * (amax_x * amax_w / 2688^2)``, the factor and the product in float64, rounded once to `out_dtype`.

    Any other pair is ``fake_quantize(x) @ fake_quantize(w).T`` in float32, where torch's float32 matmul precision
    applies (its default is full). Narrower inputs are widened first, so that quantized values are not rounded again.

    Parameters
    ----------
    x
        [..., k], quantized along k.
    w
        [n, k] like the weight of a ``Linear``, quantized along k; the dtype and device of x.
    x_scheme, w_scheme
        Schemes or their names; `w_scheme` None is `x_scheme`.
    out_dtype
        Of the result: float32, float64, bfloat16 or float16; None for that of x.
    seed
        Required by stochastic rounding; x draws from stream 0 and w from stream 1.

    Returns
    -------
    Tensor
        [..., n]. A NaN or Inf in a block of x makes its row NaN, one in a block of w its column.

    Raises
    ------
    TypeError, ValueError
        If x or w is not floating-point, empty, or differs in k, dtype or device; for an unknown scheme, a missing seed,
        or schemes of which only one, or each another, applies a Hadamard transform; if x or w requires grad: rounding
        has no derivative, and a layer that is trained takes `lsfast.fake_quantize`, whose gradients pass straight
        through.

    References
    ----------
    NVIDIA Transformer Engine, NVFP4 GEMM (alpha = amax_A amax_B / (6^2 448^2)).

    Examples
    --------
    >>> y = lsfast.quantized_matmul(x, layer.weight.detach(), "nvfp4", "nvfp4_2d")
    """
    chosen_x = scheme_of(x_scheme)
    chosen_w = chosen_x if w_scheme is None else scheme_of(w_scheme)
    dtype = _check(x, w, out_dtype)
    if (chosen_x.hadamard, chosen_x.hadamard_seed) != (chosen_w.hadamard, chosen_w.hadamard_seed):
        raise ValueError(
            "quantized_matmul: x_scheme and w_scheme must have the same Hadamard transform, got sizes "
            f"{chosen_x.hadamard} and {chosen_w.hadamard}, seeds {chosen_x.hadamard_seed} and {chosen_w.hadamard_seed}"
        )
    checked("quantized_matmul", x, chosen_x, -1, seed, 0)
    checked("quantized_matmul of w", w, chosen_w, -1, seed, 1)
    with torch.no_grad():
        if _is_nvfp4(chosen_x) and _is_nvfp4(chosen_w):
            a, range_x = _codes_times_scales(x, chosen_x, seed, 0)
            b, range_w = _codes_times_scales(w, chosen_w, seed, 1)
            product = _exact_products(a.flatten(0, -2) if a.dim() > 1 else a[None], b)
            result = product.double().mul_(range_x * range_w).to(dtype)
            return result.reshape(*x.shape[:-1], len(w))
        rounded_x = fake_quantize(_widened(x), chosen_x, seed=seed, stream=0).float()
        rounded_w = fake_quantize(_widened(w), chosen_w, seed=seed, stream=1).float()
        return (rounded_x @ rounded_w.T).to(dtype)


def _check(x: Tensor, w: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    checks.floating("quantized_matmul", "x", x)
    checks.like("quantized_matmul", "w", w, x.dtype, x.device)
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"quantized_matmul: x must have shape [..., k] and not be empty, got {list(x.shape)}")
    if w.dim() != 2 or w.shape[1] != x.shape[-1] or w.numel() == 0:
        raise ValueError(f"quantized_matmul: w must have shape [n, {x.shape[-1]}], got {list(w.shape)}")
    for name, tensor in (("x", x), ("w", w)):
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"quantized_matmul: {name} must not require grad, got one that does; give {name}.detach()")
    dtype = x.dtype if out_dtype is None else out_dtype
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"quantized_matmul: out_dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    return dtype


def _is_nvfp4(scheme: QuantScheme) -> bool:
    return scheme.element == "e2m1" and scheme.scale == "e4m3"


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _codes_times_scales(x: Tensor, scheme: QuantScheme, seed: int | None, stream: int) -> tuple[Tensor, Tensor]:
    """Return (BF16 numbers in the shape of x, float64 0-dim), whose product is the quantized x."""
    numbers = scheme_numbers(scheme)
    narrow = x.float() if x.dtype == torch.float64 else x
    codes, scales, amax = ops.quantize(narrow.contiguous(), None, numbers, 1, seed or 0, stream)
    alone = scheme.replace(tensor_scale=False)  # the same codes and block scales, with nothing above them
    values = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    ops.dequantize_out(codes, scales, amax[:0], values, scheme_numbers(alone))
    if not scheme.tensor_scale:
        return values, torch.ones((), dtype=torch.float64, device=x.device)
    return values, amax[0].double() / _NVFP4_RANGE


def _exact_products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b^T [m, n] in float32 for BF16 a [m, k] and b [n, k]."""
    if a.device.type == "cuda":
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T
