"""Estimates of the diagonal, and of the sum of its squares."""

import pytest
import torch

import lsfast
from lsfast.spectrum.probes import draw

from .cases import starts
from .closed_forms import rotated, toeplitz, toeplitz_inverse

DISTRIBUTIONS = ("rademacher", "gaussian")


def unsymmetric(n=30):
    return starts(n, n) + torch.diag(torch.linspace(-3.0, 5.0, n)).double()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("A", [rotated(torch.linspace(-1.0, 4.0, 30).double()), unsymmetric(), toeplitz_inverse(30)])
def test_diagonal_is_unbiased_and_has_the_variance_and_error_of_its_formulas(A, distribution):
    # Off-diagonal squares s_i = sum_{j != i} a_ij^2. Signs: variance s_i / m. Gaussian: given all v_ki the error of
    # entry i is normal with variance s_i / sum_k v_ki^2, so it is (s_i / m)^(1/2) times a t variable of m degrees of
    # freedom: variance s_i / (m - 2), kurtosis 3 + 6 / (m - 4) = 3.5 (signs: at most 3).
    m, seeds = 16, 200
    results = [lsfast.diagonal(A, m, seed, distribution) for seed in range(seeds)]
    values, errors = torch.stack([r.value for r in results]), torch.stack([r.stderr for r in results])
    spread = values.std(0)
    assert ((values.mean(0) - A.diagonal()).abs() <= 4 * spread / seeds**0.5).all()
    off = (A**2).sum(1) - A.diagonal() ** 2
    variance = (off / (m if distribution == "rademacher" else m - 2)).sum().item()
    # A mean of 200 squares of kurtosis 3.5 is known to sqrt(2.5 / 200) = 11%, were all entries the same one: four
    # standard errors are 45%.
    assert ((values - A.diagonal()) ** 2).mean(0).sum().item() == pytest.approx(variance, rel=0.45)
    # The ratio's error is of first order in 1/m: of the t variable's m / (m - 2), 14% of the variance, it may miss all.
    missed = 0.0 if distribution == "rademacher" else 2 / m
    assert (errors**2).mean(0).sum().item() == pytest.approx(variance, rel=0.45 + missed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_running_sums_give_the_ratio_of_sums_and_its_error(distribution, dtype):
    A, m = unsymmetric(40).to(dtype), 150  # three chunks
    V = draw(lsfast.aslinearoperator(A), 0, m, 7, distribution)
    x, z = V.double() * (A @ V.T).T.double(), V.double() ** 2
    ratio = x.sum(0) / z.sum(0)
    error = ((x - ratio * z) ** 2).sum(0).mul(m / (m - 1)).sqrt() / z.sum(0)
    estimate = lsfast.diagonal(A, m, 7, distribution)
    # Products in another chunking differ by n epsilon |a_i||v|, which the weights average.
    bound = 40 * torch.finfo(dtype).eps * A.double().norm(dim=1) * 40**0.5
    assert ((estimate.value - ratio).abs() <= bound).all()
    assert ((estimate.stderr - error).abs() <= bound).all()
    assert estimate.value.dtype == estimate.stderr.dtype == torch.float64


def test_the_diagonal_of_a_diagonal_matrix_is_exact_with_signs():
    values = torch.logspace(-8, 8, 50).double()
    estimate = lsfast.diagonal(torch.diag(values), 7)
    assert torch.equal(estimate.value, values)
    assert not estimate.stderr.any()
    assert lsfast.diagonal_squared_sum(torch.diag(values), 16) == lsfast.Estimate(
        pytest.approx((values**2).sum().item(), rel=1e-14), 0.0
    )


def test_one_product_says_nothing_of_its_error():
    estimate = lsfast.diagonal(toeplitz(5), 1)
    assert estimate.stderr.isnan().all()
    assert estimate.value.isfinite().all()


@pytest.mark.parametrize("num_products", [3, 8, 18])
@pytest.mark.parametrize("A", [toeplitz(40), unsymmetric()])
def test_squared_sum_is_unbiased_with_an_error_on_the_side_of_caution(A, num_products):
    seeds = 400
    results = [lsfast.diagonal_squared_sum(A, num_products, seed) for seed in range(seeds)]
    values = torch.tensor([r.value for r in results]).double()
    assert abs(values.mean() - (A.diagonal() ** 2).sum()) <= 4 * values.std() / seeds**0.5
    # With g groups, the part of the variance that is linear in the noise is counted once, the product of two noises
    # 2 (g - 1) / (g - 2) times (its jackknife has the mean 4 s / (g (g - 2)), its variance is 2 s / (g (g - 1))).
    g = min(8, num_products)
    ratio = (torch.tensor([r.stderr for r in results]).double() ** 2).mean() / values.var()
    # The variance of 400 values of kurtosis up to 6 (products of normal variables) is known to 11%: four are 45%.
    assert 1 - 0.45 <= ratio <= (1 + 0.45) * 2 * (g - 1) / (g - 2)


def test_squared_sum_of_two_products_is_their_product():
    A = unsymmetric()
    V = draw(lsfast.aslinearoperator(A), 0, 2, 3)
    x = V * (A @ V.T).T
    estimate = lsfast.diagonal_squared_sum(A, 2, 3)
    assert estimate.value == pytest.approx((x[0] @ x[1]).item(), rel=1e-12)
    assert estimate.stderr != estimate.stderr


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="diagonal_squared_sum: num_products must be at least 2, got 1"):
        lsfast.diagonal_squared_sum(toeplitz(4), 1)
    with pytest.raises(ValueError, match="diagonal: A must give finite products, got NaN or Inf in product 0"):
        lsfast.diagonal(toeplitz(4) * float("nan"))
    with pytest.raises(ValueError, match="diagonal: distribution must be one of 'rademacher', 'gaussian', got 'signs'"):
        lsfast.diagonal(toeplitz(4), distribution="signs")
