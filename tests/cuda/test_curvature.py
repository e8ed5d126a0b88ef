"""Curvature products on a GPU: those of the CPU to rounding, without waiting for the device, replayed as graphs."""

import pytest
import torch
from problems import NAMES, problem
from torch import nn

import lsfast

pytestmark = pytest.mark.cuda
OPERATORS = [lsfast.HessianOperator, lsfast.GGNOperator, lsfast.FisherOperator]


def on_cuda(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, dict):
        return {key: on_cuda(item) for key, item in value.items()}
    return tuple(on_cuda(item) for item in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_cpu(name, operator):
    p = problem(name)
    expected = operator(lsfast.Objective(p.model, p.loss_fn, p.data, output=p.output))
    rows = torch.randn(3, expected.shape[0], dtype=expected.dtype, generator=torch.Generator().manual_seed(0))
    right = expected.apply(rows)
    loss_fn = p.loss_fn.cuda() if isinstance(p.loss_fn, nn.Module) else p.loss_fn
    objective = lsfast.Objective(p.model.cuda(), loss_fn, on_cuda(p.data), output=p.output)
    found = operator(objective).apply(rows.cuda()).cpu()
    assert (found - right).norm() <= 1e-11 * right.norm()


def small_transformer():
    p = problem("transformer")
    return lsfast.Objective(p.model.cuda(), p.loss_fn, on_cuda(p.data))


@pytest.mark.parametrize("kind", ["hvp", "ggnvp"])
def test_the_third_product_is_captured_and_replays_what_the_first_gave(kind):
    L = small_transformer().linearize()
    rows = torch.randn(4, 3, L.parameters.numel(), dtype=torch.float64, device="cuda")
    first = [getattr(L, kind)(row) for row in rows]
    again = [getattr(L, kind)(row) for row in rows]
    ((_, replay),) = L._replays._replays.items()
    assert replay.__name__ == "replay"  # a captured one: the product itself where the capture failed
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["hvp", "ggnvp"])
def test_a_product_does_not_wait_for_the_device(kind):
    L = small_transformer().linearize()
    rows = torch.randn(3, L.parameters.numel(), dtype=torch.float64, device="cuda")
    getattr(L, kind)(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(L, kind)(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tf32_is_used_when_asked_for_and_its_error_is_measured():
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)).cuda()
    data = (torch.randn(128, 256, device="cuda"), torch.randint(0, 10, (128,), device="cuda"))
    exact = lsfast.Objective(model, nn.CrossEntropyLoss(), data)
    assert lsfast.HessianOperator(exact).check().matmul_precision == 0.0
    rounded = lsfast.HessianOperator(exact.with_matmul_precision("tf32")).check()
    assert 1e-7 < rounded.matmul_precision < 2.0**-7
