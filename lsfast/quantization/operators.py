"""The checks that every function of the room makes."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast import checks
from lsfast.formats import QuantScheme
from lsfast.formats import scheme as scheme_of


def has_tensor_amax(scheme: QuantScheme) -> bool:
    """Whether the scales of a scheme depend on the largest magnitude of the whole tensor."""
    return scheme.block == "tensor" or scheme.tensor_scale


def checked(
    function: str, x: object, scheme: str | QuantScheme, axis: object, seed: object, stream: object
) -> tuple[Tensor, QuantScheme, int]:
    """Check what every function takes; return x, the scheme and the axis counted from the end."""
    tensor = checks.floating(function, "x", x)
    chosen = scheme_of(scheme)
    if tensor.numel() == 0:
        raise ValueError(f"{function}: x must not be empty, got shape {list(tensor.shape)}")
    from_end = checks.axis(function, tensor, axis)
    if isinstance(chosen.block, tuple) and from_end == -max(tensor.dim(), 1):
        raise ValueError(
            f"{function}: a block of {chosen.block[0]} x {chosen.block[1]} needs an axis before axis {axis}, "
            f"got shape {list(tensor.shape)}"
        )
    length = tensor.shape[from_end] if tensor.dim() > 0 else 1
    if chosen.hadamard and length % chosen.hadamard:
        raise ValueError(f"{function}: hadamard={chosen.hadamard} must divide the axis, got one of {length}")
    if chosen.rounding == "stochastic" and seed is None:
        raise ValueError(f"{function}: seed must be given for stochastic rounding, got None")
    checks.seed(function, 0 if seed is None else seed)
    checks.positive_integer(function, "stream", stream, least=0)
    if chosen.nan == "raise":
        _refuse_nan(function, tensor)
    return tensor, chosen, from_end


def _refuse_nan(function: str, x: Tensor) -> None:
    bad = ~torch.isfinite(x)
    if bad.any():
        first = bad.nonzero()[0].tolist()
        count = int(bad.sum())
        raise ValueError(f"{function}: x must be finite for nan='raise', got {count} NaN or Inf, first at {first}")


def given_amax(function: str, amax: float | Tensor | None, x: Tensor, scheme: QuantScheme) -> Tensor | None:
    """Return a largest magnitude given in place of x's own as float32 [1] on the device of x; None if none is given."""
    if amax is None:
        return None
    if not has_tensor_amax(scheme):
        raise ValueError(f"{function}: amax is for schemes with one scale for the tensor, got {scheme.name!r}")
    if isinstance(amax, bool) or not isinstance(amax, (int, float, Tensor)):
        raise TypeError(f"{function}: amax must be a number or a tensor of one, got {type(amax).__name__}")
    if isinstance(amax, Tensor):
        if amax.numel() != 1:
            raise ValueError(f"{function}: amax must be one number, got shape {list(amax.shape)}")
        return amax.detach().to(x.device, torch.float32).reshape(1)  # not looked at: that would wait for the device
    if not 0 <= amax < float("inf"):
        raise ValueError(f"{function}: amax must be finite and not negative, got {amax}")
    return torch.tensor([amax], dtype=torch.float32, device=x.device)
