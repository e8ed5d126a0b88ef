"""The kernels of cross-entropy, and Fisher products, on a GPU against the CPU."""

import pytest
import torch

import lsfast
from lsfast.program.cross_entropy import CrossEntropyRows

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(70, 10), (33, 1000), (5, 5003), (4, 5000), (3, 21, 50)])
def test_cross_entropy_and_its_products_are_the_cpus_to_rounding(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(shape, dtype=dtype, generator=generator)
    u = torch.randn(6, *shape, dtype=dtype, generator=generator)
    y = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=generator)
    y.view(-1)[0] = -100
    results = []
    for device in ("cpu", "cuda"):
        rows = CrossEntropyRows(z.to(device), y.to(device), smoothing=0.1)
        dots = rows.jvp(u.to(device))
        results.append(
            [x.cpu() for x in (rows.loss, dots, rows.vjp(dots), rows.product(rows.mass, u.to(device), dots))]
        )
    # Sums over classes in another order: at most (classes / 8 + 48) roundings of terms bounded by |u| and the losses.
    eps = (shape[1] / 8 + 48) * torch.finfo(dtype).eps
    for expected, found in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 4 * eps * (10 + expected.abs().max() + u.abs().max())


@pytest.mark.parametrize("kind", ["empirical", "mc"])
def test_fisher_product_is_the_cpus_to_rounding(kind):
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    v = torch.randn(101, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    products = []
    for device in ("cpu", "cuda"):
        data = (x.to(device), (torch.arange(20) % 5).to(device))
        objective = lsfast.Objective(model.to(device), torch.nn.CrossEntropyLoss(), data)
        products.append((lsfast.FisherOperator(objective, kind=kind) @ v.to(device)).cpu())
    assert torch.allclose(*products, rtol=1e-10, atol=1e-12)
