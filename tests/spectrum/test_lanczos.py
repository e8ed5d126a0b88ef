"""The Lanczos recurrence: its identity, the orthogonality of its basis, breakdown, and what it rejects."""

from dataclasses import replace

import pytest
import torch

import lsfast
from lsfast.spectrum import reference
from lsfast.spectrum.basis import plan
from lsfast.spectrum.recurrence import Recurrence

from .cases import NAMES, N, large_spectra, matrix, reflected, spectra, starts, tridiagonal_matrix

DTYPES = (torch.float32, torch.float64)


def norm_of(name):
    return spectra()[name].abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_recurrence_identity_holds(name, dtype, steps):
    A = matrix(name, dtype)
    T = lsfast.lanczos(A, starts(3, dtype=dtype), steps)
    Q, exact = T.basis.double(), A.double()
    left = Q @ exact - tridiagonal_matrix(T.alpha, T.beta) @ Q
    left[:, -1] -= T.residual.double()
    # A row of the defect: the dense product is off by at most about sqrt(N) eps |A|, dropped projections and roundings
    # of q, w and beta by a few eps |A|; a beta cut at breakdown by sqrt(N) eps |T|, |T| <= 3 |A|: in all 5 sqrt(N).
    bound = 5 * N**0.5 * torch.finfo(dtype).eps * norm_of(name)
    assert left.norm(dim=2).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_basis_is_orthonormal_to_ten_epsilon(name, dtype):
    T = lsfast.lanczos(matrix(name, dtype), starts(3, dtype=dtype), N)
    Q = T.basis.double()
    identity = torch.diag_embed((torch.arange(N) < T.steps[:, None]).double())
    assert (Q @ Q.mT - identity).abs().max() <= 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("basis_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_basis_is_orthonormal_to_ten_epsilon_of_its_own_dtype(name, basis_dtype, dtype):
    T = lsfast.lanczos(matrix(name, dtype), starts(3, dtype=dtype), 40, basis_dtype=basis_dtype)
    assert T.basis.dtype == basis_dtype
    assert T.residual.dtype == dtype
    Q = T.basis.double()
    identity = torch.diag_embed((torch.arange(40) < T.steps[:, None]).double())
    assert (Q @ Q.mT - identity).abs().max() <= 10 * torch.finfo(basis_dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(large_spectra(10)))
def test_outliers_are_found_once_at_n_1e5(name, dtype):
    n, m = 10**5, 40
    eigenvalues = large_spectra(n)[name]
    T = lsfast.lanczos(reflected(eigenvalues, dtype), starts(1, n, dtype), m)
    m = int(T.steps[0])
    Q = T.basis[0, :m].double()
    assert (Q @ Q.T - torch.eye(m)).abs().max() <= 10 * torch.finfo(dtype).eps
    nodes = torch.linalg.eigvalsh(tridiagonal_matrix(T.alpha, T.beta)[0, :m, :m])
    norm = eigenvalues.abs().max()
    tolerance = (1e-10 if dtype == torch.float64 else 1e-5) * norm
    for outlier in eigenvalues[:5]:
        assert int(((nodes - outlier).abs() <= tolerance).sum()) == 1  # there, and no ghost
    assert nodes.min() >= eigenvalues.min() - tolerance
    assert nodes.max() <= eigenvalues.max() + tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["outliers", "indefinite", "power_law", "clusters"])
def test_selective_reorthogonalization_leaves_no_ghosts(name, dtype):
    A, m = matrix(name, dtype), 60
    T = lsfast.lanczos(A, starts(2, dtype=dtype), m, reorthogonalize="selective")
    full = lsfast.lanczos(A, starts(2, dtype=dtype), m)
    # Semi-orthogonality keeps T the projection of A on the span of the basis to about epsilon (Simon, Linear Algebra
    # Appl. 61, 1984), up to the accumulation of m roundings.
    for probe in range(2):
        size = min(int(T.steps[probe]), int(full.steps[probe]))
        nodes, expected = (
            torch.linalg.eigvalsh(tridiagonal_matrix(X.alpha, X.beta)[probe, :size, :size]) for X in (T, full)
        )
        Q = T.basis[probe, :size].double()
        # A step loses eps |A| / beta between neighbours besides.
        epsilon = torch.finfo(dtype).eps
        loss = max(epsilon**0.5, epsilon * norm_of(name) / float(T.beta[probe, : size - 1].min()))
        room = 1 if name == "outliers" else 10  # clustered pairs converge together, each with its own loss
        assert (Q @ Q.T - torch.eye(size)).abs().max() <= room * loss
        if name == "outliers":
            for outlier in (20.0, 35.0, 60.0):
                assert int(((nodes - outlier).abs() < 1e-3).sum()) == 1
        else:
            assert (nodes[[0, -1]] - expected[[0, -1]]).abs().max() <= 1e-4 * norm_of(name)


def test_selective_reorthogonalization_prevents_what_none_shows():
    A, m = matrix("outliers"), 60
    T = lsfast.lanczos(A, starts(2), m, reorthogonalize="selective")
    ghosts = lsfast.lanczos(A, starts(2), m, reorthogonalize="none")
    counts = [
        int(((torch.linalg.eigvalsh(tridiagonal_matrix(X.alpha, X.beta)) - 60.0).abs() < 1e-6).sum(1).min())
        for X in (T, ghosts)
    ]
    assert counts[0] == 1
    assert counts[1] > 1


@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16])
def test_a_narrower_basis_keeps_the_eigenvalues_of_the_operators_dtype(basis_dtype):
    dtype = torch.float64 if basis_dtype == torch.float32 else torch.float32
    n = 2000
    eigenvalues = large_spectra(n)["outliers"]
    T = lsfast.lanczos(reflected(eigenvalues, dtype), starts(1, n, dtype), 40, basis_dtype=basis_dtype)
    nodes = torch.linalg.eigvalsh(tridiagonal_matrix(T.alpha, T.beta)[0])
    # Rows are off by u = eps(basis) / 2 of an element, at random: projections by u / sqrt(n), and eigenvalues by the
    # square of that, with m = 40 rows and room of 10, beside the rounding of the products.
    u = torch.finfo(basis_dtype).eps / 2
    bound = (40 * 10 * u**2 / n**0.5 + 10 * torch.finfo(dtype).eps) * 100.0
    for outlier in eigenvalues[:5]:
        assert int(((nodes - outlier).abs() <= bound).sum()) == 1


@pytest.mark.parametrize("basis_dtype", [torch.float64, torch.float32])
def test_a_basis_that_is_staged_in_pieces_gives_the_same_result(monkeypatch, basis_dtype):
    A = lsfast.aslinearoperator(matrix("outliers"))
    own = plan("lanczos", A, "full", basis_dtype, None, None)
    whole = Recurrence("lanczos", A, starts(2), 25, own).run().result()
    monkeypatch.setattr("lsfast.spectrum.basis._STAGED_BYTES", 50 * 25 * 2 * 8)
    staged = Recurrence("lanczos", A, starts(2), 25, replace(own, staged=True))
    assert len(staged.basis.pieces) > 1
    result = staged.run().result()
    # Sums are made in other pieces: projections differ by rounding, amplified by 1 / beta from step to step.
    torch.testing.assert_close(result.alpha, whole.alpha, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.basis, whole.basis, rtol=0, atol=1e-8 if basis_dtype == torch.float64 else 1e-6)
    torch.testing.assert_close(result.residual, whole.residual, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("reorthogonalize", "basis_dtype"),
    [("full", None), ("full", torch.bfloat16), ("selective", None), ("none", None)],
)
def test_a_restored_recurrence_goes_on_with_the_same_bits(reorthogonalize, basis_dtype):
    A = lsfast.aslinearoperator(matrix("outliers"))
    layout = plan("lanczos", A, reorthogonalize, basis_dtype, None, None)
    expected = Recurrence("lanczos", A, starts(2), 30, layout).run().result()
    for stop in (1, 2, 17, 29):
        first = Recurrence("lanczos", A, starts(2), 30, layout)
        for _ in range(stop):
            first.advance()
        state = {name: tensor.clone() for name, tensor in first.state().items()}
        second = Recurrence("lanczos", A, starts(2), 30, layout)
        second.restore(state)
        for name, tensor in vars(second.run().result()).items():
            other = getattr(expected, name)
            assert (tensor is None and other is None) or torch.equal(tensor, other), (name, stop)


def test_what_does_not_fit_the_memory_limit_is_said_before_any_work():
    A, start = matrix("outliers"), starts(2)
    fits = 2 * (4 + 30) * N * 8  # two probes: 30 rows, three vectors and a product
    lsfast.lanczos(A, start, 30, memory_limit=fits)
    with pytest.raises(ValueError, match=f"lanczos: memory_limit must be {fits} bytes or more for 2 probes"):
        lsfast.lanczos(A, start, 30, memory_limit=fits - 1)
    with pytest.raises(ValueError, match="bytes or more for 30 steps of one probe of length 120, got 100; fewer steps"):
        lsfast.lanczos(A, start, 30, memory_limit=100)
    lsfast.lanczos(A, start, 30, reorthogonalize="none", memory_limit=2 * 4 * N * 8)


def test_agrees_with_the_reference():
    A = matrix("outliers")
    start = starts(2)
    T = lsfast.lanczos(A, start, 12)
    for probe in range(2):
        alpha, beta, basis = reference.lanczos(lambda v: A @ v, start[probe], 12)
        # Orthonormal bases built in two orders of summation: differences of some eps |A| = 60, amplified by the
        # divisions by beta, the least of which is about 0.4, in the steps that follow.
        torch.testing.assert_close(T.alpha[probe], alpha, rtol=0, atol=1e-10)
        torch.testing.assert_close(T.beta[probe], beta, rtol=0, atol=1e-10)
        torch.testing.assert_close(T.basis[probe], basis, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_5_breaks_down_by_step_6_and_the_other_probes_go_on(dtype):
    n = 4 * N
    diagonal = torch.zeros(n, dtype=dtype)
    diagonal[:5] = torch.arange(1, 6)
    diagonal[5:N] = torch.linspace(7, 9, N - 5, dtype=dtype)
    start = torch.zeros(3, n, dtype=dtype)
    start[0, :5], start[0, N:] = 1.0, 0.5  # sees eigenvalues 0..5: an invariant space of 6 dimensions
    start[1] = starts(1, n, dtype)[0]
    start[2, 7] = 2.0  # an eigenvector
    A = lsfast.aslinearoperator(lambda rows: rows * diagonal, n=n, dtype=dtype)
    T = lsfast.lanczos(A, start, 20)
    assert T.steps.tolist() == [6, 20, 1]
    assert (T.alpha[0, 6:] == 0).all()
    assert (T.beta[0, 5:] == 0).all()
    assert (T.basis[0, 6:] == 0).all()
    alone = lsfast.lanczos(A, start[1:2], 20)
    assert torch.equal(alone.alpha[0], T.alpha[1])
    assert torch.equal(alone.basis[0], T.basis[1])


def test_more_steps_than_n_end_at_breakdown():
    A = matrix("indefinite")
    T = lsfast.lanczos(A, starts(2), N + 20)
    assert T.alpha.shape == (2, N + 20)
    assert T.basis.shape == (2, N + 20, N)
    assert T.steps.tolist() == [N, N]
    assert (T.beta[:, N - 1 :] == 0).all()


@pytest.mark.parametrize("reorthogonalize", ["full", "selective", "none"])
def test_a_vector_of_length_one(reorthogonalize):
    T = lsfast.lanczos(torch.tensor([[-3.0]]), torch.tensor([[2.0]]), 3, reorthogonalize)
    assert T.steps.tolist() == [1]
    assert T.alpha.tolist() == [[-3.0, 0.0, 0.0]]


def test_the_zero_operator_ends_after_one_step():
    T = lsfast.lanczos(torch.zeros(5, 5), torch.ones(2, 5), 4)
    assert T.steps.tolist() == [1, 1]
    assert not T.alpha.any()
    assert not T.beta.any()


def test_without_reorthogonalization_the_recurrence_is_local():
    A = matrix("outliers")
    start = starts(2)
    T = lsfast.lanczos(A, start, 60, reorthogonalize="none")
    full = lsfast.lanczos(A, start, 60)
    assert T.basis is None
    # Before an eigenvalue has converged both are the same recurrence.
    torch.testing.assert_close(T.alpha[:, :6], full.alpha[:, :6], rtol=1e-9, atol=1e-9)
    # Afterwards copies of converged eigenvalues appear, which full reorthogonalization prevents.
    nodes = torch.linalg.eigvalsh(tridiagonal_matrix(T.alpha, T.beta))
    assert ((nodes - 60.0).abs() < 1e-6).sum(1).min() > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_and_random_state_are_unchanged(dtype):
    A, start = matrix("outliers", dtype), starts(2, dtype=dtype)
    kept = A.clone(), start.clone(), torch.get_rng_state()
    lsfast.lanczos(A, start, 10)
    lsfast.lanczos(A, start, 10, reorthogonalize="none")
    lsfast.spectral_density(A, probes=2, steps=5)
    lsfast.eigsh(A, k=2)
    lsfast.trace(A, num_products=3)
    assert torch.equal(A, kept[0])
    assert torch.equal(start, kept[1])
    assert torch.equal(torch.get_rng_state(), kept[2])


def test_a_product_that_the_operator_keeps_is_not_written_to():
    kept = []

    def product(rows):
        kept.append((2.0 * rows, rows.clone()))
        return kept[-1][0]

    A = lsfast.aslinearoperator(product, n=30, dtype=torch.float64)
    for reorthogonalize in ("full", "none"):
        lsfast.lanczos(A, starts(2, 30), 4, reorthogonalize)
    assert all(torch.equal(result, 2.0 * rows) for result, rows in kept)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_or_inf_names_the_step_and_the_probe(bad, dtype):
    calls = []

    def product(rows):
        calls.append(None)
        result = rows * torch.linspace(1, 2, 50, dtype=dtype)
        if len(calls) == 5:  # the first call is the symmetry check
            result[1, 7] = bad
        return result

    A = lsfast.aslinearoperator(product, n=50, dtype=dtype)
    with pytest.raises(ValueError, match=r"lanczos: .*NaN or Inf at step 3 of probe 1"):
        lsfast.lanczos(A, starts(3, 50, dtype), 10)


def test_bad_arguments_are_named():
    A, start = torch.eye(4), torch.ones(2, 4)
    zero_row = start.clone()
    zero_row[1] = 0
    cases = [
        ({"start": zero_row}, "start must have finite rows that are not 0, got row 1"),
        ({"start": start * float("nan")}, "got row 0"),
        ({"start": torch.ones(4)}, r"start must have shape \[k, 4\]"),
        ({"start": torch.ones(0, 4)}, "k of 1 or more"),
        ({"start": torch.ones(2, 5)}, r"start must have shape \[k, 4\]"),
        ({"start": start.double()}, "start must have dtype torch.float32"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"reorthogonalize": "twice"}, "must be one of 'full', 'selective', 'none', got 'twice'"),
        ({"basis_dtype": torch.float16}, "basis_dtype must be float32, float64 or bfloat16, got torch.float16"),
        (
            {"reorthogonalize": "selective", "basis_dtype": torch.bfloat16},
            "basis_dtype must be torch.float32 or wider for 'selective', got torch.bfloat16",
        ),
        ({"basis_device": "meta"}, "basis_device must be cpu, got meta"),
        ({"memory_limit": 0}, "memory_limit must be at least 1, got 0"),
        ({"A": torch.eye(4, dtype=torch.float16), "start": start.half()}, "float32 or float64, got torch.float16"),
        ({"A": torch.ones(0, 0), "start": torch.ones(1, 0)}, "length 1 or more"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match="lanczos: .*" + message):
            lsfast.lanczos(**({"A": A, "start": start, "steps": 3} | changed))
    with pytest.raises(TypeError, match="steps must be an integer"):
        lsfast.lanczos(A, start, 2.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unsymmetric_matrix_is_rejected_with_its_defect(dtype):
    A = starts(60, 60, dtype)
    for call in (
        lambda: lsfast.lanczos(A, starts(1, 60, dtype), 3),
        lambda: lsfast.spectral_density(A, probes=1, steps=3),
        lambda: lsfast.eigsh(A, k=1),
        lambda: lsfast.lanczos(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.ones(1, 2), 2),
    ):
        with pytest.raises(ValueError, match=r"A must be symmetric, got \|u'Av - v'Au\| = \d"):
            call()
