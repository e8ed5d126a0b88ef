"""Similarity of two representations of the same rows of data: linear CKA."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lsfast import checks


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centered kernel alignment of two sets of features of the same rows.

    .. math:: \mathrm{CKA}(X, Y) = \frac{|Y_c^\top X_c|_F^2}{|X_c^\top X_c|_F \, |Y_c^\top Y_c|_F}

    with the mean of each column removed. Between 0 and 1; 1 if one set is the other, turned, reflected and scaled by
    one factor. It does not change under these, but it does under other linear maps.

    Parameters
    ----------
    x, y
        [rows, p] and [rows, q], such as outputs of two layers for the same inputs; further axes count as features.
        Floating-point, on the same device; dtypes may differ.

    Returns
    -------
    Tensor
        0-dim float64. With fewer rows than features the value is biased upwards: 1 for any features in the limit.

    Raises
    ------
    TypeError, ValueError
        If they are not so, have fewer than two rows, hold NaN or Inf, or are constant over the rows up to rounding.

    References
    ----------
    Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited. ICML 2019.

    Examples
    --------
    >>> x = torch.randn(100, 8)
    >>> lsfast.linear_cka(x, 3 * x.flip(1))
    tensor(1.0000, dtype=torch.float64)
    """
    checks.floating("linear_cka", "x", x)
    checks.floating("linear_cka", "y", y)
    if x.device != y.device:
        raise ValueError(f"linear_cka: y must be on {x.device}, like x, got {y.device}")
    for name, features in (("x", x), ("y", y)):
        if features.dim() < 2 or features[:1].numel() == 0:
            raise ValueError(f"linear_cka: {name} must have shape [rows, features], got {list(features.shape)}")
    if len(x) != len(y):
        raise ValueError(f"linear_cka: y must have the {len(x)} rows of x, got {len(y)}")
    if len(x) < 2:
        raise ValueError(f"linear_cka: x must have at least 2 rows, got {len(x)}")
    first, second = _centered("x", x), _centered("y", y)
    cross = _inner(first, second)
    return cross / (_inner(first, first).sqrt() * _inner(second, second).sqrt())


def _centered(name: str, features: Tensor) -> Tensor:
    """Return features [rows, p] in float64 without their column means, scaled to norm 1."""
    flat = features.detach().double().flatten(1)
    if not flat.isfinite().all():
        raise ValueError(f"linear_cka: {name} must be finite, got NaN or Inf in it")
    largest = flat.abs().amax()
    scaled = flat / largest  # no square overflows
    centered: Tensor = scaled - scaled.mean(0)
    norm: Tensor = torch.linalg.vector_norm(centered)
    # A mean of rows is off by their number of roundings at most.
    noise = len(flat) * torch.finfo(torch.float64).eps * math.sqrt(flat.numel())
    if not norm > noise:  # NaN where all features are 0
        raise ValueError(f"linear_cka: {name} must vary over its rows, got the same features in each")
    return centered / norm


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Return |y'x|_F^2 of x [rows, p] and y [rows, q], by one product of features or two of rows, whichever is less."""
    rows, p, q = len(x), x.shape[1], y.shape[1]
    products: Tensor = (y.T @ x).square() if p * q <= rows * (p + q) else (x @ x.T) * (y @ y.T)
    total: Tensor = products.sum()
    return total
