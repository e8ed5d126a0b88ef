"""Static scales and quantized products on a GPU against the CPU: the same scales, products within float32's bound."""

import pytest
import torch
from torch import nn

import lsfast

pytestmark = pytest.mark.cuda
U = 2.0**-24


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", ["nvfp4", "nvfp4_2d"])
def test_nvfp4_products_are_exact_and_added_up_in_float32(scheme):
    # Split reductions in BF16 would break the bound; so would products of rounded operands.
    for m, n, k in [(64, 48, 128), (33, 17, 80), (16, 16, 16384)]:
        x, w = normal(m, k), normal(n, k, seed=1)
        found = lsfast.quantized_matmul(x.cuda(), w.cuda(), scheme).cpu().double()
        a, b = (lsfast.fake_quantize(each, scheme).double() for each in (x, w))
        assert torch.all((found - a @ b.T).abs() <= (k + 8) * U * 1.001 * (a.abs() @ b.abs().T))


def test_small_integers_multiply_exactly():
    held = torch.tensor([-6.0, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6])
    generator = torch.Generator().manual_seed(0)
    x, w = (held[torch.randint(0, 11, (64, 256), generator=generator)] for _ in range(2))
    x[:, ::16] = w[:, ::16] = 6.0
    found = lsfast.quantized_matmul(x.cuda(), w.cuda(), "nvfp4").cpu()
    assert torch.equal(found.double(), x.double() @ w.double().T)


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_static_scales_are_those_of_the_cpu(method):
    x, y = normal(64, 32), torch.arange(64) % 5
    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 5))
    expected = lsfast.calibrate(lsfast.Objective(model, nn.CrossEntropyLoss(), (x, y)), "nvfp4", method)
    objective = lsfast.Objective(model.cuda(), nn.CrossEntropyLoss(), (x.cuda(), y.cuda()))
    found = lsfast.calibrate(objective, "nvfp4", method)
    assert found["0"].device.type == "cuda"
    assert torch.equal(found["0"].cpu(), expected["0"])
