"""The peers that benchmarks compare with, each at its best: packages from PyPI and plain torch code."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

RoundTrip = Callable[[Tensor], Tensor]


def torchao_round_trip(name: str) -> RoundTrip:
    """Return torchao's quantization to ``"mxfp4"`` or ``"nvfp4"`` and back, two-level scaling for nvfp4."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    def mxfp4(x: Tensor) -> Tensor:
        scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.RCEIL)
        return to_dtype(codes, scales, torch.float4_e2m1fn_x2, 32, x.dtype)

    def nvfp4(x: Tensor) -> Tensor:
        scale = per_tensor_amax_to_scale(x.abs().max())
        return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(x.dtype)

    return {"mxfp4": mxfp4, "nvfp4": nvfp4}[name]


def plain_fp8(x: Tensor) -> Tensor:
    """Per-tensor E4M3 in plain torch: scale, clamp, cast to and from, unscale."""
    scale = 448.0 / x.abs().max()
    return (x * scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float() * (1.0 / scale)


def plain_nvfp4(x: Tensor) -> Tensor:
    """NVFP4 in plain torch: Transformer Engine's operations, E2M1 by thresholds."""
    amax = x.abs().max()
    encode = 2688.0 / amax
    blocks = x.view(-1, 16)
    scale = (blocks.abs().amax(1, keepdim=True) * (encode * (1.0 / 6.0))).clamp(max=448.0)
    scale = scale.to(torch.float8_e4m3fn).float()
    scaled = (blocks * (1.0 / (scale * (1.0 / encode))).clamp(max=torch.finfo(torch.float32).max)).clamp(-6.0, 6.0)
    magnitude = scaled.abs()
    step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
    rounded = torch.copysign(torch.round(magnitude / step) * step, scaled)
    return (rounded * (scale * amax * (1.0 / 2688.0))).view_as(x)
