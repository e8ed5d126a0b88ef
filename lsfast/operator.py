"""Symmetric linear operators: what the curvature room makes and the spectrum room is given.

An operator is known by its products with rows of vectors, ``[k, n] -> [k, n]``. Everything else (``@``, sums, shifts,
dense and SciPy forms) follows from that one method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsfast import checks


class LinearOperator:
    """A symmetric operator on vectors of length n, in one dtype on one device.

    Subclasses define ``_apply(rows [k, n]) -> [k, n]``; ``rows`` is contiguous and has been checked.

    Parameters
    ----------
    n
        Length of a vector.
    dtype, device
        Of the vectors, and of the products.

    Attributes
    ----------
    parts
        Name -> the slice of a vector that belongs to it, of an operator on named parameters; else empty.

    Examples
    --------
    >>> A = lsfast.aslinearoperator(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    >>> (A + 1.0) @ torch.ones(3)
    tensor([2., 3., 4.])
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.shape = (n, n)
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # "cuda" is the device a tensor on it says it is on
        self.parts: dict[str, slice] = {}

    def _apply(self, rows: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its product")

    def apply(self, rows: Tensor) -> Tensor:
        """Products with the rows of ``rows`` [k, n]; returns [k, n], contiguous."""
        checks.like("apply", "rows", rows, self.dtype, self.device)
        if rows.dim() != 2 or rows.shape[1] != self.shape[0]:
            raise ValueError(f"apply: rows must have shape [k, {self.shape[0]}], got {list(rows.shape)}")
        if rows.shape[0] == 0:
            return torch.empty_like(rows)
        return self._apply(rows.detach().contiguous()).contiguous()

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with one vector [n], or with the columns of [n, k]."""
        checks.like("matmul", "vectors", vectors, self.dtype, self.device)
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.shape[0]:
            n = self.shape[0]
            raise ValueError(f"matmul: vectors must have shape [{n}] or [{n}, k], got {list(vectors.shape)}")
        if vectors.dim() == 1:
            return self.apply(vectors[None])[0]
        return self.apply(vectors.T).T

    def to_dense(self) -> Tensor:
        """Return the matrix [n, n], from products with the identity in slices of 64 rows; for small n."""
        n = self.shape[0]
        identity = torch.eye(n, dtype=self.dtype, device=self.device)
        slices = [self.apply(identity[i : i + 64]) for i in range(0, n, 64)]
        return torch.cat(slices) if slices else identity

    def to_scipy(self) -> Any:
        """Return the operator as a ``scipy.sparse.linalg.LinearOperator`` over NumPy vectors."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def columns(matrix: Any) -> Any:
            tensor = torch.as_tensor(matrix, dtype=self.dtype, device=self.device)
            return (self @ tensor.reshape(self.shape[0], -1)).cpu().numpy().reshape(matrix.shape)

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return ScipyOperator(self.shape, matvec=columns, matmat=columns, rmatvec=columns, rmatmat=columns, dtype=dtype)

    def __add__(self, other: LinearOperator | float) -> LinearOperator:
        """Return the sum with another operator, or with a multiple of the identity."""
        return _Combination(self, 1.0, other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: LinearOperator | float) -> LinearOperator:
        """Return the difference to another operator, or to a multiple of the identity."""
        return _Combination(self, 1.0, other, -1.0)

    def __rsub__(self, other: float) -> LinearOperator:
        """Return a multiple of the identity less this operator."""
        return _Combination(self, -1.0, other, 1.0)

    def __mul__(self, factor: float) -> LinearOperator:
        """Return the multiple by a number."""
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise TypeError(f"multiply: factor must be a number, got {type(factor).__name__}")
        return _Combination(self, float(factor), 0.0, 0.0)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        """Return the negated operator."""
        return self * -1.0


class _Combination(LinearOperator):
    """``a A + b B``, with B an operator or a multiple of the identity."""

    def __init__(self, first: LinearOperator, a: float, second: LinearOperator | float, b: float) -> None:
        super().__init__(first.shape[0], first.dtype, first.device)
        if isinstance(second, LinearOperator):
            for name in ("shape", "dtype", "device"):
                mine, other = getattr(first, name), getattr(second, name)
                if mine != other:
                    raise ValueError(f"add: operators must agree in {name}, got {mine} and {other}")
        elif isinstance(second, bool) or not isinstance(second, (int, float)):
            raise TypeError(f"add: expected an operator or a number, got {type(second).__name__}")
        self._first, self._a, self._second, self._b = first, a, second, b
        self.parts = first.parts

    def _apply(self, rows: Tensor) -> Tensor:
        result = self._first.apply(rows) * self._a
        if isinstance(self._second, LinearOperator):
            return result.add_(self._second.apply(rows), alpha=self._b)
        return result.add_(rows, alpha=self._b * self._second)


class _FromCallable(LinearOperator):
    def __init__(self, product: Callable[[Tensor], Tensor], n: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(n, dtype, device)
        self._product = product

    def _apply(self, rows: Tensor) -> Tensor:
        result = self._product(rows)
        if not isinstance(result, Tensor) or result.shape != rows.shape or result.dtype != rows.dtype:
            got = f"{list(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"aslinearoperator: f must return {list(rows.shape)} {rows.dtype}, got {got}")
        return result


def aslinearoperator(
    A: Any, n: int | None = None, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LinearOperator:
    """Return `A` as a symmetric operator.

    Parameters
    ----------
    A
        An operator of this package (returned as it is), a symmetric torch matrix [n, n], dense or sparse, a SciPy
        operator or sparse matrix, or a callable that takes rows [k, n] and returns rows [k, n].
    n, dtype, device
        Length, dtype and device of a vector: required of a callable (`n` and `dtype`), else taken from `A`.

    Raises
    ------
    ValueError
        If a matrix is not square, or `n` or `dtype` is missing for a callable.
    TypeError
        If `A` is none of the above.

    Examples
    --------
    >>> A = lsfast.aslinearoperator(lambda rows: 2.0 * rows, n=3, dtype=torch.float64)
    >>> A @ torch.ones(3, dtype=torch.float64)
    tensor([2., 2., 2.], dtype=torch.float64)
    """
    if isinstance(A, LinearOperator):
        return A
    if isinstance(A, Tensor):
        checks.floating("aslinearoperator", "A", A)
        if A.dim() != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"aslinearoperator: A must have shape [n, n], got {list(A.shape)}")
        matrix = A.detach()
        return _FromCallable(lambda rows: (matrix @ rows.T).T, A.shape[0], A.dtype, A.device)
    if hasattr(A, "shape") and hasattr(A, "dot"):
        if len(A.shape) != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"aslinearoperator: A must have shape (n, n), got {tuple(A.shape)}")
        own = dtype or (torch.float32 if str(A.dtype) == "float32" else torch.float64)
        return _FromCallable(
            lambda rows: torch.as_tensor(A.dot(rows.cpu().numpy().T).T.copy(), dtype=own, device=rows.device),
            int(A.shape[0]),
            own,
            torch.device(device),
        )
    if callable(A):
        if n is None or dtype is None:
            raise ValueError(f"aslinearoperator: a callable needs n and dtype, got n={n}, dtype={dtype}")
        return _FromCallable(A, checks.positive_integer("aslinearoperator", "n", n), dtype, torch.device(device))
    raise TypeError(f"aslinearoperator: A must be an operator, a matrix or a callable, got {type(A).__name__}")
