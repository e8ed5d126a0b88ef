"""What packed codes and scales mean, read by NumPy, gfloat and torch alone; and tensors that are hard to scale."""

import gfloat
import numpy as np
import torch
from gfloat.formats import (
    format_info_ocp_e2m1,
    format_info_ocp_e2m3,
    format_info_ocp_e3m2,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
)

from lsfast.formats import element_format

FLOATS = {
    "e2m1": format_info_ocp_e2m1,
    "e2m3": format_info_ocp_e2m3,
    "e3m2": format_info_ocp_e3m2,
    "e4m3": format_info_ocp_e4m3,
    "e5m2": format_info_ocp_e5m2,
}
WIDE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def wild(rows, columns, seed=0):
    """Draw Gaussian numbers with outliers, rows of very different size, a row of tiny numbers and blocks of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= 2.0 ** torch.randint(-12, 13, (rows, 1), generator=generator)
    x *= torch.where(torch.rand(rows, columns, generator=generator) < 0.01, 100.0, 1.0)
    x[0, : columns // 2] = 0.0
    x[-1] *= 2.0**-60
    return x


def line_length(q):
    return q.shape[q.axis] if q.shape else 1


def codes_of(q):
    """Unpack [..., line_bytes] bytes to [..., length] codes: little-endian numbers, packed from the lowest bit up."""
    bits = element_format(q.scheme.element).bits
    stored = bits if bits <= 8 else 16 if bits <= 16 else 32
    length = line_length(q)
    flat = np.unpackbits(q.codes.numpy(), axis=-1, bitorder="little")
    assert not flat[..., length * stored :].any()  # what fills up the last byte
    digits = flat[..., : length * stored].reshape(*q.codes.shape[:-1], length, stored).astype(np.uint64)
    return digits @ (np.uint64(1) << np.arange(stored, dtype=np.uint64))


def numbers_of(q):
    """Return the numbers of the codes, float32, without scales."""
    codes, element = codes_of(q), q.scheme.element
    if element in FLOATS:
        bits = element_format(element).bits
        table = np.array([gfloat.decode_float(FLOATS[element], code).fval for code in range(2**bits)])
        return torch.from_numpy(table[codes].astype(np.float32))
    if element in WIDE:
        return q.codes.view(WIDE[element]).float()
    if element == "nf4":
        return torch.tensor(NF4)[torch.from_numpy(codes.astype(np.int64))]
    bits = element_format(element).bits
    integers = torch.from_numpy(codes.astype(np.int64))
    signed = torch.where(integers >= 2 ** (bits - 1), integers - 2**bits, integers).float()
    return signed / 64 if element == "mxint8" else signed


def factors_of(q):
    """Return the float32 factor of each code: the scale of its block, over the tensor's where there is one."""
    moved = numbers_of(q).shape
    if q.scales is None:
        return torch.ones(moved)
    scales = q.scales.float()
    if q.amax is not None and q.scheme.tensor_scale:
        own = q.scheme.compat is None
        scales = scales * q.amax * torch.tensor(1 / 2688) if own else scales * (q.amax / 2688)
    block = q.scheme.block
    if isinstance(block, str):
        return scales.expand(moved)
    height, length = block if isinstance(block, tuple) else (1, block)
    wide = scales.repeat_interleave(length, dim=-1)[..., : moved[-1]]
    return wide if height == 1 else wide.repeat_interleave(height, dim=-2)[..., : moved[-2], :]


def independent_dequantize(q):
    """Return number times factor in float32, rounded to the dtype, in the shape that was quantized."""
    moved = (numbers_of(q) * factors_of(q)).to(q.dtype)
    if isinstance(q.scheme.block, tuple):
        return moved.movedim((-2, -1), (q.axis - 1, q.axis))
    return moved.movedim(-1, q.axis) if q.shape else moved.reshape(())
