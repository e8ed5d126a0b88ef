"""Directions from an optimizer's state: the step it took, its moments, parameters in the right places."""

import pytest
import torch
from torch import nn

import lsfast

OPTIMIZERS = {
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.1, weight_decay=0.3),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.5, 0.9), weight_decay=0.0),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True, eps=0.1),
}


def of_model(make):
    """An objective of two of three layers after three steps; the parameters before the last; the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    inputs, targets = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    # In another order than the model's, and with another learning rate for one layer.
    optimizer = make([{"params": [*model[4].parameters(), *model[0].parameters()]}])
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
    before = {}
    for _ in range(3):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    objective = lsfast.Objective(model, nn.MSELoss(), (inputs, targets), params=["2.*", "4.*"])
    return objective, before, optimizer


ORDER = ["4.weight", "4.bias", "0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_is_the_step_that_was_taken(name):
    objective, before, optimizer = of_model(OPTIMIZERS[name])
    step = objective.flatten(before) - objective.parameters
    for found in (
        lsfast.optimizer_directions(objective, optimizer, ["update"], normalize=None),
        lsfast.optimizer_directions(objective, optimizer.state_dict(), ["update"], normalize=None, names=ORDER),
    ):
        assert (found.labels, found.origin) == (("update",), None)
        torch.testing.assert_close(found.vectors[0], step, rtol=1e-10, atol=1e-14)


def test_moments_are_those_of_each_parameter_with_the_length_of_the_model():
    objective, _, optimizer = of_model(OPTIMIZERS["Adam"])
    unscaled = lsfast.optimizer_directions(objective, optimizer, normalize=None)
    scaled = lsfast.optimizer_directions(objective, optimizer)
    assert scaled.labels == ("exp_avg", "exp_avg_sq")
    own = dict(objective.model.named_parameters())
    for entry, vector, one in zip(scaled.labels, unscaled.vectors, scaled.vectors, strict=True):
        for name, part in objective.unflatten(vector).items():
            assert torch.equal(part, optimizer.state[own[name]][entry])
        torch.testing.assert_close(one, vector * (objective.parameters.norm() / vector.norm()), rtol=1e-14, atol=0)


def test_momentum_is_the_default_of_sgd_and_named_parameters_need_no_names():
    objective, _, optimizer = of_model(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    found = lsfast.optimizer_directions(objective, optimizer, normalize=None)
    own = dict(objective.model.named_parameters())
    assert found.labels == ("momentum_buffer",)
    state = optimizer.state_dict()
    for index, group in enumerate(state["param_groups"]):  # as torch keeps them, if it was given named parameters
        group["param_names"] = (ORDER[:4], ORDER[4:])[index]
    assert torch.equal(lsfast.optimizer_directions(objective, state, normalize=None).vectors, found.vectors)
    expected = [optimizer.state[own[name]]["momentum_buffer"].reshape(-1) for name in objective.names]
    assert torch.equal(found.vectors[0], torch.cat(expected))


def test_state_dict_in_the_models_order_needs_no_names():
    objective, _, _ = of_model(OPTIMIZERS["Adam"])
    optimizer = torch.optim.Adam(objective.model.parameters())
    objective.batch_loss(objective.model(objective.data[0]), objective.data[1]).backward()
    optimizer.step()
    found = lsfast.optimizer_directions(objective, optimizer.state_dict())
    assert torch.equal(found.vectors, lsfast.optimizer_directions(objective, optimizer).vectors)


def test_states_that_do_not_fit_are_refused_and_the_first_parameter_is_named():
    objective, _, adam = of_model(OPTIMIZERS["Adam"])
    _, _, nadam = of_model(torch.optim.NAdam)
    _, _, sgd = of_model(lambda groups: torch.optim.SGD(groups, lr=0.1))
    own = dict(objective.model.named_parameters())
    fresh = torch.optim.Adam(objective.model.parameters())
    part = torch.optim.Adam([own["2.weight"]])
    part.state[own["2.weight"]] = dict(adam.state[own["2.weight"]])
    still = adam.state_dict()
    still["state"] = {k: {n: t * 0 for n, t in v.items()} for k, v in still["state"].items()}
    moved = nadam.state_dict()
    call = lsfast.optimizer_directions
    for broken, error, message in (
        (lambda: call(3, adam), TypeError, "objective must be an Objective, got int"),
        (lambda: call(objective, 3), TypeError, "optimizer must be a torch.optim.Optimizer or its state dict, got int"),
        (lambda: call(objective, nadam), ValueError, "every parameter of the objective, got none for '2.weight'"),
        (lambda: call(objective, part), ValueError, "every parameter of the objective, got none for '2.bias'"),
        (lambda: call(objective, fresh), ValueError, "taken a step on every parameter .* got no state for '2.weight'"),
        (lambda: call(objective, sgd.state_dict(), names=ORDER), ValueError, "got no state for '2.weight'"),
        (lambda: call(objective, still, names=ORDER), ValueError, "exp_avg must have a norm that is .* not 0, got 0.0"),
        (lambda: call(objective, adam, names=ORDER), ValueError, "names must be None for an optimizer"),
        (lambda: call(objective, adam.state_dict(), names=ORDER[1:]), ValueError, "names must be those of .* 6 param"),
        (
            lambda: call(objective, adam.state_dict()),
            ValueError,
            r"exp_avg of shape \[5, 4\] for '2.weight', got \[4, 3\]",
        ),
        (lambda: call(objective, adam, "exp_avg"), TypeError, "entries must be a sequence of names, got 'exp_avg'"),
        (lambda: call(objective, adam, ["x"]), ValueError, "got 'step', 'exp_avg', 'exp_avg_sq' and no 'x' for '2.we"),
        (lambda: call(objective, moved, ["update"], names=ORDER), ValueError, "update for Adam and AdamW"),
        (
            lambda: call(objective, adam, normalize="filter"),
            ValueError,
            "normalize must be one of 'model', got 'filter'",
        ),
    ):
        with pytest.raises(error, match=f"optimizer_directions: .*{message}"):
            broken()
