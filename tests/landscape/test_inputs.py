"""The loss as a function of inputs: a quadratic in closed form, embeddings, and a model that stays as it was."""

import pytest
import torch
from models import GPT
from torch import nn

import lsfast

from .problems import of_network


class Two(nn.Module):
    """Two inputs that are numbers, one that is not, in another order than that of their names."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, z, index, a):
        return self.linear(z)[:, index] + 2.0 * a


def of_line(rows=5, **changes):
    torch.manual_seed(1)
    model = nn.Linear(3, 2).double()
    data = (torch.randn(rows, 3, dtype=torch.float64), torch.randn(rows, 2, dtype=torch.float64))
    return lsfast.Objective(model, nn.MSELoss(reduction="sum"), data, reduction="sum", **changes)


def of_tokens():
    torch.manual_seed(2)
    model = GPT(vocabulary=13, positions=5, width=8, blocks=1, heads=2).double()
    tokens, targets = torch.randint(0, 13, (3, 5)), torch.randint(0, 13, (15,))
    return lsfast.Objective(model, nn.CrossEntropyLoss(), (tokens, targets))


def test_curvature_in_the_inputs_of_a_line_is_that_of_each_row():
    objective = of_line()
    of_inputs = lsfast.input_objective(objective, rows=[4, 1])
    weight = objective.model.weight.detach()
    assert of_inputs.unflatten(of_inputs.parameters).keys() == {"inputs.0"}
    assert torch.equal(of_inputs.parameters.view(2, 3), objective.data[0][[4, 1]])
    block = 2.0 * weight.T @ weight
    expected = torch.block_diag(block, block)
    for operator in (lsfast.HessianOperator(of_inputs), lsfast.GGNOperator(of_inputs)):
        torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-12, atol=1e-14)
    residual = objective.model(objective.data[0][[4, 1]]) - objective.data[1][[4, 1]]
    torch.testing.assert_close(of_inputs.loss(), residual.detach().square().sum(), rtol=1e-14, atol=0)
    torch.testing.assert_close(of_inputs.gradient(), 2 * (residual @ weight).detach().reshape(-1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("engine", ["program", "autograd"])
def test_grid_around_an_example_is_the_loss_of_examples_beside_it(engine):
    objective = of_line(engine=engine)
    around = lsfast.input_objective(objective, rows=2)
    directions = lsfast.random_directions(around, normalize="model")
    grid = lsfast.loss_grid(around, directions, steps=(3, 2), extent=0.5)
    x, target = objective.data[0][2], objective.data[1][2]
    for i, a in enumerate(grid.coordinates[0]):
        for j, b in enumerate(grid.coordinates[1]):
            moved = x + a * directions.vectors[0] + b * directions.vectors[1]
            expected = (objective.model(moved) - target).square().sum()
            torch.testing.assert_close(grid.values[i, j], expected.detach(), rtol=1e-13, atol=0)
    assert lsfast.sharpness(around) > 0


def test_inputs_given_by_name_keep_their_places_and_other_tensors_stay():
    torch.manual_seed(3)
    z, a = torch.randn(4, 3), torch.randn(4, 2)
    inputs = {"z": z, "index": torch.tensor([1, 0]), "a": a}
    objective = lsfast.Objective(Two(), nn.MSELoss(), (inputs, torch.randn(4, 2)))
    of_inputs = lsfast.input_objective(objective)
    assert torch.equal(of_inputs.parameters, torch.cat([z.reshape(-1), a.reshape(-1)]))
    assert of_inputs.loss() == objective.loss()
    leaves = {"z": z.clone().requires_grad_(), "a": a.clone().requires_grad_()}
    nn.functional.mse_loss(objective.model(**{**inputs, **leaves}), objective.data[1]).backward()
    expected = torch.cat([leaves["z"].grad.reshape(-1), leaves["a"].grad.reshape(-1)])
    torch.testing.assert_close(of_inputs.gradient(), expected)
    torch.testing.assert_close(lsfast.HessianOperator(of_inputs).check().finite_difference, 0.0, rtol=0, atol=1e-2)


def test_embedding_is_varied_where_it_enters_and_a_head_tied_to_it_is_not():
    objective = of_tokens()
    model, (tokens, targets) = objective.model, objective.data
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    of_embedding = lsfast.input_objective(objective, embedding=name)
    embedded = model.get_submodule(name)(tokens).detach()
    assert torch.equal(of_embedding.parameters, embedded.reshape(-1))
    torch.testing.assert_close(of_embedding.loss(), objective.loss(), rtol=1e-14, atol=0)
    leaf = embedded.clone().requires_grad_()
    hook = model.get_submodule(name).register_forward_hook(lambda module, given, output: leaf)
    nn.functional.cross_entropy(model(tokens), targets).backward()
    hook.remove()
    torch.testing.assert_close(of_embedding.gradient(), leaf.grad.reshape(-1), rtol=1e-11, atol=1e-15)


def test_parameters_are_where_the_objective_has_them_and_the_model_is_left_alone():
    objective = of_tokens()
    model = objective.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    moved = objective.at(0.5 * objective.parameters)
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    of_embedding = lsfast.input_objective(moved, embedding=name)
    torch.testing.assert_close(of_embedding.loss(), moved.loss(), rtol=1e-14, atol=0)
    assert abs(of_embedding.loss() - objective.loss()) > 1e-4
    lsfast.HessianOperator(of_embedding) @ of_embedding.parameters
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_statistics_of_batch_norms_in_train_mode_are_left_alone():
    objective = of_network(torch.float64)
    before = {name: buffer.clone() for name, buffer in objective.model.named_buffers()}
    of_maps = lsfast.input_objective(objective, embedding="0")  # any module will do: the maps of the convolution
    assert of_maps.n == 10 * 3 * 4 * 4
    torch.testing.assert_close(of_maps.loss(), objective.loss(), rtol=1e-13, atol=0)
    of_maps.gradient()
    assert all(torch.equal(buffer, before[name]) for name, buffer in objective.model.named_buffers())


def test_bad_rows_and_embeddings_are_named():
    line, tokens = of_line(), of_tokens()
    call = lsfast.input_objective
    for broken, error, message in (
        (lambda: call(3), TypeError, "objective must be an Objective, got int"),
        (lambda: call(line, rows=5), ValueError, "rows must be below the 5 of the first batch, got 5"),
        (lambda: call(line, rows=-1), ValueError, "rows must be at least 0, got -1"),
        (lambda: call(line, rows=[0, 0]), ValueError, "rows must differ from each other, got .0, 0."),
        (lambda: call(line, rows=[]), TypeError, "rows must be an integer or a sequence of integers, got .."),
        (lambda: call(line, rows=1.0), TypeError, "rows must be an integer or a sequence of integers, got 1.0"),
        (lambda: call(tokens, rows=1), ValueError, "do not share their first axis, got lengths 3, 15"),
        (lambda: call(tokens), ValueError, "embedding must name a module for inputs that are not floating-point"),
        (lambda: call(tokens, embedding="wte"), ValueError, "embedding must be the name of a module .* got 'wte'"),
    ):
        with pytest.raises(error, match=f"input_objective: .*{message}"):
            broken()
