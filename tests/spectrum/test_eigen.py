"""Extreme eigenpairs against a dense eigensolver."""

import pytest
import torch

import lsfast

from .cases import NAMES, N, matrix

WHICH = ("LM", "LA", "SA", "BE")


def expected(values, k, which):
    values = values.sort().values
    if which == "LM":
        return values[values.abs().argsort(descending=True, stable=True)][:k]
    if which == "LA":
        return values.flip(0)[:k]
    if which == "SA":
        return values[:k]
    return torch.cat([values[: k // 2], values[values.numel() - (k - k // 2) :]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", ["outliers", "rank5", "indefinite", "clusters", "repeated"])
def test_values_are_those_of_a_dense_solver(name, which, dtype):
    A, k = matrix(name, dtype), 5
    exact = torch.linalg.eigvalsh(A.double())
    pairs = lsfast.eigsh(A, k, which)
    norm = exact.abs().max().item()
    # A value is within its residual of an eigenvalue; residuals are below the tolerance plus the rounding of a product.
    tolerance = torch.finfo(dtype).eps ** (2 / 3) + 2 * N**0.5 * torch.finfo(dtype).eps
    values = expected(exact, k, which)
    if which == "LM":  # of nearly equal magnitudes either sign may come first
        torch.testing.assert_close(pairs.values.abs(), values.abs(), rtol=0, atol=2 * tolerance * norm)
    else:
        torch.testing.assert_close(pairs.values, values, rtol=0, atol=2 * tolerance * norm)
    assert pairs.vectors.dtype == dtype
    assert pairs.residuals.max() <= 4 * tolerance * norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_residuals_are_true_and_vectors_orthonormal(name, dtype):
    A = matrix(name, dtype)
    pairs = lsfast.eigsh(A, 4)
    V = pairs.vectors.double()
    norm = torch.linalg.matrix_norm(A.double(), 2)
    epsilon = torch.finfo(dtype).eps
    true = (V @ A.double() - pairs.values[:, None] * V).norm(dim=1)
    assert (true - pairs.residuals).abs().max() <= 2 * N**0.5 * epsilon * norm
    # Ritz vectors are combinations of an orthonormal basis, made by a product of rank 24 in the dtype.
    assert (V @ V.T - torch.eye(4)).abs().max() <= 50 * epsilon


def test_an_outlier_is_found_to_1e_10_in_float64_and_1e_5_in_float32():
    for dtype, accuracy in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        values = lsfast.eigsh(matrix("outliers", dtype), k=3).values
        assert (values - torch.tensor([60.0, 35.0, 20.0])).abs().max() <= accuracy * 60.0


def test_copies_of_a_repeated_eigenvalue_are_all_found():
    for copies in (2, 3):
        diagonal = torch.linspace(0, 1, 60, dtype=torch.float64)
        diagonal[-copies:] = 3.0
        pairs = lsfast.eigsh(torch.diag(diagonal), k=4, which="LA")
        assert (pairs.values > 2.999).sum() == copies
    identity = lsfast.eigsh(2.0 * torch.eye(7, dtype=torch.float64), k=7)
    torch.testing.assert_close(identity.values, torch.full((7,), 2.0).double())


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tiny_matrices_and_k_up_to_n(n, which):
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    A = A + A.T
    exact = torch.linalg.eigvalsh(A)
    for k in range(1, n + 1):
        pairs = lsfast.eigsh(A, k, which)
        torch.testing.assert_close(pairs.values, expected(exact, k, which), rtol=0, atol=1e-13)
        assert pairs.vectors.shape == (k, n)


def test_too_few_steps_warn_and_return_honest_residuals():
    A = matrix("indefinite")
    with pytest.warns(RuntimeWarning, match=r"eigsh: \d of 4 pairs did not converge to .* in 6 products"):
        pairs = lsfast.eigsh(A, k=4, max_steps=6)
    true = (pairs.vectors @ A - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-9, atol=0)
    assert true.max() > 0.01


def test_products_are_counted_against_max_steps():
    calls = []
    A = matrix("indefinite")

    def product(rows):
        calls.append(rows.shape[0])
        return rows @ A

    operator = lsfast.aslinearoperator(product, n=N, dtype=torch.float64)
    with pytest.warns(RuntimeWarning):
        lsfast.eigsh(operator, k=3, which="BE", tolerance=1e-14, max_steps=50)
    assert calls == [2] + [1] * 50 + [3]


def test_bad_arguments_are_named():
    A = torch.eye(4)
    cases = [
        ({"k": 5}, "k must be at most n = 4, got 5"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"which": "SM"}, "which must be one of 'LM', 'LA', 'SA', 'BE', got 'SM'"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1"),
        ({"max_steps": 1}, "max_steps must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"A": A * float("nan")}, "NaN or Inf in product 0"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match="eigsh: .*" + message):
            lsfast.eigsh(**({"A": A, "k": 2} | changed))
    with pytest.raises(TypeError, match="tolerance must be a number"):
        lsfast.eigsh(A, k=1, tolerance="tight")
