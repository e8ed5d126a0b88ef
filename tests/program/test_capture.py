"""What the capture makes of models as people write them: each product equals the autograd engine's."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import lsfast


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


class Written(nn.Module):
    """A model given by a function of (module, x) and its parameters."""

    def __init__(self, function, **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def in_place_on_views(m: nn.Module, x: Tensor) -> Tensor:
    y = x @ m.w
    y[:, 0] = y[:, 1].clone() ** 2
    y[:, 1:3] *= 2.0
    y.T[2].add_(m.b[0])
    z = y.view(-1)
    z[3] = 0.0
    y[:, :2].mul_(y[:, 2:].clone())
    return torch.tanh(y).transpose(0, 1).contiguous().transpose(0, 1)


def in_place_through_a_view_taken_before(m: nn.Module, x: Tensor) -> Tensor:
    y = x @ m.w
    row = y[0]
    y.mul_(m.b)
    row.tanh_()
    return y * row


def without_gradient(m: nn.Module, x: Tensor) -> Tensor:
    y = x @ m.w
    with torch.no_grad():
        scale = y.abs().max() + m.b.sum()
        scale = scale * 2.0
    return torch.sin(y) / scale + y.detach() * m.b


def activations_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = x @ m.w
    identity = y
    y = functional.relu(y + m.b, inplace=True)
    y = y * m.b
    y += identity
    return torch.sin(functional.leaky_relu_(y * identity))


def used_twice_and_split(m: nn.Module, x: Tensor) -> Tensor:
    q, _, v = torch.split(torch.cat([x @ m.w, x @ m.w.T, m.b.expand(len(x), -1)], 1), 4, 1)
    return torch.stack([q * v, v / (1.0 + q * q)]).sum(0)


def masks(m: nn.Module, x: Tensor) -> Tensor:
    y = x @ m.w
    mask = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    scores = (y.T @ y).masked_fill(mask, float("-inf")).softmax(-1)
    return torch.where(y > 0, y @ scores, m.b * y.exp().clamp(max=3.0))


MODELS = [
    in_place_on_views,
    in_place_through_a_view_taken_before,
    activations_in_place,
    used_twice_and_split,
    masks,
]


def objectives(model: nn.Module, data, loss=None, **options) -> list[lsfast.Objective]:
    loss = loss or nn.MSELoss()
    return [lsfast.Objective(model, loss, data, engine=engine, **options) for engine in ("program", "autograd")]


def assert_same_products(pair: list[lsfast.Objective], tolerance: float = 1e-12) -> None:
    for operator in (lsfast.HessianOperator, lsfast.GGNOperator):
        found, expected = (operator(objective).to_dense() for objective in pair)
        assert (found - expected).norm() <= tolerance * expected.norm()
        assert expected.norm() > 0


@pytest.mark.parametrize("function", MODELS, ids=lambda f: f.__name__)
def test_models_as_people_write_them(function):
    model = Written(function, w=real(4, 4), b=real(4), unused=real(3))
    model.w.data *= 0.5
    objective, oracle = objectives(model, (real(5, 4), real(5, 4, seed=1)))
    assert_same_products([objective, oracle])
    H = lsfast.HessianOperator(objective).to_dense()
    assert H[20:].abs().max() == 0.0  # the parameter that is not used


def test_what_the_model_detaches_is_a_constant_of_all_derivatives():
    # Double backward says so too; the autograd engine's forward derivative of a gradient does not know.
    model = Written(without_gradient, w=real(4, 4), b=real(4))
    x, y = real(5, 4), real(5, 4, seed=1)
    objective = lsfast.Objective(model, nn.MSELoss(), (x, y))

    def loss(theta: Tensor) -> Tensor:
        return functional.mse_loss(functional_call(model, objective.unflatten(theta), (x,)), y)

    expected = torch.autograd.functional.hessian(loss, objective.parameters)
    assert (lsfast.HessianOperator(objective).to_dense() - expected).norm() < 1e-12 * expected.norm()


def test_only_the_chosen_parameters_are_differentiated():
    model = Written(activations_in_place, w=real(4, 4), b=real(4))
    assert_same_products(objectives(model, (real(5, 4), real(5, 4, seed=1)), params="b"))


def test_one_program_serves_all_batches_of_a_shape_and_all_parameters():
    model = Written(activations_in_place, w=real(4, 4), b=real(4))
    batches = [(real(5, 4, seed=s), real(5, 4, seed=10 + s)) for s in range(3)] + [(real(2, 4), real(2, 4, seed=3))]
    objective, oracle = objectives(model, batches)
    assert_same_products([objective, oracle])
    assert len(objective.programs) == 2
    theta = objective.parameters + 0.1
    assert_same_products([objective.at(theta), oracle.at(theta)])
    assert len(objective.programs) == 2


def test_a_capture_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double().train()
    model[2].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    rng = torch.get_rng_state()
    pair = objectives(model, (real(6, 3), real(6, 2)))
    assert_same_products(pair)
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert attributes == {name: list(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_train_and_eval_mode_are_different_programs():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    model[1].running_var.fill_(3.0)
    objective, oracle = objectives(model, (real(6, 3), real(6, 2)))
    assert_same_products([objective, oracle])
    model.train()
    assert_same_products([objective, oracle])


def test_control_flow_that_depends_on_data_is_named_with_its_line():
    def branches(m: nn.Module, x: Tensor) -> Tensor:
        y = x @ m.w
        if y.sum() > 0:  # this line
            return y
        return -y

    model = Written(branches, w=real(4, 4))
    data = (real(5, 4), real(5, 4, seed=1))
    with pytest.raises(RuntimeError, match=r"test_capture\.py:\d+ \(if y\.sum\(\) > 0:.*engine=\"autograd\""):
        lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), data)) @ torch.ones(16, dtype=torch.float64)
    H = lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), data, engine="autograd"))
    assert H.check().symmetry < 1e-12


def test_an_autograd_function_is_refused_because_its_derivative_would_be_lost():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    model = Written(lambda m, x: Twice.apply(x @ m.w), w=real(4, 4))
    with pytest.raises(RuntimeError, match='Twice is a torch.autograd.Function.*engine="autograd"'):
        lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), (real(5, 4), real(5, 4)))).check()
    assert Twice.apply(torch.ones(1)) == 2.0


def test_random_numbers_in_the_model_are_refused():
    model = Written(lambda m, x: x @ m.w + torch.rand(4, dtype=torch.float64), w=real(4, 4))
    with pytest.raises(RuntimeError, match="model must be deterministic, got aten.rand.default"):
        lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), (real(5, 4), real(5, 4)))).check()
    dropped = Written(lambda m, x: functional.dropout(x @ m.w, 0.5, training=True), w=real(4, 4))
    with pytest.raises(RuntimeError, match="model must be deterministic, got aten.dropout"):
        lsfast.HessianOperator(lsfast.Objective(dropped, nn.MSELoss(), (real(5, 4), real(5, 4)))).check()
