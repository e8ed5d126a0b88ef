"""Eigen-directions: the loss along them is the parabola of their eigenvalue."""

import pytest
import torch
from torch import nn

import lsfast


class Point(nn.Module):
    def __init__(self, point):
        super().__init__()
        self.point = nn.Parameter(point)

    def forward(self, inputs):
        return self.point


def test_loss_along_an_eigenvector_is_the_parabola_of_its_eigenvalue():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    eigenvalues = torch.cat([torch.linspace(-1, 1, 10), torch.tensor([-8.0, 5.0])]).double()
    hessian = basis @ torch.diag(eigenvalues) @ basis.T
    model = Point(torch.zeros(12, dtype=torch.float64))
    data = (torch.ones(1), torch.ones(1))
    objective = lsfast.Objective(model, lambda x, _: 3.0 + 0.5 * x @ hessian @ x, data)
    directions = lsfast.eigen_directions(lsfast.HessianOperator(objective))
    assert directions.labels == ("eigenvalue -8", "eigenvalue 5")
    assert directions.origin is None
    gram = directions.vectors @ directions.vectors.T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
    grid = lsfast.loss_grid(objective, directions, steps=(5, 3), extent=2.0)
    x, y = grid.coordinates
    torch.testing.assert_close(grid.values, 3.0 - 4.0 * x[:, None] ** 2 + 2.5 * y**2, rtol=1e-10, atol=1e-10)


def test_which_end_of_the_spectrum_is_as_eigsh_has_it_and_its_errors_are_its_own():
    matrix = torch.diag(torch.tensor([1.0, -7.0, 5.0, 2.0], dtype=torch.float64))
    assert lsfast.eigen_directions(matrix, 3, "LA").labels == ("eigenvalue 5", "eigenvalue 2", "eigenvalue 1")
    with pytest.raises(ValueError, match="eigsh: k must be at most n = 4, got 5"):
        lsfast.eigen_directions(matrix, 5)
