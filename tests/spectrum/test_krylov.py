"""The block Krylov space: the relation it keeps, and what a lock keeps."""

import pytest
import torch

from lsfast.operator import aslinearoperator
from lsfast.spectrum.krylov import BlockKrylovSpace

from .cases import N, matrix, starts


def assert_relation(space, A, locked_residual=0.0, restarted=True):
    """Rows are orthonormal, and A Q' = Q' H + Z' B up to what locking dropped."""
    held = space.rows[: space.size + space.width].double()
    Q, Z = held[: space.size], held[space.size :]
    epsilon = torch.finfo(space.rows.dtype).eps
    # Kept vectors are combinations of an orthonormal basis, made by a product of rank 30 or 40 in the dtype.
    assert (held @ held.T - torch.eye(len(held))).abs().max() <= (50 if restarted else 10) * epsilon
    norm = torch.linalg.matrix_norm(A.double(), 2)
    defect = (Q @ A.double() - space.H @ Q - space.B.T @ Z).norm(dim=1)
    # A product of N terms, a subtraction and a normalization, each rounded; restarts combine `dimension` vectors.
    assert defect.max() <= (2 * N**0.5 + 40) * epsilon * norm + locked_residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("name", ["outliers", "rank5", "clusters", "indefinite", "repeated"])
def test_the_krylov_relation_holds_after_every_step_and_restart(name, block, dtype):
    A = matrix(name, dtype)
    space = BlockKrylovSpace(aslinearoperator(A), 30, block, seed=1)
    space.begin(starts(max(1, block - 1), N, dtype))
    for restarted in (False, True):
        while space.size < 30:
            space.grow(2 if space.size == 9 else 100)  # also fewer than the block has
            assert_relation(space, A, restarted=restarted)
        values, S, _ = space.ritz()
        kept = torch.tensor([29, 0, 28, 1, 27, 2])
        space.restart(torch.arange(0), values[kept], S[:, kept].T, 0, fresh=False)
        assert_relation(space, A)


def test_a_space_that_fills_all_of_n_has_no_residual_left():
    A = matrix("repeated")
    for block in (1, 7):
        space = BlockKrylovSpace(aslinearoperator(A), N, block, seed=1)
        space.begin(None)
        while space.size < N:
            space.grow(N)
        assert (space.size, space.width) == (N, 0)
        exact = torch.linalg.eigvalsh(A)
        assert (torch.linalg.eigvalsh(space.H) - exact).abs().max() <= 1e-13 * exact.abs().max()


@pytest.mark.parametrize("block", [1, 4])
def test_locked_vectors_keep_their_bits_and_the_others_stay_orthogonal(block):
    A = matrix("outliers")
    space = BlockKrylovSpace(aslinearoperator(A), 40, block, seed=1)
    space.begin(None)
    while space.size < 40:
        space.grow(100)
    values, S, residuals = space.ritz()
    kept = torch.tensor([39, 38, 37, 0, 36, 1])
    assert residuals[kept[:2]].max() <= 1e-9
    space.restart(torch.arange(0), values[kept], S[:, kept].T, 2, fresh=False)
    locked = space.rows[:2].clone()
    while space.size < 40:
        space.grow(100)
        assert torch.equal(space.rows[:2], locked)
        assert_relation(space, A, locked_residual=1e-9)
    values, S, residuals = space.ritz()
    assert abs(values[-1] - 20.0) <= 1e-9  # of the three outliers the two locked ones are not found again
    space.restart(torch.tensor([1]), values[-3:], S[:, -3:].T, 1, fresh=True)
    assert torch.equal(space.rows[0], locked[1])
    assert space.locked.numel() == 2
    assert not space.B.any()
