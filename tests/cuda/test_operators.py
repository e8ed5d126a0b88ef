"""Every operator on a GPU against the CPU: the same bits where order does not matter, else to rounding."""

import pytest
import torch

import lsfast
from lsfast.program.points import parameter_points
from lsfast.program.quantized_points import quantized_points

pytestmark = pytest.mark.cuda


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_parameter_points_have_the_bits_of_the_cpu(d, dtype):
    theta, directions, coordinates = (
        normal(10007, dtype=dtype),
        normal(d, 10007, dtype=dtype),
        normal(6, d, dtype=dtype),
    )
    expected = parameter_points(theta, directions, coordinates)
    assert torch.equal(parameter_points(theta.cuda(), directions.cuda(), coordinates.cuda()).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", lsfast.schemes())
def test_quantized_points_have_the_bits_of_the_cpu(name, dtype):
    rounding = "nearest" if name == "fp32" else "stochastic"
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    for rows, length, g in ((64, 512, 6), (37, 333, 3), (3, 20000, 1)):
        n = rows * length
        inputs = normal(n, dtype=dtype), normal(2, n, dtype=dtype), normal(g, 2, dtype=dtype)
        expected = quantized_points(*inputs, scheme, rows, length, seed=5)
        result = quantized_points(*(x.cuda() for x in inputs), scheme, rows, length, seed=5)
        assert torch.equal(result.cpu(), expected)


def test_products_grids_and_eigenvalues_of_a_model_are_those_of_the_cpu():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    inputs, targets = normal(20, 6, dtype=torch.float64), torch.arange(20) % 5
    results = []
    for device in ("cpu", "cuda"):
        data = (inputs.to(device), targets.to(device))
        objective = lsfast.Objective(model.to(device), torch.nn.CrossEntropyLoss(), data)
        H, G = lsfast.HessianOperator(objective), lsfast.GGNOperator(objective)
        d = lsfast.random_directions(objective, seed=3)
        results.append(
            [
                H.to_dense().cpu(),
                G.to_dense().cpu(),
                lsfast.eigsh(H, k=3).values.cpu(),
                lsfast.loss_grid(objective, d, steps=(5, 4)).values,
            ]
        )
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
