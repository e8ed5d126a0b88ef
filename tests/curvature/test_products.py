"""Products with the Hessian and the GGN against dense matrices in float64, over all problems."""

import pytest
import torch
from problems import NAMES, Problem, problem
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import lsfast


def objective_of(p: Problem, **options) -> lsfast.Objective:
    return lsfast.Objective(p.model, p.loss_fn, p.data, **options)


def dense_hessian(p: Problem, objective: lsfast.Objective) -> Tensor:
    """The Hessian by double backward of the loss as a user would write it, with no part of lsfast's products."""

    def loss(theta: Tensor) -> Tensor:
        return p.loss_fn(functional_call(p.model, objective.unflatten(theta), (p.inputs,)), p.targets)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, objective.parameters)


def finite_difference_products(p: Problem, objective: lsfast.Objective, vectors: Tensor, step: float = 1e-3) -> Tensor:
    """Hessian products by fourth-order central differences of gradients from plain backward passes."""

    def gradient(theta: Tensor) -> Tensor:
        theta = theta.clone().requires_grad_()
        outputs = functional_call(p.model, objective.unflatten(theta), (p.inputs,))
        return torch.autograd.grad(p.loss_fn(outputs, p.targets), theta)[0]

    theta, products = objective.parameters, []
    for v in vectors:
        differences = [gradient(theta + m * step * v) - gradient(theta - m * step * v) for m in (1, 2)]
        products.append((8 * differences[0] - differences[1]) / (12 * step))
    return torch.stack(products)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", NAMES)
def test_hessian_equals_the_dense_hessian(name):
    p = problem(name)
    objective = objective_of(p)
    assert relative(lsfast.HessianOperator(objective).to_dense(), dense_hessian(p, objective)) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "transformer", "silu and group norm, mse", "tied tokens"])
def test_hessian_equals_finite_differences_of_gradients(name):
    # Truncation is h^4 f^(5) / 30, rounding eps |g| / h: about 1e-12 and 1e-13 relative to |H|; smooth models only.
    p = problem(name)
    objective = objective_of(p)
    vectors = torch.randn(8, objective.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors /= vectors.norm(dim=1, keepdim=True)
    products = lsfast.HessianOperator(objective).apply(vectors)
    assert relative(products, finite_difference_products(p, objective, vectors)) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_ggn_equals_its_definition(name):
    p = problem(name)
    objective = objective_of(p)
    theta = objective.parameters

    def outputs(theta: Tensor) -> Tensor:
        return functional_call(p.model, objective.unflatten(theta), (p.inputs,))

    with sdpa_kernel(SDPBackend.MATH):
        z = outputs(theta).detach()
        jacobian = torch.autograd.functional.jacobian(outputs, theta).reshape(z.numel(), -1)
    middle = torch.autograd.functional.hessian(lambda z: p.loss_fn(z, p.targets), z).reshape(z.numel(), z.numel())
    G = lsfast.GGNOperator(objective).to_dense()
    assert relative(G, jacobian.T @ middle @ jacobian) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_ggn_of_a_convex_loss_is_positive_semidefinite(name):
    G = lsfast.GGNOperator(objective_of(problem(name))).to_dense()
    eigenvalues = torch.linalg.eigvalsh((G + G.T) / 2)
    assert eigenvalues[0] > -1e-14 * eigenvalues[-1] * len(eigenvalues)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", [lsfast.HessianOperator, lsfast.GGNOperator])
def test_an_8_and_2_split_gives_the_full_batch_product(name, operator):
    p = problem(name)
    whole = objective_of(p)
    parts = lsfast.Objective(p.model, p.loss_fn, p.split(8))
    v = torch.randn(3, whole.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert relative(operator(parts).apply(v), operator(whole).apply(v)) < 1e-13
    assert relative(parts.gradient(), whole.gradient()) < 1e-13
    assert relative(parts.loss(), whole.loss()) < 1e-14


@pytest.mark.parametrize("name", ["mlp", "silu and group norm, mse"])
def test_sum_reduction_adds_batches(name):
    p = problem(name)
    loss_fn = type(p.loss_fn)(reduction="sum")
    parts = lsfast.Objective(p.model, loss_fn, p.split(7), reduction="sum")
    mean = objective_of(p)
    v = torch.randn(mean.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = p.targets.numel() * (lsfast.HessianOperator(mean) @ v)
    assert relative(lsfast.HessianOperator(parts) @ v, expected) < 1e-13


@pytest.mark.parametrize("operator", [lsfast.HessianOperator, lsfast.GGNOperator])
def test_many_vectors_at_once_equal_one_at_a_time(operator):
    A = operator(objective_of(problem("transformer")))
    V = torch.randn(20, A.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = A.apply(V)
    assert together.is_contiguous()
    assert relative(torch.stack([A @ v for v in V]), together) < 1e-13
    assert relative((A @ V.T).T, together) < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_no_defect_in_a_right_operator(name):
    p = problem(name)
    defects = lsfast.HessianOperator(objective_of(p)).check()
    assert defects.symmetry < 1e-13
    assert defects.determinism == 0.0
    # Kinks (ReLU, huber) within the step make the finite difference differ; smooth ones agree to h^2.
    if p.smooth:
        assert defects.finite_difference < 1e-8


def test_check_finds_the_defects_of_a_wrong_operator():
    H = lsfast.HessianOperator(objective_of(problem("mlp")))
    right, calls = H._linearization.hvp, []

    def wrong(rows: Tensor) -> Tensor:
        calls.append(rows)
        return right(rows).roll(1, dims=1) * (1 + 0.1 * len(calls))

    H._linearization.hvp = wrong
    defects = H.check()
    assert defects.symmetry > 1e-3
    assert defects.finite_difference > 1e-1
    assert defects.determinism > 1e-2


def test_block_is_the_diagonal_block_of_the_dense_matrix():
    p = problem("mlp")
    H = lsfast.HessianOperator(objective_of(p))
    chosen = torch.cat([torch.arange(48), torch.arange(56, 96)])  # 0.weight is first, 2.weight after 0.bias
    expected = H.to_dense()[chosen][:, chosen]
    assert relative(H.block("*.weight").to_dense(), expected) < 1e-13
    only = lsfast.HessianOperator(objective_of(p, params="2.*"))
    assert relative(only.to_dense(), H.block("2.*").to_dense()) < 1e-13
    with pytest.raises(ValueError, match="pattern must match a parameter, got 'conv'"):
        H.block("conv")


def test_weight_decay_shifts_loss_gradient_and_hessian():
    p, c = problem("mlp"), 0.3
    plain, decayed = objective_of(p), objective_of(p, weight_decay=c)
    theta = plain.parameters
    assert torch.allclose(decayed.loss(), plain.loss() + 0.5 * c * theta.square().sum(), rtol=1e-14)
    assert torch.allclose(decayed.gradient(), plain.gradient() + c * theta, rtol=1e-14)
    shifted = lsfast.HessianOperator(plain) + c
    assert relative(lsfast.HessianOperator(decayed).to_dense(), shifted.to_dense()) < 1e-14


def test_operator_is_that_of_the_point_it_is_taken_at():
    p = problem("mlp")
    objective = objective_of(p)
    theta = objective.parameters
    moved = objective.at(theta + 0.1)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(theta + 0.1, p.model.parameters())
    expected_there = dense_hessian(p, objective_of(p))
    assert relative(lsfast.HessianOperator(moved).to_dense(), expected_there) < 1e-12
    assert relative(lsfast.HessianOperator(objective.at(theta)).to_dense(), expected_there) > 1e-3


def test_train_mode_batch_norm_uses_batch_statistics_and_leaves_the_running_ones():
    p = problem("cnn")
    p.model.train()
    buffers = {name: buffer.clone() for name, buffer in p.model.named_buffers()}
    objective = objective_of(p)
    H = lsfast.HessianOperator(objective).to_dense()
    for name, buffer in p.model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    frozen = nn.BatchNorm2d(4, track_running_stats=False).double()
    frozen.load_state_dict(p.model[1].state_dict(), strict=False)
    p.model[1] = frozen
    assert relative(H, dense_hessian(p, objective_of(p))) < 1e-12


def test_models_with_dict_inputs_and_structured_outputs():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = problem("mlp").model

        def forward(self, features: Tensor, scale: float) -> dict[str, Tensor]:
            return {"logits": scale * self.inner(features)}

    p = problem("mlp")
    data = [
        ({"features": p.inputs[:8], "scale": 1.0}, p.targets[:8]),
        ({"features": p.inputs[8:], "scale": 1.0}, p.targets[8:]),
    ]
    wrapped = lsfast.Objective(Wrapped(), p.loss_fn, data, output=lambda result: result["logits"])
    plain = objective_of(p)
    v = torch.randn(plain.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert relative(lsfast.HessianOperator(wrapped) @ v, lsfast.HessianOperator(plain) @ v) < 1e-13
    assert relative(lsfast.GGNOperator(wrapped) @ v, lsfast.GGNOperator(plain) @ v) < 1e-13
