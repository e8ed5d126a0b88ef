"""The algebra of symmetric operators, and what can be made one."""

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

import lsfast


@pytest.fixture
def matrix():
    x = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x + x.T


def test_dense_sparse_scipy_and_callables_give_the_same_products(matrix):
    v = torch.arange(7, dtype=torch.float64)
    for source in (
        matrix,
        matrix.to_sparse(),
        scipy.sparse.csr_matrix(matrix.numpy()),
        scipy.sparse.linalg.aslinearoperator(matrix.numpy()),
    ):
        A = lsfast.aslinearoperator(source)
        assert A.shape == (7, 7)
        assert A.dtype == torch.float64
        assert torch.allclose(A @ v, matrix @ v, rtol=1e-14)
    A = lsfast.aslinearoperator(lambda rows: rows @ matrix, n=7, dtype=torch.float64)
    assert torch.allclose(A.to_dense(), matrix, rtol=1e-14)
    assert lsfast.aslinearoperator(A) is A


def test_rows_columns_and_single_vectors_are_the_same_product(matrix):
    A = lsfast.aslinearoperator(matrix)
    V = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(A.apply(V), (A @ V.T).T)
    assert A.apply(V).is_contiguous()
    assert A.apply(V[:0]).shape == (0, 7)


def test_sums_shifts_and_multiples(matrix):
    A, B = lsfast.aslinearoperator(matrix), lsfast.aslinearoperator(matrix @ matrix)
    one = torch.eye(7, dtype=torch.float64)
    for operator, expected in (
        (A + 0.1, matrix + 0.1 * one),
        (0.1 + A, matrix + 0.1 * one),
        (A - 2, matrix - 2 * one),
        (2 - A, 2 * one - matrix),
        (2 * A, 2 * matrix),
        (A * 0.5, 0.5 * matrix),
        (-A, -matrix),
        (A - B, matrix - matrix @ matrix),
        (3 * (A + B) - 1, 3 * (matrix + matrix @ matrix) - one),
    ):
        assert torch.allclose(operator.to_dense(), expected, rtol=1e-12, atol=1e-13)


def test_scipy_form_finds_the_eigenvalues(matrix):
    A = lsfast.aslinearoperator(matrix).to_scipy()
    values = scipy.sparse.linalg.eigsh(A, k=2, which="LA", return_eigenvectors=False)
    assert torch.allclose(torch.tensor(values).sort().values, torch.linalg.eigvalsh(matrix)[-2:], rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: lsfast.aslinearoperator(m[:3]), ValueError, r"A must have shape \[n, n\], got \[3, 7\]"),
        (lambda m: lsfast.aslinearoperator(m.long()), ValueError, "A must be a floating-point tensor"),
        (lambda m: lsfast.aslinearoperator("A"), TypeError, "must be an operator, a matrix or a callable, got str"),
        (lambda m: lsfast.aslinearoperator(lambda rows: rows), ValueError, "a callable needs n and dtype"),
        (lambda m: lsfast.aslinearoperator(m) @ torch.ones(8).double(), ValueError, r"must have shape \[7\]"),
        (lambda m: lsfast.aslinearoperator(m) @ torch.ones(7), ValueError, "must have dtype torch.float64"),
        (lambda m: lsfast.aslinearoperator(m) * torch.ones(7), TypeError, "factor must be a number"),
        (lambda m: lsfast.aslinearoperator(m) + "1", TypeError, "expected an operator or a number, got str"),
        (
            lambda m: lsfast.aslinearoperator(m) + lsfast.aslinearoperator(m.float()),
            ValueError,
            "operators must agree in dtype",
        ),
        (
            lambda m: (
                lsfast.aslinearoperator(lambda rows: rows[:, :2], n=7, dtype=torch.float64)
                @ torch.ones(7, dtype=torch.float64)
            ),
            ValueError,
            r"f must return \[1, 7\]",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(matrix, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(matrix)
    assert "\n" not in str(raised.value)
