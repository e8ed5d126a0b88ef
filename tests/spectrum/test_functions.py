"""Traces of functions, log-determinants and norms."""

import math
import re

import pytest
import torch

import lsfast
from lsfast.spectrum.probes import draw

from .cases import N, matrix, spectra
from .closed_forms import (
    bipartite,
    complete,
    cycle,
    laplacian,
    rotated,
    stencil,
    toeplitz,
    toeplitz_eigenvalues,
    toeplitz_inverse,
)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_full_depth_gives_the_quadratic_form_of_the_logarithm_of_each_probe(shift):
    n, probes = 40, 5
    A = toeplitz(n)
    values, vectors = torch.linalg.eigh(A)
    V = draw(lsfast.aslinearoperator(A), 0, probes, seed=4)
    forms = (((V @ vectors) ** 2) * (values + shift).log()).sum(1)
    estimate = lsfast.logdet(A, shift, probes=probes, steps=n, seed=4)
    # Nodes are off by n epsilon |A| or less, which the logarithm magnifies by 1 / smallest, and the form by v'v = n.
    bound = n * n * 2.0**-52 * 4.0 / (values[0].item() + shift)
    assert abs(estimate.value - forms.mean().item()) <= bound
    assert abs(estimate.stderr - (forms.std() / probes**0.5).item()) <= bound


@pytest.mark.parametrize("n", [10, 60])
def test_log_determinant_of_the_toeplitz_matrix(n):
    estimate = lsfast.logdet(stencil(n), probes=100, steps=n)
    assert abs(estimate.value - math.log(n + 1)) <= 4 * estimate.stderr
    # Signs: the variance of v'log(A)v is twice the sum of squares off the diagonal of log(A).
    values, vectors = torch.linalg.eigh(toeplitz(n))
    L = (vectors * values.log()) @ vectors.T
    spread = (2 * ((L**2).sum() - (L.diagonal() ** 2).sum()) / 100) ** 0.5
    # A variance from 100 values of a quadratic form (kurtosis below 15) is known to 37%, its root to 19%.
    assert estimate.stderr == pytest.approx(spread.item(), rel=4 * 0.19)


@pytest.mark.parametrize(
    ("edges", "trees"),
    [(cycle(12), 12), (complete(9), 9**7), (bipartite(5, 7), 5**6 * 7**4)],
    ids=["cycle", "complete", "bipartite"],
)
def test_a_reduced_laplacian_counts_spanning_trees(edges, trees):
    reduced = laplacian(edges)[1:, 1:].contiguous()  # Kirchhoff: its determinant is their number
    estimate = lsfast.logdet(reduced, probes=200, steps=30)
    assert abs(estimate.value - math.log(trees)) <= 4 * estimate.stderr
    assert estimate.stderr < 0.5  # that is, the number itself within a factor of 8


@pytest.mark.parametrize("shift", [0.1, 2.0])
def test_log_determinant_and_inverse_trace_of_a_shifted_cycle(shift):
    n = 32
    values = 2 - 2 * torch.cos(2 * torch.pi * torch.arange(n).double() / n) + shift
    L = laplacian(cycle(n))
    found = lsfast.logdet(L, shift, probes=60, steps=n)
    assert abs(found.value - values.log().sum().item()) <= 4 * found.stderr
    found = lsfast.function_trace(L, lambda x: 1 / (x + shift), probes=60, steps=n)
    assert abs(found.value - (1 / values).sum().item()) <= 4 * found.stderr


def test_function_trace_is_that_of_the_density():
    A = matrix("outliers")
    density = lsfast.spectral_density(A, probes=3, steps=12, seed=5)
    assert lsfast.function_trace(A, torch.cosh, probes=3, steps=12, seed=5) == density.function_trace(torch.cosh)


def test_too_few_steps_err_to_the_high_side_of_the_logarithm():
    A = toeplitz(40)
    values = [lsfast.logdet(A, probes=2, steps=m).value for m in (1, 2, 4, 8, 16, 40)]
    assert all(first > second for first, second in zip(values, values[1:], strict=False))


def test_padding_has_no_logarithm_and_is_no_error():
    A = torch.diag(torch.tensor([1.0, 2.0, 4.0] * 5).double())
    assert lsfast.logdet(A, probes=3, steps=64).value == pytest.approx(5 * math.log(8), rel=1e-13)
    gaps = lsfast.function_trace(A, lambda x: x.log(), probes=3, steps=2)  # no padding: the same call works
    assert math.isfinite(gaps.value)


@pytest.mark.parametrize("A", [matrix("indefinite"), torch.diag(torch.arange(4.0)).double(), torch.zeros(4, 4)])
def test_a_node_that_is_not_positive_is_named_with_a_shift_that_does(A):
    with pytest.raises(ValueError, match="logdet: A \\+ shift I must be positive definite") as error:
        lsfast.logdet(A, shift=-0.25, probes=3, steps=64)
    smallest = torch.linalg.eigvalsh(A)[0].item() - 0.25
    assert re.search(rf"got {smallest:.2e}"[:-6], str(error.value))
    assert "with shift = -0.25" in str(error.value)
    enough = float(re.search(r"shift = (\S+) makes all nodes positive", str(error.value))[1])
    assert math.isfinite(lsfast.logdet(A, shift=enough, probes=3, steps=64).value)


def test_functions_name_bad_arguments():
    A = toeplitz(6)
    with pytest.raises(TypeError, match="function_trace: f must be a function of nodes, got str"):
        lsfast.function_trace(A, "log")
    with pytest.raises(ValueError, match=r"function_trace: f must be finite at the nodes, got nan at -?\d"):
        lsfast.function_trace(A - 3 * torch.eye(6), torch.log)
    with pytest.raises(ValueError, match="function_trace: f must return a tensor"):
        lsfast.function_trace(A, torch.sum)
    with pytest.raises(TypeError, match="logdet: shift must be a number, got '1'"):
        lsfast.logdet(A, shift="1")
    with pytest.raises(ValueError, match="logdet: shift must be finite, got nan"):
        lsfast.logdet(A, shift=float("nan"))
    with pytest.raises(ValueError, match="A must be symmetric"):
        lsfast.logdet(A + torch.diag(torch.ones(5), 1))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_frobenius_norm_has_the_error_of_the_delta_method(distribution):
    A, m, seeds = rotated(torch.linspace(-1.0, 2.0, 40).double()), 32, 300
    results = [lsfast.frobenius_norm(A, m, seed, distribution) for seed in range(seeds)]
    values = torch.tensor([r.value for r in results]).double()
    # The mean of the squares is unbiased.
    squares = values**2
    assert abs(squares.mean() - (A**2).sum()) <= 4 * squares.std() / seeds**0.5
    errors = torch.tensor([r.stderr for r in results]).double()
    # The variance of |Av|^2 is that of v'(A'A)v; from 300 values a variance is known to 8%: four are 33%. The delta
    # method leaves out terms of the relative variance of the mean, below 1 / 32 here.
    B = A.T @ A
    variance = 2 * ((B**2).sum() - ((B.diagonal() ** 2).sum() if distribution == "rademacher" else 0.0)) / m
    expected = variance / (4 * (A**2).sum())
    assert values.var().item() == pytest.approx(expected.item(), rel=0.36)
    assert (errors**2).mean().item() == pytest.approx(expected.item(), rel=0.36)


def test_norms_of_the_toeplitz_matrix():
    n = 50
    found = lsfast.frobenius_norm(stencil(n), 200)
    assert abs(found.value - math.sqrt(4 * n + 2 * (n - 1))) <= 4 * found.stderr
    found = lsfast.spectral_norm(stencil(n))
    largest = toeplitz_eigenvalues(n)[-1].item()
    assert abs(found.value - largest) <= found.stderr + 2.0**-50 * n
    assert found.stderr <= 1e-9
    found = lsfast.spectral_norm(toeplitz_inverse(n))
    assert found.value == pytest.approx(1 / toeplitz_eigenvalues(n)[0].item(), rel=1e-12)


def test_frobenius_norm_is_the_second_moment_of_the_same_probes_and_exact_for_a_diagonal():
    A = matrix("power_law")
    second = lsfast.function_trace(A, lambda x: x**2, probes=6, steps=4, seed=2)
    found = lsfast.frobenius_norm(A, 6, seed=2)
    assert found.value**2 == pytest.approx(second.value, rel=1e-12)
    assert found.stderr * 2 * found.value == pytest.approx(second.stderr, rel=1e-9)
    assert lsfast.frobenius_norm(torch.diag(torch.tensor([2.0, 3.0, 6.0])), 4) == lsfast.Estimate(7.0, 0.0)
    assert lsfast.frobenius_norm(torch.zeros(3, 3), 4) == lsfast.Estimate(0.0, 0.0)


@pytest.mark.parametrize("name", ["outliers", "indefinite", "repeated"])
def test_an_eigenvalue_lies_within_the_error_of_the_spectral_norm(name):
    values = spectra()[name]
    largest = values.abs().max().item()
    rounding = N * 2.0**-52 * largest
    for sign in (1.0, -1.0):
        found = lsfast.spectral_norm(sign * matrix(name))
        assert abs(found.value - largest) <= found.stderr + rounding
    with pytest.warns(RuntimeWarning, match="did not converge"):
        rough = lsfast.spectral_norm(matrix("indefinite"), max_steps=5)
    indefinite = spectra()["indefinite"].abs()
    assert (indefinite - rough.value).abs().min() <= rough.stderr
    assert rough.value <= indefinite.max() + rounding
    assert rough.stderr > 1e-6
