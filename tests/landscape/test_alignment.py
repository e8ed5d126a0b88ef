"""Permutation alignment: networks that compute the same function, and which units can be permuted."""

import copy
import itertools

import pytest
import torch
from models import GPT, ResNet
from torch import nn

import lsfast
from lsfast.landscape.states import read_state


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)
    )


def cnn():
    """A depthwise convolution, channels that are flattened, a norm of flattened channels, of neurons."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(5, 10, 3, padding=1, groups=5), nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(),
        nn.BatchNorm1d(24), nn.Linear(24, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


class TiedLayer(nn.Module):
    """A residual layer from units to the same units, whose matching is not linear in the permutation."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)))
        for _ in range(2):
            x = x + torch.tanh(self.inner(x))
        return self.last(x)


NETWORKS = {"mlp": mlp, "cnn": cnn, "resnet": lambda: ResNet((4, 6), 2, 3, channels=1), "tied": TiedLayer}
UNITS = {"mlp": [12, 9], "cnn": [5, 6, 7], "resnet": [4, 4, 4, 6, 6, 6], "tied": [8]}


def of(model, classes=3, shape=(1, 4, 4)):
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    return lsfast.Objective(model, nn.CrossEntropyLoss(), (inputs, torch.randint(classes, (6,), generator=generator)))


def pair(name):
    """An objective, and two networks in eval mode with parameters and statistics far apart."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [NETWORKS[name]().double().eval() for _ in range(2)]
        for model in models:
            for tensor in model.state_dict().values():
                if tensor.is_floating_point() and tensor.dim() == 1:
                    tensor += torch.rand_like(tensor)
                elif tensor.is_floating_point():
                    tensor *= 3
    return of(copy.deepcopy(models[0])), *models


def outputs(objective, state):
    model = copy.deepcopy(objective.model)
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        return model(objective.data[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_aligned_network_computes_the_same_function_and_is_closer(name):
    objective, a, b = pair(name)
    found = lsfast.align(objective, a, b)
    assert sorted(map(len, found.permutations.values())) == sorted(UNITS[name])
    assert any(not torch.equal(p, torch.arange(len(p))) for p in found.permutations.values())
    before = outputs(objective, b.state_dict())
    # Only sums over units are in another order: a few roundings of their terms, which are of the size of the outputs.
    assert (outputs(objective, found.state) - before).abs().max() <= 1e-13 * before.abs().max()
    assert found.distance_after < found.distance_before
    start, end = (read_state("test", objective, state)[0] for state in (a, b))
    torch.testing.assert_close(found.distance_before, (start - end).norm())
    torch.testing.assert_close(found.distance_after, (start - found.parameters).norm())
    vector, buffers = read_state("test", objective, found.state)
    assert torch.equal(vector, found.parameters)
    assert all(torch.equal(buffers[key], value) for key, value in found.buffers.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_copy_is_found_back_and_the_barrier_is_zero(name):
    objective, a, b = pair(name)
    permuted = lsfast.align(objective, a, b).state  # b in another order
    inputs, wanted = objective.data[0], outputs(objective, b.state_dict())
    distance = lsfast.Objective(objective.model, nn.MSELoss(), (inputs, wanted))  # from the function of b
    rounding = (1e-13 * wanted.abs().max()) ** 2
    before = lsfast.barrier(distance, b, permuted)
    assert before.grid.values[[0, -1]].max() <= rounding
    assert before.value > 1e-2 * wanted.var()
    back = lsfast.align(distance, b, permuted)
    for key, value in back.state.items():
        assert torch.equal(value, b.state_dict()[key])
    assert back.distance_after == 0.0
    assert lsfast.barrier(distance, b, back.state).value <= rounding


def test_deep_network_is_found_back_from_the_input_on():
    # Twelve layers shuffled at once: what a group is next to is in no order yet when it is matched, but for the input.
    model = nn.Sequential(nn.Linear(6, 20), *(nn.Linear(20, 20) for _ in range(11)), nn.Linear(20, 3)).double()
    objective = of(nn.Sequential(nn.Flatten(), nn.Linear(16, 6), model).double())
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(objective.n, generator=generator, dtype=torch.float64)
    named = dict(objective.unflatten(theta))
    for layer in range(12):
        order = torch.randperm(20, generator=generator)
        for part in ("weight", "bias"):
            named[f"2.{layer}.{part}"] = named[f"2.{layer}.{part}"][order]
        named[f"2.{layer + 1}.weight"] = named[f"2.{layer + 1}.weight"][:, order]
    found = lsfast.align(objective, theta, objective.flatten(named))
    assert torch.equal(found.parameters, theta)
    assert found.distance_before > 0.5 * theta.norm()


def test_layer_from_units_to_themselves_is_matched_without_loss():
    model = TiedLayer().double()
    objective = of(model)
    large = {name: 30.0 if name == "inner.weight" else 1.0 for name in objective.names}
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        a, b = (
            objective.flatten({
                name: large[name] * torch.randn(shape, generator=generator, dtype=torch.float64)
                for name, shape in zip(objective.names, objective.shapes, strict=True)
            })
            for _ in range(2)
        )  # fmt: skip
        found = lsfast.align(objective, a, b)
        assert found.distance_after <= found.distance_before
        assert found.sweeps < 100
        order = torch.randperm(8, generator=generator)
        named = objective.unflatten(a)
        permuted = {name: x[order] if name.startswith(("first", "inner")) else x for name, x in named.items()}
        permuted["inner.weight"] = permuted["inner.weight"][:, order]
        permuted["last.weight"] = permuted["last.weight"][:, order]
        assert torch.equal(lsfast.align(objective, a, objective.flatten(permuted)).parameters, a)


def test_matching_of_one_layer_is_the_best_of_all_permutations():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = of(model)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, objective.n, generator=generator, dtype=torch.float64)
    found = lsfast.align(objective, a, b)
    named = objective.unflatten(b)
    distances = [
        (a - objective.flatten({
            "1.weight": named["1.weight"][list(order)], "1.bias": named["1.bias"][list(order)],
            "3.weight": named["3.weight"][:, list(order)], "3.bias": named["3.bias"],
        })).norm()
        for order in itertools.permutations(range(5))
    ]  # fmt: skip
    torch.testing.assert_close(found.distance_after, min(distances))
    given = {"1.weight": {0: "h"}, "1.bias": {0: "h"}, "3.weight": {1: "h"}}
    same = lsfast.align(objective, a, b, groups=given)
    assert torch.equal(same.parameters, found.parameters)
    assert torch.equal(same.permutations["h"], found.permutations["1.weight"])


def test_given_groups_are_those_found_also_for_flattened_channels():
    objective, a, b = pair("cnn")
    given = {
        "0.weight": {0: "c"}, "0.bias": {0: "c"}, "4.weight": {0: "c"}, "4.bias": {0: "c"},
        "5.weight": {0: "d", 1: "c"}, "5.bias": {0: "d"}, "10.weight": {0: "h", 1: "d"}, "10.bias": {0: "h"},
        "13.weight": {1: "h"},
    }  # fmt: skip
    for layer, group in (("1", "c"), ("6", "d"), ("9", "d"), ("11", "h")):
        for part in ("weight", "bias", "running_mean", "running_var"):
            given[f"{layer}.{part}"] = {0: group}
    found, same = lsfast.align(objective, a, b), lsfast.align(objective, a, b, groups=given)
    assert torch.equal(found.parameters, same.parameters)
    assert all(torch.equal(found.buffers[key], same.buffers[key]) for key in found.buffers)


def test_units_tied_to_inputs_outputs_and_parameters_that_stay_are_not_permuted():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.c(self.b(x + self.a(x)).relu()).view(-1, 2, 3)

    objective = lsfast.Objective(
        Residual().double(), nn.MSELoss(), (torch.ones(2, 4).double(), torch.ones(2, 2, 3).double())
    )
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, objective.n, generator=generator, dtype=torch.float64)
    assert list(lsfast.align(objective, a, b).permutations) == ["b.weight"]
    part = lsfast.Objective(objective.model, nn.MSELoss(), objective.data, params=["a.*", "b.*"])
    with pytest.raises(
        ValueError, match="align: objective must have a model with units that can be permuted, got none"
    ):
        lsfast.align(part, part.parameters, part.parameters)


class Shuffled(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.a, self.b, self.operation = nn.Linear(16, 8), nn.Linear(8, 3), operation

    def forward(self, x):
        return self.b(self.operation(self.a(x.flatten(1))))


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.view(-1, 2, 4).transpose(1, 2).flatten(1), r"aten.view.*parts an axis of units"),
        (lambda x: x.sort(1).values, r"aten.sort.*not known"),
        (lambda x: x.cumsum(1), r"aten.cumsum.*not known"),
        (lambda x: x[:, 1:].repeat(1, 2)[:, :8], r"aten.slice.*along an axis of units"),
        (lambda x: torch.cat([x[:, :0], x], 1), r"aten.(slice|cat).*along an axis of units"),
        (lambda x: nn.functional.pad(x, (1, -1)), r"aten.(constant_)?pad.*along an axis of units"),
        (lambda x: nn.functional.group_norm(x, 2), r"aten.group_norm.*with 2 groups"),
    ],
)
def test_operation_that_parts_units_is_named(operation, name):
    objective = of(Shuffled(operation).double())
    with pytest.raises(ValueError, match=f"align: objective must have a model whose units can be followed, .*{name}"):
        lsfast.align(objective, objective.parameters, objective.parameters)


def test_attention_is_named_and_its_feed_forward_layers_may_be_given():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT(7, 4, 8, 1, 2).double()
        tokens = torch.randint(7, (2, 4))
    objective = lsfast.Objective(model, nn.CrossEntropyLoss(), (tokens, tokens.flatten()))
    a = objective.parameters
    with pytest.raises(ValueError, match=r"groups be given, got aten\.\w+"):
        lsfast.align(objective, a, a)
    up, down = "blocks.0.feed_forward.0", "blocks.0.feed_forward.2"
    groups = {f"{up}.weight": {0: "hidden"}, f"{up}.bias": {0: "hidden"}, f"{down}.weight": {1: "hidden"}}
    b = a + 0.1 * torch.randn(objective.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = lsfast.align(objective, torch.flip(a, [0]), b, groups=groups)
    assert not torch.equal(found.parameters, b)
    torch.testing.assert_close(objective.at(found.parameters).loss(), objective.at(b).loss(), rtol=1e-13, atol=0)


def test_bad_arguments_are_named():
    objective, a, b = pair("mlp")
    for arguments, error, message in (
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"max_sweeps": 0}, ValueError, "max_sweeps must be at least 1, got 0"),
        ({"groups": {"1.weight": "h"}}, TypeError, "groups must map names to axes to groups"),
        ({"groups": {"weight": {0: "h"}}}, ValueError, "groups must name parameters .*, got 'weight'"),
        ({"groups": {"1.weight": {2: "h"}}}, ValueError, r"groups\['1.weight'\] must have axes of \[12, 16\], got 2"),
        ({"groups": {"1.weight": {0: 1}}}, TypeError, r"groups\['1.weight'\] must map axes to names, got 1"),
        (
            {"groups": {"1.weight": {0: "h"}, "3.weight": {0: "h"}}},
            ValueError,
            r"multiples of a group's units, got \[12, 9\] for 'h'",
        ),
        ({"groups": {}}, ValueError, "units that can be permuted, got none"),
    ):
        with pytest.raises(error, match=f"align: .*{message}"):
            lsfast.align(objective, a, b, **arguments)
    with pytest.raises(ValueError, match="align: b must hold '1.weight'"):
        lsfast.align(objective, a, {})
