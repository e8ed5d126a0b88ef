"""States of a model: every way to keep one reads the same, and what is not one is named."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lsfast
from lsfast.landscape.states import read_state

from .problems import evaluated, network

STATISTICS = ["1.running_mean", "1.running_var"]


def trained():
    """The network of `evaluated` with other parameters and statistics."""
    model = network()
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
            tensor += 0.5
    return model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def of_tied():
    return lsfast.Objective(Tied(), nn.MSELoss(), (torch.ones(1, 2), torch.ones(1, 2)))


def test_every_way_to_keep_a_state_reads_the_same(tmp_path):
    objective, model = evaluated(), trained()
    state = model.state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "state.pt")
    torch.save(state, tmp_path / "no_suffix")
    save_file(state, tmp_path / "state.safetensors")
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    for kept in (
        state,
        model,
        nn.DataParallel(model).state_dict(),
        {f"_orig_mod.{name}": tensor for name, tensor in state.items()},  # of torch.compile(model)
        {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        {name.replace("4.", "4._orig_mod."): tensor for name, tensor in state.items()},
        torch.optim.swa_utils.AveragedModel(model).state_dict(),
        {"model": state, "optimizer": {}},
        {"model_state_dict": {name: tensor.double() for name, tensor in state.items()}},
        tmp_path / "state.pt",
        str(tmp_path / "no_suffix"),
        tmp_path / "state.safetensors",
    ):
        vector, buffers = read_state("test", objective, kept)
        assert torch.equal(vector, expected)
        assert (vector.dtype, list(buffers)) == (torch.float32, STATISTICS)
        for name in STATISTICS:
            assert buffers[name].dtype == torch.float32
            assert torch.equal(buffers[name], state[name])
    for without in (dict(model.named_parameters()), expected):
        vector, buffers = read_state("test", objective, without)
        assert torch.equal(vector, expected)
        assert buffers == {}


def test_batch_norms_in_train_mode_have_no_statistics_to_read():
    objective = evaluated()
    assert list(read_state("test", objective, trained())[1]) == STATISTICS
    objective.model.train()
    assert read_state("test", objective, trained())[1] == {}


def test_tied_weights_have_any_of_their_names_and_one_value():
    objective, weight = of_tied(), torch.arange(4.0).view(2, 2)
    for names in (("first",), ("second",), ("first", "second")):
        vector, _ = read_state("test", objective, {f"{name}.weight": weight.clone() for name in names})
        assert vector.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="state must hold one value for the tied 'first.weight' and 'second.weight'"):
        read_state("test", objective, {"first.weight": weight, "second.weight": weight + 1})


def test_what_is_read_shares_no_memory_with_the_state():
    objective, model = evaluated(), trained()
    for state in (model.state_dict(), objective.parameters):
        before = objective.parameters if isinstance(state, torch.Tensor) else {k: v.clone() for k, v in state.items()}
        vector, buffers = read_state("test", objective, state)
        for tensor in (vector, *buffers.values()):
            tensor.zero_()
        pairs = [(state, before)] if isinstance(state, torch.Tensor) else [(state[k], before[k]) for k in state]
        assert all(torch.equal(one, other) for one, other in pairs)


def test_states_of_other_models_are_refused_and_the_first_difference_is_named(tmp_path):
    objective, state = evaluated(), trained().state_dict()
    (tmp_path / "torn.pt").write_bytes(b"torn")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    torch.save({"a": nn.Linear(1, 1)}, tmp_path / "pickle.pt")
    torch.save([1], tmp_path / "list.pt")
    nan = state["4.weight"].clone()
    nan[1, 2] = float("nan")
    without_variance = {name: tensor for name, tensor in state.items() if name != "1.running_var"}
    for kept, error, message in (
        (3, TypeError, "run must be a state dict, the path of one, a module or a vector .n., got int"),
        ({}, ValueError, r"run must hold '0.weight' of shape \[3, 1, 3, 3\], got none in an empty state"),
        ({"x.weight": torch.ones(2)}, ValueError, "'0.weight' of shape .* got none, among 1 with 'x.weight' first"),
        (state | {"7.bias": torch.ones(2)}, ValueError, "run must hold tensors of the model only, got '7.bias'"),
        (state | {"0.bias": torch.ones(4)}, ValueError, r"run must hold '0.bias' of shape \[3\], got \[4\]"),
        (state | {"0.bias": torch.ones(3).int()}, ValueError, "floating-point numbers for '0.bias', got torch.int32"),
        (state | {"4.weight": nan}, ValueError, "run must be finite, got NaN or Inf in '4.weight'"),
        (without_variance, ValueError, "every floating buffer or none, got '1.running_mean', not '1.running_var'"),
        (torch.ones(3), ValueError, rf"run must have shape \[{objective.n}\], got \[3\]"),
        (torch.ones(objective.n).double(), ValueError, "run must have dtype torch.float32, got torch.float64"),
        (tmp_path / "none.pt", ValueError, "run '.*none.pt' must be a whole file .*: FileNotFoundError"),
        (tmp_path / "none.safetensors", ValueError, "none.safetensors' must be a whole .* file: FileNotFoundError"),
        (tmp_path / "torn.pt", ValueError, "torn.pt' must be a whole file that torch.load reads"),
        (tmp_path / "torn.safetensors", ValueError, "torn.safetensors' must be a whole safetensors file"),
        (tmp_path / "pickle.pt", ValueError, "pickle.pt' must be a whole file that torch.load reads with weights"),
        (tmp_path / "list.pt", TypeError, "list.pt' must be a state dict, .* got list"),
    ):
        with pytest.raises(error, match=f"^test: .*{message}"):
            read_state("test", objective, kept, "run")
