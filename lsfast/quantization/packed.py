"""Packed quantized tensors: the codes and scales that `fake_quantize` only computes with, and the way back."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops
from lsfast.formats import QuantScheme
from lsfast.quantization.files import Entry, read_entries, unreadable, write_entries
from lsfast.quantization.interop import torch_values
from lsfast.quantization.layout import SCALE_DTYPES, axes_in_order, moved_shape, packed_shapes
from lsfast.quantization.operators import checked, given_amax, has_tensor_amax
from lsfast.scheme_numbers import scheme_numbers

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NVFP4_RANGE = 2688.0  # 448 * 6: the largest scale times the largest element


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor as codes and scales: an element is its code's number times its block's scale (times `tensor_scale`).

    Attributes
    ----------
    codes
        [*other axes, line_bytes] uint8: the axis of the blocks moved to the end (after the one before it, where blocks
        have two dimensions), each line packed from the lowest bit up: two 4-bit codes a byte, the low nibble first;
        four 6-bit codes in three bytes; codes of 9 to 16 bits in two bytes, wider ones in four, little-endian.
    scales
        One per block: [*other axes, blocks]; [*other axes, blocks before, blocks] where they have two dimensions;
        [*other axes, 1] for rows; [1] for the tensor; None for an unscaled scheme. In the format of the scheme:
        float8_e8m0fnu, float8_e4m3fn or float32.
    amax
        [] float32, the largest magnitude that the scales were chosen for; None unless the whole tensor shares one.
    scheme
        How it was quantized.
    shape, dtype, axis
        Of the tensor that was; the axis counts from 0.

    Examples
    --------
    >>> q = lsfast.quantize(torch.randn(64, 256), "nvfp4")
    >>> q.nbytes  # 8192 bytes of codes, 1024 of scales, 4 of amax
    9220
    """

    codes: Tensor
    scales: Tensor | None
    amax: Tensor | None
    scheme: QuantScheme
    shape: torch.Size
    dtype: torch.dtype
    axis: int

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"QuantizedTensor: dtype must be float32, bfloat16 or float16, got {self.dtype}")
        if not 0 <= self.axis < max(len(self.shape), 1):
            raise ValueError(f"QuantizedTensor: axis must be one of shape {list(self.shape)}, got {self.axis}")
        moved = moved_shape(self.shape, self.axis, self.scheme)
        codes, scales = packed_shapes(moved, scheme_numbers(self.scheme))
        unscaled = self.scheme.scale is None
        expected = {
            "codes": (codes, torch.uint8),
            "scales": None if unscaled else (scales, SCALE_DTYPES[str(self.scheme.scale)]),
            "amax": ([], torch.float32) if has_tensor_amax(self.scheme) else None,
        }
        for name, wanted in expected.items():
            tensor = getattr(self, name)
            found = None if tensor is None else (list(tensor.shape), tensor.dtype)
            if found != wanted:
                raise ValueError(
                    f"QuantizedTensor: {name} of {self.scheme.name!r} must be {_described(wanted)}, "
                    f"got {_described(found)}"
                )

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor({self.scheme.name!r}, shape={list(self.shape)}, dtype={self.dtype}, axis={self.axis}, "
            f"nbytes={self.nbytes})"
        )

    @property
    def tensor_scale(self) -> Tensor | None:
        """What the block scales are multiplied by, [] float32: amax/2688; None unless the scheme has one."""
        return self.amax / _NVFP4_RANGE if self.amax is not None and self.scheme.tensor_scale else None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, the scales and amax."""
        return sum(part.nbytes for part in self._parts().values())

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor that the codes stand for: the bits of `fake_quantize`.

        A scheme with a Hadamard transform gives the transformed tensor, as `fake_quantize` does; `lsfast.hadamard`
        undoes it.

        Parameters
        ----------
        dtype
            float32, bfloat16, float16 or float64; None for the dtype that was quantized. Numbers are made in float32
            and rounded to it.

        Returns
        -------
        Tensor
            In the shape that was quantized, contiguous.

        Raises
        ------
        ValueError
            If the dtype is another.

        Examples
        --------
        >>> lsfast.quantize(torch.tensor([0.3, 2.4, 7.0]), "e2m1").dequantize()
        tensor([0.5000, 2.0000, 6.0000])
        """
        dtype = self.dtype if dtype is None else dtype
        if dtype not in (*_DTYPES, torch.float64):
            raise ValueError(f"dequantize: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
        moved = self.codes.new_empty(moved_shape(self.shape, self.axis, self.scheme), dtype=dtype)
        none = self.codes.new_empty(0, dtype=torch.float32)
        scales = none if self.scales is None else self.scales
        ops.dequantize_out(
            self.codes.contiguous(),
            (scales.view(torch.uint8) if scales.itemsize == 1 else scales).contiguous(),
            none if self.amax is None else self.amax.reshape(1),
            moved,
            scheme_numbers(self.scheme),
        )
        order = axes_in_order(max(len(self.shape), 1), self.axis, self.scheme)
        back = [order.index(d) for d in range(len(order))]
        return moved.permute(back).contiguous().reshape(self.shape)

    def to_torch(self) -> tuple[Tensor, Tensor | None]:
        """Return (values, scales) in torch's own dtypes, the axis of the blocks last; they share the memory of this.

        The values have float8_e4m3fn, float8_e5m2, bfloat16, float16, float32, int8, or float4_e2m1fn_x2 with two
        values an element. An element times its block's scale (times `tensor_scale`) is the number meant. Matrix
        products on tensor cores read block scales in another order: see `swizzle_scales`.

        Raises
        ------
        ValueError
            If torch has no dtype for the scheme's element, or the lines of an E2M1 tensor have an odd length.

        Examples
        --------
        >>> values, scales = lsfast.quantize(torch.randn(64, 256), "fp8_e4m3").to_torch()
        >>> values.dtype, scales.shape
        (torch.float8_e4m3fn, torch.Size([1]))
        """
        length = moved_shape(self.shape, self.axis, self.scheme)[-1]
        return torch_values(self.codes, self.scheme, length), self.scales

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file, whole or not at all.

        Examples
        --------
        >>> lsfast.quantize(torch.randn(64, 256), "nvfp4").save("weight.safetensors")
        """
        save_quantized(path, {"tensor": self})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> QuantizedTensor:
        """Read a file of one quantized tensor, onto the CPU.

        Raises
        ------
        ValueError
            If the file is not whole, is another program's, or holds several tensors (see `load_quantized`).

        Examples
        --------
        >>> lsfast.quantize(torch.randn(64, 256), "nvfp4").save("weight.safetensors")
        >>> lsfast.QuantizedTensor.load("weight.safetensors").shape
        torch.Size([64, 256])
        """
        found = _read("QuantizedTensor.load", path)
        if len(found) != 1:
            raise ValueError(
                f"QuantizedTensor.load: path must hold one tensor, got {len(found)} in {os.fspath(path)!r}; "
                "load_quantized reads them"
            )
        return next(iter(found.values()))

    def _parts(self) -> dict[str, Tensor]:
        parts = {"codes": self.codes, "scales": self.scales, "amax": self.amax}
        return {name: part for name, part in parts.items() if part is not None}


def quantize(
    x: Tensor,
    scheme: str | QuantScheme,
    axis: int = -1,
    seed: int | None = None,
    *,
    amax: Tensor | float | None = None,
    stream: int = 0,
) -> QuantizedTensor:
    r"""Round a tensor to the numbers a scheme can hold, and return them as packed codes and scales.

    ``quantize(x, ...).dequantize()`` has the bits of ``fake_quantize(x, ...)``, which gives the formulas; only NaN
    differs where neither the element nor the scale can say it (``e2m1``, ``int8``): it becomes the largest code. The
    result has no derivative.

    Parameters
    ----------
    x
        Any shape and strides; float32, bfloat16 or float16.
    scheme
        A name of `lsfast.schemes`, any ``eXmY``, or a `QuantScheme`.
    axis
        The axis that blocks run along; a last block that is not full is scaled by what is there.
    seed
        Required by stochastic rounding. The draw of an element depends on (seed, stream, row-major index) alone.
    amax
        The largest magnitude to scale for, in place of that of x: a number or a tensor of one, for schemes with one
        scale for the tensor (block ``"tensor"`` or a tensor scale).
    stream
        Number of an independent sequence of draws under one seed.

    Returns
    -------
    QuantizedTensor
        On the device of x.

    Raises
    ------
    TypeError, ValueError
        If x is not floating-point, is float64 or is empty, the scheme is unknown, the axis is out of range, a seed is
        missing, `amax` does not fit, or x holds NaN or Inf and the scheme says ``nan="raise"``.

    References
    ----------
    OCP 8-bit Floating Point 1.0 and OCP Microscaling Formats 1.0 (codes); NVIDIA Transformer Engine (NVFP4).

    Examples
    --------
    >>> lsfast.quantize(torch.tensor([0.5, 1.0, 6.0, -6.0]), "e2m1").codes
    tensor([ 33, 247], dtype=torch.uint8)
    """
    x, chosen, from_end = checked("quantize", x, scheme, axis, seed, stream)
    if x.dtype not in _DTYPES:
        raise ValueError(
            f"quantize: x must be float32, bfloat16 or float16, got {x.dtype}; fake_quantize takes float64 too"
        )
    given = given_amax("quantize", amax, x, chosen)
    dense = torch.atleast_1d(x.detach())
    axis = dense.dim() + from_end
    codes, scales, found = ops.quantize(
        dense.permute(axes_in_order(dense.dim(), axis, chosen)).contiguous(),
        given,
        scheme_numbers(chosen),
        math.prod(dense.shape[axis + 1 :]),
        0 if seed is None else seed,
        stream,
    )
    return QuantizedTensor(
        codes=codes,
        scales=None if chosen.scale is None else scales.view(SCALE_DTYPES[chosen.scale]),
        amax=found.reshape(()) if has_tensor_amax(chosen) else None,
        scheme=chosen,
        shape=x.shape,
        dtype=x.dtype,
        axis=axis,
    )


def dequantize(q: QuantizedTensor) -> Tensor:
    """Return the tensor that codes and scales stand for, in the dtype that was quantized: ``q.dequantize()``.

    Raises
    ------
    TypeError
        If q is no `QuantizedTensor`.

    Examples
    --------
    >>> lsfast.dequantize(lsfast.quantize(torch.tensor([0.3, 2.4, 7.0]), "e2m1"))
    tensor([0.5000, 2.0000, 6.0000])
    """
    if not isinstance(q, QuantizedTensor):
        raise TypeError(f"dequantize: q must be a QuantizedTensor, got {type(q).__name__}")
    return q.dequantize()


def save_quantized(path: str | os.PathLike[str], tensors: Mapping[str, QuantizedTensor]) -> None:
    """Write quantized tensors by name as one safetensors file, whole or not at all.

    The file has the tensors ``<name>.codes``, ``<name>.scales`` and ``<name>.amax`` (those there are); its metadata
    have the scheme, shape, dtype and axis of each, and a checksum of its bytes.

    Raises
    ------
    TypeError
        If a name is no string or a value no `QuantizedTensor`.

    References
    ----------
    Hugging Face, "safetensors": the file format.

    Examples
    --------
    >>> weights = {name: lsfast.quantize(w, "nvfp4") for name, w in model.named_parameters() if w.dim() == 2}
    >>> lsfast.save_quantized("model.safetensors", weights)
    """
    for name, q in tensors.items():
        if not isinstance(name, str) or not isinstance(q, QuantizedTensor):
            raise TypeError(
                f"save_quantized: tensors must map names to QuantizedTensors, got {name!r}: {type(q).__name__}"
            )
    write_entries(path, {name: Entry(q._parts(), _description(q)) for name, q in tensors.items()})


def load_quantized(path: str | os.PathLike[str]) -> dict[str, QuantizedTensor]:
    """Read what `save_quantized` wrote, onto the CPU.

    Raises
    ------
    ValueError
        If the file is torn, damaged, another program's or of a newer version.

    Examples
    --------
    >>> lsfast.save_quantized("model.safetensors", {"weight": lsfast.quantize(torch.randn(64, 256), "nvfp4")})
    >>> {name: q.dequantize().shape for name, q in lsfast.load_quantized("model.safetensors").items()}
    {'weight': torch.Size([64, 256])}
    """
    return _read("load_quantized", path)


def _description(q: QuantizedTensor) -> dict[str, Any]:
    return {
        "scheme": dataclasses.asdict(q.scheme),
        "shape": list(q.shape),
        "dtype": str(q.dtype).removeprefix("torch."),
        "axis": q.axis,
    }


def _read(function: str, path: str | os.PathLike[str]) -> dict[str, QuantizedTensor]:
    found = {}
    for name, (parts, description) in read_entries(function, path).items():
        try:
            found[name] = QuantizedTensor(
                codes=parts["codes"],
                scales=parts.get("scales"),
                amax=parts.get("amax"),
                scheme=QuantScheme.from_fields(description["scheme"]),
                shape=torch.Size(description["shape"]),
                dtype={str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}[description["dtype"]],
                axis=checks.positive_integer(function, "axis", description["axis"], least=0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(function, path, f"{name!r} is described wrongly: {error}") from None
    return found


def _described(layout: tuple[list[int], torch.dtype] | None) -> str:
    return "None" if layout is None else f"{layout[0]} {layout[1]}"
