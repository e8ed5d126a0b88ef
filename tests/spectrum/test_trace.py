"""Trace estimators: Hutchinson, Hutch++ and XTrace."""

import math

import pytest
import torch

import lsfast
from lsfast.spectrum.probes import draw
from lsfast.spectrum.sketch import _nearly_orthonormal

from .cases import N, matrix, spectra, starts
from .closed_forms import counted, rotated, toeplitz

METHODS = ("hutchinson", "hutch++", "xtrace")
DISTRIBUTIONS = ("rademacher", "gaussian")


def estimates(A, method, num_products, distribution, seeds):
    """Values and standard errors [seeds]."""
    results = [lsfast.trace(A, method, num_products, seed, distribution) for seed in range(seeds)]
    return tuple(torch.tensor([getattr(r, name) for r in results]).double() for name in ("value", "stderr"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_unbiased_also_for_an_unsymmetric_matrix(method, distribution):
    matrices = (rotated(0.7 ** torch.arange(30.0).double()), starts(30, 30) + torch.eye(30), toeplitz(30))
    for A in matrices:
        values, _ = estimates(A, method, 9, distribution, seeds=200)
        assert abs(values.mean() - A.trace()) <= 4 * values.std() / 200**0.5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_standard_error_is_the_spread_over_seeds(method, distribution):
    # The samples are independent, so the mean of stderr^2 is the variance. From 300 values of an estimator that is
    # nearly normal the variance is known to sqrt(2 / 300) = 8%: four standard errors of it are 33%.
    values, errors = estimates(matrix("indefinite"), method, 24, distribution, seeds=300)
    assert (errors**2).mean() / values.var() == pytest.approx(1.0, rel=0.33)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_error_of_xtrace_is_in_the_range_its_docstring_states(distribution):
    # 0.7 to 1.2 times the spread, which 200 values tell to sqrt(1 / 400) = 5%: four standard errors are 20%.
    for values in (0.8 ** torch.arange(60.0).double(), torch.linspace(1.0, 3.0, 60).double()):
        found, errors = estimates(rotated(values), "xtrace", 24, distribution, seeds=200)
        assert 0.8 * 0.7 <= (errors**2).mean().sqrt() / found.std() <= 1.2 * 1.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("method", "rank", "num_products"), [("hutch++", 8, 24), ("xtrace", 8, 18), ("xtrace", 3, 30)])
def test_a_sketch_of_at_least_the_rank_makes_the_trace_exact(method, rank, num_products, distribution, dtype):
    n = 60
    A = rotated(torch.cat([torch.linspace(-2.0, 3.0, rank), torch.zeros(n - rank)]).double()).to(dtype)
    # Sums of n terms, rounded, in n products of vectors of length sqrt(n): n^2 epsilon |A|_F and less.
    bound = n**2 * torch.finfo(dtype).eps * A.norm().item()
    for seed in range(20):
        estimate = lsfast.trace(A, method, num_products, seed, distribution)
        assert abs(estimate.value - A.double().trace().item()) <= bound
        assert estimate.stderr <= bound


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("spectrum", ["decaying", "flat", "low rank"])
def test_xtrace_is_the_mean_of_leave_one_out_estimates(spectrum, distribution):
    n, m = 50, 12
    values = {
        "decaying": 0.6 ** torch.arange(n).double(),
        "flat": torch.linspace(-1.0, 2.0, n).double(),
        "low rank": torch.cat([torch.ones(m + 5), torch.zeros(n - m - 5)]).double(),
    }[spectrum]
    A = rotated(values) + 0.1 * starts(n, n)  # not symmetric
    for seed in range(3):
        probes = draw(lsfast.aslinearoperator(A), 0, m, seed, distribution).T
        terms = []
        for i in range(m):
            Q = torch.linalg.qr(torch.cat([A @ probes[:, :i], A @ probes[:, i + 1 :]], 1)).Q
            x = probes[:, i] - Q @ (Q.T @ probes[:, i])
            scale = (n - m + 1) / (x @ x) if distribution == "gaussian" else 1.0
            terms.append((Q.T @ A @ Q).trace() + scale * (x @ A @ x))
        terms = torch.stack(terms)
        estimate = lsfast.trace(A, "xtrace", 2 * m + 1, seed, distribution)
        bound = n**2 * 2.0**-52 * A.norm().item()  # as above
        assert abs(estimate.value - terms.mean().item()) <= bound
        assert abs(estimate.stderr - (terms.std() / m**0.5).item()) <= bound


def test_xtrace_survives_probes_whose_products_coincide():
    # Of 2^4 signs on 5 coordinates, up to a factor of -1, two vectors are often the same.
    A = rotated(torch.tensor([3.0, -1.0, 2.0, 0.5, 1.0]).double())
    same = [seed for seed in range(100) if abs((p := draw(lsfast.aslinearoperator(A), 0, 2, seed))[0] @ p[1]) == 5]
    assert same
    for seed in same:  # P_i is the projector on the one product there is, and the two terms are equal
        v = draw(lsfast.aslinearoperator(A), 0, 1, seed)[0]
        q = A @ v / (A @ v).norm()
        x = v - q * (q @ v)
        estimate = lsfast.trace(A, "xtrace", 4, seed)
        assert estimate.value == pytest.approx((q @ A @ q + x @ A @ x).item(), abs=1e-13)
        assert estimate.stderr == pytest.approx(0.0, abs=1e-13)
    values, _ = estimates(A, "xtrace", 4, "rademacher", seeds=500)
    assert abs(values.mean() - A.trace()) <= 4 * values.std() / 500**0.5


def test_xtrace_and_hutch_beat_hutchinson_by_the_predicted_factor_on_a_decaying_spectrum():
    # Gaussian probes. Hutchinson: variance 2 |A|_F^2 / N for N products. A sketch of s = k + p vectors leaves
    # E |(I - QQ') A|_F^2 <= (1 + k / (p - 1)) tail(k), tail(k) = sum_{j > k} lambda_j^2 (Halko, Martinsson & Tropp,
    # SIAM Rev. 53, 2011, theorem 10.5), and a sample of it has twice that variance, no more if it is normalized.
    # Hutch++ averages N/3 samples of a sketch of N/3; XTrace is a mean of N/2 such terms with a sketch of N/2 - 1, of
    # a variance that is at most that of one term.
    N_products, n, seeds = 36, 80, 150
    values = 0.7 ** torch.arange(n).double()
    A, squares = rotated(values), values**2

    def left(sketch):
        return min((1 + k / (sketch - k - 1)) * squares[k:].sum().item() for k in range(sketch - 1))

    hutchinson = 2 * squares.sum().item() / N_products
    predicted = {"hutch++": 2 * left(N_products // 3) / (N_products // 3), "xtrace": 2 * left(N_products // 2 - 1)}
    spread = {
        m: (estimates(A, m, N_products, "gaussian", seeds)[0] - A.trace()).square().mean().item() for m in METHODS
    }
    # The means of 150 squares are known to about sqrt(2 / 150) = 12%, which the bounds have to spare.
    assert spread["hutchinson"] == pytest.approx(hutchinson, rel=0.48)
    for method, variance in predicted.items():
        assert variance < hutchinson / 4  # the prediction says something
        assert spread["hutchinson"] / spread[method] >= hutchinson / variance
    assert spread["xtrace"] < spread["hutch++"]


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_no_more_products_are_used_than_allowed_and_n_give_the_trace_itself(method):
    A = toeplitz(30)
    for budget in range(4, 40):
        operator, used = counted(A)
        estimate = lsfast.trace(operator, method, budget)
        assert sum(used) <= budget
        assert sum(used) >= min(budget - 1, 30)
        if budget >= 30:
            assert estimate == lsfast.Estimate(60.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_trace_of_zero_is_zero_and_scale_does_not_matter(method):
    assert lsfast.trace(torch.zeros(50, 50), method, 12) == lsfast.Estimate(0.0, 0.0)
    A = rotated(0.5 ** torch.arange(50).double())
    expected, found = lsfast.trace(A, method, 12), lsfast.trace(A * 2.0**-900, method, 12)
    assert found.value * 2.0**900 == pytest.approx(expected.value, rel=1e-12)


def test_the_basis_of_a_sketch_is_orthonormal_to_the_rounding_of_its_numbers():
    for dtype in (torch.float32, torch.float64):
        rows = starts(4, 300_000, dtype) * torch.logspace(0, -3, 300_000).to(dtype)
        rows[3] = rows[0] + rows[1] - rows[2]  # a sketch of rank 3
        for sketch in (rows[:3], rows, torch.zeros_like(rows)):
            Q, correction = _nearly_orthonormal(sketch)
            basis = (correction.to(dtype) @ Q).double()
            gram = basis @ basis.T
            # An entry is a sum of 4 products of rounded factors: 6 epsilon of a product of lengths 1. The inner
            # products themselves are summed in float64: n 2^-53 at most.
            bound = 6 * torch.finfo(dtype).eps + 300_000 * 2.0**-53
            assert (gram - torch.eye(sketch.shape[0]).double()).abs().max() <= bound


def test_a_product_of_the_basis_that_is_not_finite_is_named():
    A = toeplitz(60)

    def product(rows):  # rows of signs are the probes
        return A @ rows.T if bool((rows.abs() == 1).all()) else A @ rows.T * float("nan")

    operator = lsfast.aslinearoperator(lambda rows: product(rows).T.contiguous(), n=60, dtype=torch.float64)
    with pytest.raises(ValueError, match="trace: A must give finite products, got NaN or Inf in product 4"):
        lsfast.trace(operator, "hutch++", 12)
    with pytest.raises(ValueError, match="trace: A must give finite products, got NaN or Inf in product 6"):
        lsfast.trace(operator, "xtrace", 12)


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
        ({"method": "hutch"}, r"method must be one of 'hutchinson', 'hutch\+\+', 'xtrace', got 'hutch'"),
        ({"method": "hutch++", "num_products": 2}, r"num_products must be at least 3 for 'hutch\+\+', got 2"),
        ({"method": "xtrace", "num_products": 3}, "num_products must be at least 4 for 'xtrace', got 3"),
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
