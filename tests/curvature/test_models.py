"""Products of whole models, as people have them, against plain double backward passes and finite differences."""

from functools import cache

import pytest
import torch
from derivatives import (
    differenced_ggn_products,
    differenced_hessian_products,
    ggn_products,
    hessian_products,
)
from model_problems import MODEL_NAMES, model_problem
from problems import Problem
from torch import Tensor, nn

import lsfast

ENGINES = ("program", "autograd")
OPERATORS = {"hessian": lsfast.HessianOperator, "ggn": lsfast.GGNOperator}

every_model = pytest.mark.parametrize("name", MODEL_NAMES)
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_operator = pytest.mark.parametrize("kind", OPERATORS)


def unit_vectors(n: int, k: int = 4) -> Tensor:
    vectors = torch.randn(k, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return vectors / vectors.norm(dim=1, keepdim=True)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def rounding(p: Problem) -> float:
    """Of two ways to the same products, relative: the roundings of some ten layers of sums of at most a hundred."""
    return 1000 * p.precision


@cache
def expected(name: str, kind: str) -> Tensor:
    p = model_problem(name)
    vectors = unit_vectors(p.objective().n)
    return {"hessian": hessian_products, "ggn": ggn_products}[kind](p, vectors)


@cache
def differenced(name: str, kind: str) -> Tensor:
    p = model_problem(name)
    vectors = unit_vectors(p.objective().n)
    return {"hessian": differenced_hessian_products, "ggn": differenced_ggn_products}[kind](p, vectors, step_of(p))


def step_of(p: Problem) -> float:
    """Where truncation h^4 meets rounding eps / h; small enough that no kink lies within where there are some."""
    if not p.smooth:
        return 1e-5
    return 1e-3 if p.precision < 1e-10 else 1e-2


@every_engine
@every_operator
@every_model
def test_products_equal_double_backward(name, kind, engine):
    p = model_problem(name)
    A = OPERATORS[kind](p.objective(engine=engine))
    assert relative(A.apply(unit_vectors(A.shape[0])), expected(name, kind)) < rounding(p)


@every_operator
@every_model
def test_products_equal_finite_differences(name, kind):
    p = model_problem(name)
    A = OPERATORS[kind](p.objective(engine="program"))
    # Truncation and rounding together: 1e-9 at these steps in float64, 1e-5 where a norm is computed in float32.
    tolerance = 1e-8 if p.precision < 1e-10 else 1e-4
    assert relative(A.apply(unit_vectors(A.shape[0])), differenced(name, kind)) < tolerance


@every_operator
@every_model
def test_operators_are_symmetric_and_ggn_is_positive_semidefinite(name, kind):
    p = model_problem(name)
    A = OPERATORS[kind](p.objective(engine="program"))
    vectors = unit_vectors(A.shape[0], 8)
    within = vectors @ A.apply(vectors).T
    assert (within - within.T).norm() < rounding(p) * within.norm()
    if kind == "ggn":
        assert torch.linalg.eigvalsh((within + within.T) / 2)[0] > -rounding(p) * within.norm()


@every_operator
@every_model
def test_many_vectors_at_once_equal_one_at_a_time(name, kind):
    p = model_problem(name)
    A = OPERATORS[kind](p.objective(engine="program"))
    vectors = unit_vectors(A.shape[0])
    assert relative(torch.stack([A @ v for v in vectors]), A.apply(vectors)) < rounding(p)


@every_operator
@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if "train mode" not in name])
def test_ragged_batches_equal_the_whole(name, kind):
    p = model_problem(name)
    A = OPERATORS[kind](p.objective(p.split(1), engine="program"))
    assert relative(A.apply(unit_vectors(A.shape[0])), expected(name, kind)) < rounding(p)


@every_engine
@pytest.mark.parametrize("name", ["resnet in train mode", "hugging face bert"])
def test_a_model_is_as_before_after_products(name, engine):
    p = model_problem(name)
    before = {key: value.clone() for key, value in p.model.state_dict().items()}
    modes = [module.training for module in p.model.modules()]
    fast_path, rng = torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state()
    for operator in OPERATORS.values():
        A = operator(p.objective(engine=engine))
        A.apply(unit_vectors(A.shape[0]))
    assert all(torch.equal(value, before[key]) for key, value in p.model.state_dict().items())
    assert modes == [module.training for module in p.model.modules()]
    assert fast_path == torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(rng, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in p.model.parameters())


@every_engine
def test_the_padding_row_of_an_embedding_is_a_constant(engine):
    # torch gives that row no gradient but, in forward mode, a tangent: products that used it would not be symmetric.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 2, padding_idx=1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()
    nn.init.normal_(model[0].weight)
    tokens, targets = torch.randint(0, 5, (6, 3)), torch.randint(0, 3, (6,))
    p = Problem(model, nn.CrossEntropyLoss(), tokens, targets)
    assert (tokens == 1).any()
    for kind, right in (("hessian", hessian_products), ("ggn", ggn_products)):
        A = OPERATORS[kind](p.objective(engine=engine))
        matrix = A.to_dense()
        assert relative(matrix, right(p, torch.eye(A.shape[0], dtype=torch.float64))) < rounding(p)
        assert relative(matrix, matrix.T) < rounding(p)
        assert (matrix[2:4] == 0).all()
        assert (matrix[:, 2:4] == 0).all()


@every_model
def test_no_model_needs_a_generic_rule(name):
    assert model_problem(name).objective(engine="program").explain().generic == ()
