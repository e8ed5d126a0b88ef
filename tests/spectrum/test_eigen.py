"""Extreme eigenpairs against a dense eigensolver."""

import pytest
import torch

import lsfast
from lsfast.spectrum import eigen
from lsfast.spectrum.krylov import BlockKrylovSpace

from .cases import NAMES, N, matrix, reflected, starts

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


def counted(product, n, dtype=torch.float64):
    """The operator of a product, and the list that collects the size of each batch."""
    calls = []

    def count(rows):
        calls.append(rows.shape[0])
        return product(rows)

    return lsfast.aslinearoperator(count, n=n, dtype=dtype), calls


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", ["outliers", "rank5", "indefinite", "clusters", "repeated"])
def test_values_are_those_of_a_dense_solver(name, which, dtype, block):
    A, k = matrix(name, dtype), 5
    exact = torch.linalg.eigvalsh(A.double())
    pairs = lsfast.eigsh(A, k, which, block=block)
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


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_residuals_are_true_and_vectors_orthonormal(name, dtype, block):
    A = matrix(name, dtype)
    pairs = lsfast.eigsh(A, 4, block=block)
    V = pairs.vectors.double()
    norm = torch.linalg.matrix_norm(A.double(), 2)
    epsilon = torch.finfo(dtype).eps
    true = (V @ A.double() - pairs.values[:, None] * V).norm(dim=1)
    assert (true - pairs.residuals).abs().max() <= 2 * N**0.5 * epsilon * norm
    # Ritz vectors are combinations of an orthonormal basis, made by a product of rank 24 in the dtype.
    assert (V @ V.T - torch.eye(4)).abs().max() <= 50 * epsilon


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_outliers_of_a_large_matrix_are_accurate(which, dtype, accuracy, block):
    n, k = 10**5, 4
    eigenvalues = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
    eigenvalues[:4] = torch.tensor([12.0, 24.0, 24.5, 60.0])
    eigenvalues[4:8] = torch.tensor([-5.0, -7.0, -7.1, -30.0])
    A, _ = counted(reflected(eigenvalues, dtype).apply, n, dtype)
    pairs = lsfast.eigsh(A, k, which, block=block)
    assert (pairs.values - expected(eigenvalues, k, which)).abs().max() <= accuracy * 60.0


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_eigenvalues_have_their_multiplicity_and_no_ghosts(dtype, block):
    n, k = 10**5, 7
    eigenvalues = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
    eigenvalues[:7] = torch.tensor([5.0, 5.0, 5.0, 4.0, 3.0, 3.0, 2.0])
    A, _ = counted(reflected(eigenvalues, dtype).apply, n, dtype)
    pairs = lsfast.eigsh(A, k, "LA", block=block)
    epsilon = torch.finfo(dtype).eps
    # Residuals are below the tolerance times |A| = 5, plus the rounding of a product with two reflections of length n:
    # in each, a sum of n terms made in blocks and the rounding of the difference, 50 epsilon of |A| with room.
    assert (pairs.values - eigenvalues[:7]).abs().max() <= 5.0 * (epsilon ** (2 / 3) + 50 * epsilon)
    V = pairs.vectors.double()
    assert (V @ V.T - torch.eye(k)).abs().max() <= 50 * epsilon


def test_a_power_law_over_ten_decades_and_a_matrix_of_low_rank():
    n = 10**5
    decades = torch.logspace(0, -10, n, dtype=torch.float64) ** 3  # so that the largest stand apart
    decades[:5] = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.01])
    rank = torch.zeros(n, dtype=torch.float64)
    rank[:3] = torch.tensor([3.0, 3.0, -2.0])
    for eigenvalues, k in ((decades.clamp(max=1.0), 2), (rank, 5)):
        A, _ = counted(reflected(eigenvalues).apply, n)
        pairs = lsfast.eigsh(A, k)
        exact = expected(eigenvalues, k, "LM")
        assert (pairs.values - exact).abs().max() <= 1e-10 * exact.abs().max()


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
    A = matrix("indefinite")
    for block, batches in ((1, [1] * 50), (4, [4] * 8 + [4] * 4 + [2])):
        operator, calls = counted(lambda rows: rows @ A, N)
        with pytest.warns(RuntimeWarning, match="did not converge"):
            lsfast.eigsh(operator, k=3, which="BE", tolerance=1e-14, max_steps=50, block=block)
        assert sum(calls) == 2 + 50 + 3
        assert (calls[0], calls[-1], max(calls[1:-1])) == (2, 3, block)
        assert sorted(calls[1:-1]) == sorted(batches)


def test_pairs_that_could_not_be_confirmed_are_reported():
    A = torch.diag(torch.linspace(1.0, 100.0, 100, dtype=torch.float64) ** 3)
    operator, calls = counted(lambda rows: rows @ A, 100)
    lsfast.eigsh(operator, k=1)
    for fewer in range(1, 4):
        with pytest.warns(RuntimeWarning, match="1 pairs converged, but .* products were too few to exclude better"):
            pairs = lsfast.eigsh(A, k=1, max_steps=sum(calls) - 3 - fewer)
        assert abs(float(pairs.values) - 1e6) <= 1e-4


def test_the_check_for_missed_pairs_is_short_where_the_gap_is_large():
    eigenvalues = torch.rand(5000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    eigenvalues[0] = 100.0
    operator, calls = counted(lambda rows: rows * eigenvalues, 5000)
    assert abs(float(lsfast.eigsh(operator, k=1, which="LA").values) - 100.0) <= 1e-8
    # 7 products reduce the rest by 200^7, and 2m - 1 >= log(1.648 sqrt(5000) 10^4) = 13.97 makes m = 8 of the check.
    assert 2 + 8 < sum(calls) <= 2 + 8 + 8 + 1


def test_a_warm_start_takes_clearly_fewer_products():
    n, k = 5000, 5
    eigenvalues = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
    eigenvalues[:5] = torch.tensor([1.5, 1.6, 1.8, 2.0, 2.2])
    for dtype in (torch.float32, torch.float64):
        cold_operator, cold = counted(reflected(eigenvalues, dtype).apply, n, dtype)
        pairs = lsfast.eigsh(cold_operator, k, "LA")
        moved = pairs.vectors + 1e-4 * starts(k, n, dtype) / n**0.5
        for block, most in ((1, 0.8), (2, 0.9)):
            operator, warm = counted(reflected(eigenvalues, dtype).apply, n, dtype)
            again = lsfast.eigsh(operator, k, "LA", start=moved, block=block)
            assert len(warm) <= most * len(cold)
            tolerance = torch.finfo(dtype).eps ** (2 / 3)  # of the residuals, and rounding as with repeated eigenvalues
            bound = 2.2 * (tolerance + 50 * torch.finfo(dtype).eps)
            assert (again.values - eigenvalues[:5].flip(0)).abs().max() <= bound


def test_a_start_that_says_too_little_is_completed_by_random_vectors():
    A = matrix("outliers")
    vector = starts(1, N)
    zero_sum = torch.cat([vector, -vector])
    for start, block in ((zero_sum, 1), (torch.cat([vector, 2.0 * vector, vector]), 3), (vector, 4)):
        kept = start.clone()
        pairs = lsfast.eigsh(A, 3, start=start, block=block)
        assert (pairs.values - torch.tensor([60.0, 35.0, 20.0])).abs().max() <= 1e-8
        assert torch.equal(start, kept)
    exact = torch.zeros(1, 50, dtype=torch.float64)
    exact[0, 3] = 1.0  # an eigenvector, but not the wanted one: its space is invariant
    pairs = lsfast.eigsh(torch.diag(torch.arange(50.0, dtype=torch.float64)), 2, start=exact)
    assert (pairs.values - torch.tensor([49.0, 48.0])).abs().max() <= 1e-9


def test_the_basis_fits_into_the_memory_limit(monkeypatch):
    n, k = 2000, 3
    eigenvalues = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    eigenvalues[:4] = torch.tensor([2.0, 2.0, 3.0, 4.0])
    operator, _ = counted(reflected(eigenvalues).apply, n)
    spaces = []
    monkeypatch.setattr(eigen, "BlockKrylovSpace", lambda *args: spaces.append(BlockKrylovSpace(*args)) or spaces[-1])
    for block in (1, 2):
        usual = lsfast.eigsh(operator, k, block=block)
        for dimension in (k + 2 * block, k + 4 * block):
            limit = (dimension + block) * n * 8 + 7
            small = lsfast.eigsh(operator, k, block=block, memory_limit=limit)
            torch.testing.assert_close(small.values, usual.values, rtol=0, atol=1e-9)
            assert spaces[-1].dimension == dimension
            assert spaces[-1].rows.numel() * 8 <= limit < spaces[0].rows.numel() * 8
    with pytest.raises(ValueError, match=f"memory_limit must be at least {6 * n * 8} bytes for 3 pairs of length 2000"):
        lsfast.eigsh(operator, k, memory_limit=6 * n * 8 - 1)


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
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"memory_limit": 0}, "memory_limit must be at least 1, got 0"),
        ({"start": torch.ones(1, 5)}, r"start must have shape \[p, 4\] with p of 1 or more, got \[1, 5\]"),
        ({"start": torch.ones(4)}, r"start must have shape \[p, 4\]"),
        ({"start": torch.ones(1, 4).double()}, "start must have dtype torch.float32, got torch.float64"),
        ({"start": torch.tensor([[1.0] * 4, [0.0] * 4])}, "finite rows that are not 0, got row 1"),
        ({"start": torch.full((1, 4), float("nan"))}, "finite rows that are not 0, got row 0"),
        ({"checkpoint": "/nowhere/at/all"}, "checkpoint must lie in a folder that exists"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match="eigsh: .*" + message):
            lsfast.eigsh(**({"A": A, "k": 2} | changed))
    products = []

    def breaks(rows):
        products.append(len(rows))
        return rows * torch.arange(40.0) / (0.0 if len(products) == 4 else 1.0)

    operator = lsfast.aslinearoperator(breaks, n=40, dtype=torch.float32)
    with pytest.raises(ValueError, match="eigsh: A must give finite products, got NaN or Inf in product 6"):
        lsfast.eigsh(operator, k=2, block=3)
    with pytest.raises(TypeError, match="tolerance must be a number"):
        lsfast.eigsh(A, k=1, tolerance="tight")
