"""Killed and resumed searches for eigenpairs give the bits of one that was not interrupted."""

import contextlib

import pytest
import torch
from killed import assert_survives_kills

import lsfast

from .cases import N, matrix


@pytest.mark.parametrize(("block", "kills"), [(1, 10), (3, 10)])
def test_a_run_killed_at_random_moments_gives_the_bits_of_an_uninterrupted_one(tmp_path, block, kills):
    setup = """
    diagonal = torch.linspace(0, 1, 400, dtype=torch.float64) ** 2
    A = lsfast.aslinearoperator(slow, n=400, dtype=torch.float64)
    """
    run = f"""
    pairs = lsfast.eigsh(A, k=3, which="LA", tolerance=1e-6, block={block}, checkpoint=checkpoint)
    return tuple(vars(pairs).values())
    """
    assert_survives_kills(tmp_path, setup, run, kills, seed=block)


class Stopped(Exception):
    """Ends a run in the middle of a product."""


def interrupted(A, most):
    """An operator that gives up after so many products."""
    left = [most]

    def product(rows):
        left[0] -= rows.shape[0]
        if left[0] < 0:
            raise Stopped
        return rows @ A

    return lsfast.aslinearoperator(product, n=A.shape[0], dtype=A.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("which", "block"), [("LM", 1), ("BE", 3)])
def test_a_run_stopped_after_any_number_of_products_resumes_to_the_same_bits(which, block, dtype, tmp_path):
    A = matrix("repeated", dtype)
    start = A[:4].contiguous()
    options = {"k": 5, "which": which, "block": block, "start": start}
    whole = lsfast.eigsh(interrupted(A, 10**6), **options)
    for most in range(10, 300, 57):
        path = tmp_path / f"{most}.npz"
        with contextlib.suppress(Stopped):
            lsfast.eigsh(interrupted(A, most), checkpoint=path, **options)
        resumed = lsfast.eigsh(interrupted(A, 10**6), checkpoint=path, **options)
        for name, expected in vars(whole).items():
            assert torch.equal(getattr(resumed, name), expected)
        finished = lsfast.eigsh(interrupted(A, 2), checkpoint=path, **options)  # the check for symmetry alone
        assert torch.equal(finished.vectors, whole.vectors)


def test_a_run_that_ended_at_its_limit_goes_on_with_a_larger_one(tmp_path):
    A = matrix("indefinite")
    whole = lsfast.eigsh(A, 4, "LA")
    for limit in (30, 55):
        with pytest.warns(RuntimeWarning, match=f"in {limit} products"):
            lsfast.eigsh(A, 4, "LA", max_steps=limit, checkpoint=tmp_path / "run.npz")
    resumed = lsfast.eigsh(A, 4, "LA", checkpoint=tmp_path / "run.npz")
    assert torch.equal(resumed.vectors, whole.vectors)
    assert torch.equal(resumed.residuals, whole.residuals)


def test_a_checkpoint_of_another_run_says_what_differs(tmp_path):
    A, path = matrix("outliers"), tmp_path / "run.npz"
    start = torch.ones(1, N, dtype=torch.float64)
    lsfast.eigsh(A, 3, checkpoint=path)
    cases = [
        ({"k": 4}, "k 3, not 4"),
        ({"which": "LA"}, "which 'LM', not 'LA'"),
        ({"tolerance": 1e-8}, "tolerance 3.6.*e-11, not 1e-08"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"block": 2}, "block 1, not 2"),
        ({"memory_limit": 10 * N * 8}, "dimension 24, not 9"),
        ({"A": A * 1.001}, r"operator \d+.*, not \d+"),
        ({"A": A.float()}, "dtype 'torch.float64', not 'torch.float32'"),
        ({"start": start}, r"start 'none', not \d+"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match="eigsh: checkpoint must be of this run, got .* of one with " + message):
            lsfast.eigsh(**({"A": A, "k": 3, "checkpoint": path} | changed))
