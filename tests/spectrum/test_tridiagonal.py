"""The tridiagonal eigensolver against a dense one, over random matrices and those that break solvers."""

import pytest
import torch

from lsfast._native import ops
from lsfast.spectrum.quadrature import quadrature

from .cases import tridiagonal_matrix

EPSILON = torch.finfo(torch.float64).eps


def solve(alpha, beta, steps=None):
    """Nodes and weights of [k, m] diagonals and [k, m - 1] off-diagonals."""
    k, m = alpha.shape
    padded = torch.full((k, m), float("nan"), dtype=torch.float64)  # the last column must not be read
    padded[:, : m - 1] = beta
    sizes = torch.full((k,), m) if steps is None else torch.tensor(steps)
    return ops.tridiagonal_eigen(alpha, padded, sizes)


def families():
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    m = 41
    wilkinson = torch.arange(-20, 21).abs().double()
    graded = 10.0 ** torch.linspace(-15, 0, m, dtype=torch.float64)
    sparse = random(m - 1)
    sparse[::3] = 0.0
    return {
        "random": (random(50, m), random(50, m - 1).abs()),
        "size 1": (random(3, 1), random(3, 0)),
        "size 2": (random(9, 2), random(9, 1)),
        "zero": (torch.zeros(2, 5).double(), torch.zeros(2, 4).double()),
        "zero diagonal": (torch.zeros(1, m).double(), torch.ones(1, m - 1).double()),
        "diagonal": (random(1, m), torch.zeros(1, m - 1).double()),
        "split": (random(1, m), sparse[None]),
        "wilkinson": (wilkinson[None], torch.ones(1, m - 1).double()),
        "graded up": (graded[None], graded[None, 1:] / 2),
        "graded down": (graded.flip(0)[None], graded.flip(0)[None, 1:] / 2),
        "huge": (random(1, m) * 1e300, random(1, m - 1) * 1e300),
        "tiny": (random(1, m) * 1e-300, random(1, m - 1) * 1e-300),
        "denormal": (random(1, m) * 1e-310, random(1, m - 1) * 1e-310),
        "large": (random(2, 300), random(2, 299)),
    }


@pytest.mark.parametrize("name", families())
def test_eigenvalues_and_weights_are_those_of_a_dense_solver(name):
    alpha, beta = families()[name]
    nodes, weights, failed = solve(alpha, beta)
    assert not failed.any()
    assert (nodes.diff() >= 0).all()
    m = alpha.shape[1]
    scale = max(alpha.abs().max().item(), beta.abs().max().item() if m > 1 else 0.0) or 1.0
    T = tridiagonal_matrix(alpha / scale, beta / scale)
    values, vectors = torch.linalg.eigh(T)
    # QL and the dense solver are backward stable: each off by at most a small multiple of m eps |T|, |T| <= 3.
    bound = 3 * m * EPSILON + (5e-324 / scale)
    assert (nodes / scale - values).abs().max() <= bound
    # A weight belongs to its node only as far as the gap to the next allows; sums over nodes of a smooth function are
    # insensitive to that. exp(T) has first entry sum w exp(node).
    exact = (vectors[:, 0] ** 2 * values.exp()).sum(1)
    assert ((weights * (nodes / scale).exp()).sum(1) - exact).abs().max() <= 10 * m * EPSILON * 20
    assert (weights.sum(1) - 1).abs().max() <= 10 * m * EPSILON


def test_weights_of_separated_eigenvalues_are_squared_first_components():
    m = 30  # second difference: eigenvalues 2 - 2 cos(pi j / (m + 1)), weights 2 sin(pi j / (m + 1))^2 / (m + 1)
    nodes, weights, _ = solve(torch.full((1, m), 2.0).double(), torch.full((1, m - 1), -1.0).double())
    angle = torch.pi * torch.arange(1, m + 1).double() / (m + 1)
    # Vectors are off by eps |T| over the least gap, about 3 (pi / 31)^2 = 0.03.
    torch.testing.assert_close(nodes[0], 2 - 2 * angle.cos(), rtol=0, atol=4 * m * EPSILON)
    torch.testing.assert_close(weights[0], 2 * angle.sin() ** 2 / (m + 1), rtol=0, atol=4 * m * EPSILON / 0.03)


def test_each_matrix_has_its_own_size_and_padding_has_weight_zero():
    generator = torch.Generator().manual_seed(1)
    k, m = 25, 12
    alpha = torch.randn(k, m, generator=generator, dtype=torch.float64)
    beta = torch.rand(k, m - 1, generator=generator, dtype=torch.float64)
    steps = [i % (m + 1) for i in range(k)]
    nodes, weights, _ = solve(alpha, beta, steps)
    for i, size in enumerate(steps):
        alone = solve(alpha[i : i + 1, :size].contiguous(), beta[i : i + 1, : max(size - 1, 0)])
        assert torch.equal(nodes[i, :size], alone[0][0])
        assert torch.equal(weights[i, :size], alone[1][0])
        assert (nodes[i, size:] == (alone[0][0, -1] if size else 0.0)).all()
        assert (weights[i, size:] == 0).all()


def test_a_matrix_that_does_not_converge_is_named():
    alpha = torch.ones(3, 4, dtype=torch.float64)
    alpha[1, 2] = float("nan")
    with pytest.raises(RuntimeError, match="test: the tridiagonal eigensolver did not converge for probe 1 of 3"):
        quadrature("test", alpha, torch.ones(3, 4).double(), torch.full((3,), 4))
