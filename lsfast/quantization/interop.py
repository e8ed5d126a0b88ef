"""Packed tensors as other libraries take them: torch's own low-bit dtypes, and the scale layout that cuBLAS reads."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast.formats import ElementFormat, QuantScheme, element_format

_TORCH_DTYPES = {
    ElementFormat(4, 3, "nan_only"): torch.float8_e4m3fn,
    ElementFormat(5, 2, "ieee"): torch.float8_e5m2,
    ElementFormat(2, 1, "finite"): torch.float4_e2m1fn_x2,
    ElementFormat(8, 7, "ieee"): torch.bfloat16,
    ElementFormat(5, 10, "ieee"): torch.float16,
    ElementFormat(8, 23, "ieee"): torch.float32,
    ElementFormat(0, 7, "integer"): torch.int8,
    ElementFormat(0, 7, "full_integer"): torch.int8,
}
_TILE_ROWS, _TILE_BLOCKS = 128, 4  # what cuBLAS keeps together: 512 scales, as 32 lines of 4 rows x 4 blocks


def torch_values(codes: Tensor, scheme: QuantScheme, length: int) -> Tensor:
    """View packed codes [..., line_bytes] of lines of `length` as torch's own dtype of the scheme's element."""
    dtype = _TORCH_DTYPES.get(element_format(scheme.element))
    if dtype is None:
        raise ValueError(
            "to_torch: scheme must have an element of e4m3, e5m2, e2m1, int8, bf16, fp16 or fp32, which torch has a "
            f"dtype for, got {scheme.element!r}"
        )
    if dtype is torch.float4_e2m1fn_x2 and length % 2 != 0:
        raise ValueError(f"to_torch: two e2m1 codes make one torch element, got an odd length {length} along the axis")
    return codes.view(dtype)


def swizzle_scales(scales: Tensor) -> Tensor:
    r"""Arrange the scales of a matrix in the order in which cuBLAS reads them.

    Tiles of 128 rows and 4 blocks follow each other row by row of tiles; inside a tile, the scale of row r and block b
    is number :math:`16 (r \bmod 32) + 4 \lfloor r / 32 \rfloor + b`. What pads the last tiles is zero bytes.

    Parameters
    ----------
    scales
        [rows, blocks] uint8, float8_e4m3fn or float8_e8m0fnu: one scale of a row's block, as `QuantizedTensor.scales`
        of a matrix has them for blocks along the last axis.

    Returns
    -------
    Tensor
        [512 ceil(rows/128) ceil(blocks/4)] of the same dtype.

    Raises
    ------
    TypeError, ValueError
        If the scales are no matrix of one-byte numbers.

    References
    ----------
    NVIDIA cuBLAS documentation, "1D Block Scaling Factors Layout".

    Examples
    --------
    >>> q = lsfast.quantize(torch.randn(200, 96), "mxfp8_e4m3")
    >>> lsfast.swizzle_scales(q.scales).shape  # 2 x 1 tiles
    torch.Size([1024])
    """
    _check_bytes("swizzle_scales", "scales", scales)
    if scales.dim() != 2 or scales.numel() == 0:
        raise ValueError(f"swizzle_scales: scales must be a matrix [rows, blocks], got shape {list(scales.shape)}")
    rows, blocks = scales.shape
    padding = (0, -blocks % _TILE_BLOCKS, 0, -rows % _TILE_ROWS)
    padded = torch.nn.functional.pad(scales.view(torch.uint8), padding)
    tiles = padded.reshape(-1, _TILE_ROWS // 32, 32, padded.shape[1] // _TILE_BLOCKS, _TILE_BLOCKS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1).view(scales.dtype)


def unswizzle_scales(swizzled: Tensor, rows: int, blocks: int) -> Tensor:
    """Undo `swizzle_scales`: return the [rows, blocks] scales, without what padded them.

    Parameters
    ----------
    swizzled
        512 ceil(rows/128) ceil(blocks/4) scales of any shape; uint8, float8_e4m3fn or float8_e8m0fnu.
    rows, blocks
        The shape before.

    Raises
    ------
    TypeError, ValueError
        If the number of scales is another, or they do not have one byte each.

    Examples
    --------
    >>> torch.equal(lsfast.unswizzle_scales(lsfast.swizzle_scales(q.scales), 200, 3), q.scales)
    True
    """
    _check_bytes("unswizzle_scales", "swizzled", swizzled)
    row_tiles, block_tiles = -(-rows // _TILE_ROWS), -(-blocks // _TILE_BLOCKS)
    expected = row_tiles * block_tiles * _TILE_ROWS * _TILE_BLOCKS
    if min(rows, blocks) < 1 or swizzled.numel() != expected:
        raise ValueError(
            f"unswizzle_scales: swizzled must have {expected} scales for {rows} rows and {blocks} blocks, "
            f"got {swizzled.numel()}"
        )
    tiles = swizzled.reshape(-1).view(torch.uint8).reshape(row_tiles, block_tiles, 32, _TILE_ROWS // 32, _TILE_BLOCKS)
    padded = tiles.permute(0, 3, 2, 1, 4).reshape(row_tiles * _TILE_ROWS, block_tiles * _TILE_BLOCKS)
    return padded[:rows, :blocks].contiguous().view(swizzled.dtype)


def _check_bytes(function: str, name: str, scales: object) -> None:
    if not isinstance(scales, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(scales).__name__}")
    if scales.dtype not in (torch.uint8, torch.float8_e4m3fn, torch.float8_e8m0fnu):
        raise ValueError(f"{function}: {name} must be uint8, float8_e4m3fn or float8_e8m0fnu, got {scales.dtype}")
