"""Every loss of torch.nn over ragged batches: products equal those of the whole data, by plain double backward."""

from collections import UserDict
from functools import cache

import pytest
import torch
from derivatives import ggn_products, hessian_products
from loss_problems import INPUTS, LOSSES, REDUCTIONS, loss_problem
from torch import Tensor

import lsfast


def vectors_of(n: int) -> Tensor:
    return torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@cache
def expected(loss: str, reduction: str, inputs: str) -> tuple[Tensor, Tensor]:
    p = loss_problem(loss, reduction, inputs)
    vectors = vectors_of(sum(parameter.numel() for parameter in p.model.parameters()))
    return hessian_products(p, vectors), ggn_products(p, vectors)


@pytest.mark.parametrize(("inputs", "engine"), [*((inputs, "program") for inputs in INPUTS), ("rows", "autograd")])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_products_over_ragged_batches_equal_those_of_the_whole(loss, reduction, inputs, engine):
    p = loss_problem(loss, reduction, inputs)
    (first, *rest), targets = zip(*p.split(3), strict=True)
    if isinstance(first, dict):
        first = UserDict(first)  # any mapping holds arguments by keyword
    data = list(zip((first, *rest), targets, strict=True))
    objective = p.objective(data, reduction=reduction, engine=engine)
    hessian, ggn = expected(loss, reduction, inputs)
    vectors = vectors_of(objective.n)
    for operator, right in ((lsfast.HessianOperator, hessian), (lsfast.GGNOperator, ggn)):
        products = operator(objective).apply(vectors)
        # A few hundred roundings of 1e-16; an L1 loss has no curvature of its own, its GGN is exactly 0. PyTorch adds
        # 1e-12 to p (1 - p) where it differentiates a binary cross-entropy twice.
        tolerance = 1e-10 if loss == "binary cross entropy" else 1e-13
        assert (products - right).norm() <= tolerance * right.norm()
