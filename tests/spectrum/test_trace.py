"""Hutchinson's trace estimator."""

import math

import pytest
import torch

import lsfast

from .cases import N, matrix, spectra, starts


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_trace_is_unbiased_within_four_standard_errors_over_seeds(distribution):
    A = matrix("indefinite")
    values = torch.tensor([lsfast.trace(A, "hutchinson", 4, seed, distribution).value for seed in range(200)])
    error = values.std() / 200**0.5
    assert abs(values.mean() - A.trace()) <= 4 * error
    # The variance of a product is 2 |A|_F^2 less the diagonal's share for signs; four products a value.
    squares = (A**2).sum() - ((A.diagonal() ** 2).sum() if distribution == "rademacher" else 0.0)
    # The variance of 200 values is known to about 10%: four standard errors of it are 40%.
    assert values.var().item() == pytest.approx(2 * squares.item() / 4, rel=0.4)


def test_standard_error_is_that_of_the_products():
    A = matrix("indefinite")
    estimate = lsfast.trace(A, num_products=70, seed=3)  # more than one chunk
    assert estimate.stderr == pytest.approx(math.sqrt(2 * ((A**2).sum() - (A.diagonal() ** 2).sum()) / 70), rel=0.35)
    assert math.isnan(lsfast.trace(A, num_products=1).stderr)


def test_trace_of_a_diagonal_matrix_is_exact_with_signs():
    values = spectra()["outliers"]
    estimate = lsfast.trace(torch.diag(values), num_products=3)
    assert estimate.value == pytest.approx(values.sum().item(), rel=1e-13)


def test_trace_of_the_density_agrees():
    A = matrix("power_law")
    s = lsfast.spectral_density(A, probes=6, steps=10, seed=2)
    t = lsfast.trace(A, num_products=6, seed=2)  # the same probes: v'Av is the first moment of their measures
    assert s.trace.value == pytest.approx(t.value, rel=1e-12)
    assert s.trace.stderr == pytest.approx(t.stderr, rel=1e-9)


def test_an_unsymmetric_matrix_has_a_trace():
    A = starts(N) + 10 * torch.eye(N).double()
    estimate = lsfast.trace(A, num_products=100)
    assert abs(estimate.value - A.trace().item()) <= 4 * estimate.stderr


def test_bad_arguments_are_named():
    A = torch.eye(4)
    cases = [
        ({"method": "hutch"}, "method must be one of 'hutchinson', got 'hutch'"),
        ({"distribution": "uniform"}, "distribution must be one of 'rademacher', 'gaussian', got 'uniform'"),
        ({"num_products": 0}, "num_products must be at least 1, got 0"),
        ({"seed": -2}, "seed must be at least 0, got -2"),
        ({"A": A * float("inf")}, "NaN or Inf in product 0"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match="trace: .*" + message):
            lsfast.trace(**({"A": A} | changed))


def two_layers() -> lsfast.HessianOperator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
        data = (torch.randn(20, 4).double(), torch.randint(0, 3, (20,)))
    return lsfast.HessianOperator(lsfast.Objective(model, torch.nn.CrossEntropyLoss(), data))


def test_traces_of_parameters_add_up_to_the_trace_and_estimate_their_blocks():
    H = two_layers()
    for A in (H, 2.0 * H + 0.5, H.block("2.*")):
        traces = lsfast.parameter_traces(A, num_products=400, seed=1)
        whole = lsfast.trace(A, num_products=400, seed=1)
        assert sum(trace.value for trace in traces.values()) == pytest.approx(whole.value, rel=1e-12)
        dense = A.to_dense().diagonal()
        for name, part in A.parts.items():
            assert abs(traces[name].value - float(dense[part].sum())) < 4.0 * traces[name].stderr
    assert list(traces) == ["2.weight", "2.bias"]


def test_traces_of_parameters_need_parameters():
    with pytest.raises(ValueError, match="A must have named parameters, got Tensor"):
        lsfast.parameter_traces(torch.eye(3))
    with pytest.raises(ValueError, match="parameter_traces: num_products must be"):
        lsfast.parameter_traces(two_layers(), num_products=0)
