"""Runs of spectral_density: groups of probes, probes until it is exact enough, and checkpoints."""

import os

import pytest
import torch
from killed import assert_survives_kills

import lsfast

from .cases import N, matrix, spectra


def diagonal_operator(name="outliers", **counted):
    diagonal = spectra()[name]

    def product(rows):
        counted.setdefault("rows", []).append(len(rows))
        return rows * diagonal

    return lsfast.aslinearoperator(product, n=N, dtype=torch.float64)


def test_groups_of_probes_give_what_one_group_gives():
    counts = []
    A = diagonal_operator(rows=counts)
    whole = lsfast.spectral_density(A, probes=5, steps=9)
    assert counts == [2] + 9 * [5]  # the check of symmetry, and nine steps
    counts.clear()
    two = 2 * (4 + 9) * N * 8  # nine rows, three vectors and a product of two probes
    parts = lsfast.spectral_density(A, probes=5, steps=9, memory_limit=two, progress=True)
    assert counts == [2] + 9 * [2] + 9 * [2] + 9 * [1]
    assert torch.equal(whole.nodes, parts.nodes)
    assert torch.equal(whole.weights, parts.weights)


def test_a_probe_that_does_not_fit_the_memory_limit_is_an_error():
    with pytest.raises(ValueError, match="spectral_density: memory_limit must be 12480 bytes or more for 9 steps"):
        lsfast.spectral_density(diagonal_operator(), steps=9, memory_limit=12479)


@pytest.mark.parametrize("name", ["indefinite", "power_law"])
@pytest.mark.parametrize("function", [None, torch.square])
def test_probes_are_added_until_the_standard_error_is_small_enough(name, function):
    A = matrix(name) + torch.eye(N).double()
    s = lsfast.spectral_density(A, probes=4, steps=20, rtol=0.01, function=function, max_probes=2000)
    estimate = s.function_trace(function or (lambda nodes: nodes))
    assert estimate.stderr <= 0.01 * abs(estimate.value)
    exact = spectra()[name] + 1
    exact = (exact if function is None else function(exact)).sum()
    assert abs(estimate.value - exact) <= 4 * estimate.stderr
    first = lsfast.spectral_density(A, probes=4, steps=20)
    torch.testing.assert_close(s.nodes[:4], first.nodes, rtol=0, atol=1e-10)
    # Not many more than needed: the error falls with the root of their number.
    needed = len(s.nodes) * (estimate.stderr / (0.01 * abs(estimate.value))) ** 2
    assert len(s.nodes) <= 4 * needed + 4


def test_max_probes_ends_the_search_with_a_warning():
    with pytest.warns(
        RuntimeWarning, match=r"spectral_density: the standard error is .* after max_probes = 6, not rtol"
    ):
        s = lsfast.spectral_density(matrix("indefinite"), probes=2, steps=5, rtol=1e-9, max_probes=6)
    assert len(s.nodes) == 6


def test_bad_arguments_about_runs_are_named(tmp_path):
    A = torch.eye(4)
    for changed, message in [
        ({"rtol": 0.0}, "rtol must be above 0, got 0.0"),
        ({"rtol": 0.1, "probes": 1}, r"probes must lie in 2\.\.max_probes = 256 with rtol, got 1"),
        ({"rtol": 0.1, "probes": 9, "max_probes": 8}, r"probes must lie in 2\.\.max_probes = 8 with rtol, got 9"),
        ({"checkpoint_steps": 0}, "checkpoint_steps must be at least 1, got 0"),
        ({"checkpoint": tmp_path / "none" / "run"}, "checkpoint must lie in a folder that exists"),
        ({"reorthogonalize": "half"}, "reorthogonalize must be one of"),
    ]:
        with pytest.raises(ValueError, match="spectral_density: " + message):
            lsfast.spectral_density(A, **changed)
    with pytest.raises(TypeError, match="rtol must be a number"):
        lsfast.spectral_density(A, rtol="small")


class Stop(Exception):
    pass


def stopping(after):
    """A diagonal operator that fails at a product, and one that does not."""
    diagonal, calls = spectra()["outliers"], []

    def product(rows):
        calls.append(None)
        if len(calls) > after:
            raise Stop
        return rows * diagonal

    return lsfast.aslinearoperator(product, n=N, dtype=torch.float64), diagonal_operator()


@pytest.mark.parametrize("reorthogonalize", ["full", "selective", "none"])
@pytest.mark.parametrize("after", [1, 4, 9, 12, 20, 27])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, after, reorthogonalize):
    options = {"probes": 5, "steps": 9, "reorthogonalize": reorthogonalize, "checkpoint_steps": 3}
    options["memory_limit"] = 2 * (4 + {"full": 9, "selective": 18, "none": 0}[reorthogonalize]) * N * 8
    failing, A = stopping(after)
    expected = lsfast.spectral_density(A, **options)
    with pytest.raises(Stop):
        lsfast.spectral_density(failing, checkpoint=tmp_path / "run.npz", **options)
    counts = []
    counted = diagonal_operator(rows=counts)
    found = lsfast.spectral_density(counted, checkpoint=tmp_path / "run.npz", **options)
    assert torch.equal(found.nodes, expected.nodes)
    assert torch.equal(found.weights, expected.weights)
    kept = (after - 1) // 3 * 3  # of 27 steps, those before the last writing
    assert len(counts) == 1 + 27 - kept
    counts.clear()
    again = lsfast.spectral_density(counted, checkpoint=tmp_path / "run.npz", **options)
    assert torch.equal(again.nodes, expected.nodes)
    assert len(counts) == 1


def test_a_resumed_run_keeps_the_groups_of_the_checkpoint_whatever_memory_there_is_now(tmp_path):
    failing, _ = stopping(after=4)
    with pytest.raises(Stop):
        lsfast.spectral_density(
            failing, probes=6, steps=9, memory_limit=2 * 13 * N * 8, checkpoint=tmp_path / "run.npz", checkpoint_steps=3
        )
    counts = []
    lsfast.spectral_density(diagonal_operator(rows=counts), probes=6, steps=9, checkpoint=tmp_path / "run.npz")
    assert counts == [2] + 6 * [2] + 18 * [2]


def test_a_product_that_is_not_finite_is_named_by_its_probe_among_all():
    calls, diagonal = [], spectra()["outliers"]

    def product(rows):
        calls.append(None)
        return rows * diagonal * (float("nan") if len(calls) == 12 else 1.0)

    A = lsfast.aslinearoperator(product, n=N, dtype=torch.float64)
    with pytest.raises(ValueError, match="spectral_density: .*NaN or Inf at step 1 of probe 2"):
        lsfast.spectral_density(A, probes=4, steps=9, memory_limit=2 * 13 * N * 8)


def test_more_probes_continue_after_those_of_the_checkpoint(tmp_path):
    counts = []
    A = diagonal_operator(rows=counts)
    lsfast.spectral_density(A, probes=3, steps=9, checkpoint=tmp_path / "run.npz")
    counts.clear()
    more = lsfast.spectral_density(A, probes=5, steps=9, checkpoint=tmp_path / "run.npz")
    assert counts == [2] + 9 * [2]
    assert torch.equal(more.nodes, lsfast.spectral_density(A, probes=5, steps=9).nodes)


def test_probes_that_were_added_are_resumed_too(tmp_path):
    A, options = matrix("indefinite"), {"probes": 2, "steps": 6, "rtol": 0.03, "max_probes": 64}
    expected = lsfast.spectral_density(A @ A, **options)
    assert len(expected.nodes) > 2
    for _ in range(2):
        found = lsfast.spectral_density(A @ A, checkpoint=tmp_path / "run.npz", **options)
        assert torch.equal(found.nodes, expected.nodes)


def test_a_checkpoint_of_another_run_says_what_differs(tmp_path):
    path = tmp_path / "run.npz"
    A = matrix("outliers")
    lsfast.spectral_density(A, probes=2, steps=5, checkpoint=path)
    for changed, message in [
        ({"steps": 6}, "of one with steps 5, not 6"),
        ({"seed": 1}, "of one with seed 0, not 1"),
        ({"A": A * 1.001}, "of one with operator "),
        ({"A": A.float()}, "of one with basis_dtype 'torch.float64', not 'torch.float32'"),
        ({"reorthogonalize": "none"}, "of one with reorthogonalize 'full', not 'none'"),
    ]:
        with pytest.raises(ValueError, match="spectral_density: checkpoint must be of this run, got .* " + message):
            lsfast.spectral_density(**({"A": A, "probes": 2, "steps": 5, "checkpoint": path} | changed))


def test_a_checkpoint_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    A = matrix("outliers")
    expected = lsfast.spectral_density(A, probes=2, steps=5)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="spectral_density: checkpoint could not be written.*No space left"):
        found = lsfast.spectral_density(A, probes=2, steps=5, checkpoint=tmp_path / "run.npz")
    assert torch.equal(found.nodes, expected.nodes)
    assert not list(tmp_path.iterdir())


def test_a_run_killed_at_random_moments_gives_the_bits_of_an_uninterrupted_one(tmp_path):
    setup = """
    n = 20000
    diagonal = torch.linspace(-1, 3, n)
    A = lsfast.aslinearoperator(slow, n=n, dtype=torch.float32)
    """
    run = """
    s = lsfast.spectral_density(
        A, probes=6, steps=12, memory_limit=2 * 16 * n * 4, checkpoint=checkpoint, checkpoint_steps=2
    )
    return s.nodes, s.weights
    """
    assert_survives_kills(tmp_path, setup, run, kills=20)
