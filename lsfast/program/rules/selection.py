r"""The linear map :math:`y_i = x_{s(i)}` along one axis and its adjoint :math:`\bar x_j = \sum_{s(i) = j} \bar y_i`.

Both in a fixed order of additions: the same bits for any number of threads, and on a GPU from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def select(rows: Tensor, index: Tensor, axis: int = 1) -> Tensor:
    """Return the elements [k, ..., m, ...] of rows [k, ..., n, ...] at an index [m] along an axis, contiguous."""
    if rows.is_cuda or axis > 1:
        return torch.index_select(rows, axis, index)
    # One call for all rows would first copy rows that do not lie close together, as views of parameter vectors.
    result = rows.new_empty(len(rows), len(index), *rows.shape[2:])
    for row, out in zip(rows, result, strict=True):
        torch.index_select(row, 0, index, out=out)
    return result


def scatter(
    rows: Tensor, index: Tensor, n: int, axis: int = 1, distinct: bool = False, out: Tensor | None = None
) -> Tensor:
    """Return the sums of elements with equal index, zero where there is none: the adjoint of `select`.

    Parameters
    ----------
    rows, index
        [k, ..., m, ...] and [m] of integers from 0 to n - 1.
    n
        The length of the result along the axis.
    axis
        The axis of length m.
    distinct
        That no number occurs twice in the index.
    out
        Where to write the result, of any strides.

    Returns
    -------
    Tensor
        [k, ..., n, ...]: `out`, or contiguous.
    """
    shape = (*rows.shape[:axis], n, *rows.shape[axis + 1 :])
    result = rows.new_zeros(shape) if out is None else out.zero_()
    if rows.is_cuda and not distinct:  # sorts, where index_add_ and scatter_add_ add in the order of arrival
        aten.index_put_(result, [None] * axis + [index], rows, True)
    elif rows.dim() == axis + 1:  # index_add_ takes one index after the other
        result.scatter_add_(axis, index.expand(rows.shape), rows)
    else:
        result.index_add_(axis, index, rows)
    return result
