"""Products of K rows of tangents or adjoints with tensors that all rows share, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast._native import ops, register_fake


def scale_rows(rows: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    r"""Return ``rows * factor``, each row times the same factors.

    Parameters
    ----------
    rows
        [K, *s], of any strides; float32, float64 or bfloat16 (computed in float32, rounded once).
    factor
        [*s], the same dtype and device.
    out
        [K, *s], the same dtype and device: written to and returned. May be `rows` itself.

    Returns
    -------
    Tensor
        [K, *s] in the memory order of a row (or of `factor`, where a row is not dense), K outermost.

    Raises
    ------
    RuntimeError
        By the operator, if shapes, dtypes or devices do not fit together.

    Examples
    --------
    >>> scale_rows(torch.ones(2, 3), torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 2., 3.],
            [1., 2., 3.]])
    """
    if rows.is_contiguous() and factor.is_contiguous() and (out is None or out.is_contiguous()):
        result = torch.empty_like(rows) if out is None else out
        ops.scale_rows(rows, factor, result)
        return result
    order = _row_order(out, rows, factor)
    result = out if out is not None and _order(out, 1) == order else _empty(rows.shape, order, rows)
    ops.scale_rows(_in_order(rows, order, 1), _in_order(factor, order, 0), result)
    return result if out is None or result is out else out.copy_(result)


def combine_rows(a: Tensor, f: Tensor, b: Tensor, g: Tensor, out: Tensor | None = None) -> Tensor:
    r"""Return ``a * f + b * g``, each product and the sum rounded to the dtype (bfloat16: rounded once).

    Parameters
    ----------
    a, b
        [K, *s], of any strides; float32, float64 or bfloat16.
    f, g
        [*s], the same dtype and device.
    out
        [K, *s], the same dtype and device: written to and returned. May be `a` or `b` itself.

    Returns
    -------
    Tensor
        [K, *s] in the memory order of a row of `a` (or of the first of b, f and g that is dense), K outermost.

    Raises
    ------
    RuntimeError
        By the operator, if shapes, dtypes or devices do not fit together.

    Examples
    --------
    >>> combine_rows(torch.ones(1, 2), torch.tensor([1.0, 2.0]), torch.ones(1, 2), torch.tensor([10.0, 20.0]))
    tensor([[11., 22.]])
    """
    if all(tensor.is_contiguous() for tensor in (a, f, b, g)) and (out is None or out.is_contiguous()):
        result = torch.empty_like(a) if out is None else out
        ops.combine_rows(a, f, b, g, result)
        return result
    order = _row_order(out, a, b, f, g)
    result = out if out is not None and _order(out, 1) == order else _empty(a.shape, order, a)
    rows = (_in_order(a, order, 1), _in_order(b, order, 1))
    ops.combine_rows(rows[0], _in_order(f, order, 0), rows[1], _in_order(g, order, 0), result)
    return result if out is None or result is out else out.copy_(result)


_Order = tuple[int, ...]  # the strides of a row, 0 along axes of length 1


def _order(tensor: Tensor, lead: int) -> _Order:
    return tuple(
        0 if size == 1 else step for size, step in zip(tensor.shape[lead:], tensor.stride()[lead:], strict=True)
    )


def _row_order(out: Tensor | None, rows: Tensor, *others: Tensor) -> _Order:
    """Return the order of the first of out, rows and the others that is dense: what has another is copied to it."""
    for tensor in (rows, *others) if out is None else (out, rows, *others):
        lead = tensor.dim() - rows.dim() + 1
        order = _order(tensor, lead)
        if _is_dense(tensor.shape[lead:], order):
            return order
    return _order(rows.new_empty(rows.shape[1:], device="meta"), 0)


def _is_dense(shape: torch.Size, order: _Order) -> bool:
    """Whether the elements of a row fill its memory without gaps or overlaps."""
    filled = 1
    for step, size in sorted((step, size) for step, size in zip(order, shape, strict=True) if size != 1):
        if step != filled:
            return False
        filled *= size
    return True


def _empty(shape: torch.Size, order: _Order, like: Tensor) -> Tensor:
    row = shape[1:].numel()
    strides = [row if size == 1 else step for size, step in zip(shape[1:], order, strict=True)]
    return torch.empty_strided(shape, (row, *strides), dtype=like.dtype, device=like.device)


def _in_order(tensor: Tensor, order: _Order, lead: int) -> Tensor:
    """Return the tensor itself where its rows have that order, else a copy that does."""
    if tensor.dim() - lead != len(order) or _order(tensor, lead) == order:  # the operator refuses other shapes
        return tensor
    if lead == 0:
        return _in_order(tensor[None], order, 1)[0]
    return _empty(tensor.shape, order, tensor).copy_(tensor)


@register_fake("scale_rows")
def _(rows: Tensor, factor: Tensor, out: Tensor) -> None:
    return None


@register_fake("combine_rows")
def _(a: Tensor, f: Tensor, b: Tensor, g: Tensor, out: Tensor) -> None:
    return None
