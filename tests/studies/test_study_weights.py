"""Which weights a study quantizes, and that they are quantized along their contraction."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import lsfast
from lsfast.studies import quantizable_parameters, quantize_parameters

MEAN_SQUARE = nn.MSELoss()


def objective_of(model, *shape, params=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = torch.randn(*shape)
        outputs = model(inputs)
    return lsfast.Objective(model, MEAN_SQUARE, (inputs, torch.zeros_like(outputs)), params=params)


class Language(nn.Module):
    """Tokens in, logits by the embedding itself, by a module tied to it, or by a module of its own."""

    def __init__(self, head):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = None if head == "embedding" else nn.Linear(8, 7, bias=False)
        if head == "tied":
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.norm(self.hidden(self.embedding(tokens)).relu())
        return functional.linear(x, self.embedding.weight) if self.head is None else self.head(x)


def language_objective(head):
    tokens = torch.arange(6).view(2, 3)
    model = Language(head)
    return lsfast.Objective(
        model, lambda z, t: functional.cross_entropy(z.flatten(0, 1), t.flatten()), (tokens, tokens)
    )


def test_an_mlp_keeps_its_biases_and_its_head():
    model = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    assert quantizable_parameters(objective_of(model, 6, 5)) == ("0.weight", "2.weight")


def test_a_cnn_keeps_its_norms_and_the_head_under_pooling_and_softmax():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 3, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LogSoftmax(1),
    ).eval()  # fmt: skip
    assert quantizable_parameters(objective_of(model, 6, 1, 8, 8)) == ("0.weight", "3.weight")


def test_attention_counts_both_of_its_projections():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.LayerNorm(8), nn.Linear(8, 3))
    assert set(quantizable_parameters(objective_of(model, 2, 4, 8))) == {
        "0.self_attn.in_proj_weight",
        "0.self_attn.out_proj.weight",
        "0.linear1.weight",
        "0.linear2.weight",
    }


def test_the_head_is_what_ran_last_among_residual_branches():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    names = quantizable_parameters(objective_of(layer, 2, 4, 8))
    assert "linear2.weight" not in names
    assert "linear1.weight" in names


@pytest.mark.parametrize("head", ["embedding", "tied", "own"])
def test_embeddings_are_left_out_and_so_is_what_is_tied_to_them(head):
    assert quantizable_parameters(language_objective(head)) == ("hidden.weight",)


def test_the_head_is_found_by_the_order_of_calls_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body = nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.body(x).relu())

    assert quantizable_parameters(objective_of(Backwards(), 6, 5)) == ("body.weight",)


def test_only_parameters_of_the_objective_are_quantized():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    assert quantizable_parameters(objective_of(model, 6, 5, params="1.*")) == ("1.weight",)


def test_a_model_that_is_all_head_is_refused():
    with pytest.raises(ValueError, match="objective must have a Linear, Conv or MultiheadAttention weight other than"):
        quantizable_parameters(objective_of(nn.Linear(5, 2), 6, 5))


def test_a_convolution_is_quantized_as_a_matrix_of_its_filters():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 2))
    objective = objective_of(model, 5, 4, 3, 3)
    found = objective.unflatten(quantize_parameters(objective, "nvfp4"))
    expected = lsfast.fake_quantize(model[0].weight.detach().reshape(6, 18), "nvfp4", axis=-1).reshape(6, 2, 3, 3)
    assert torch.equal(found["0.weight"], expected)
    for name in ("0.bias", "2.weight", "2.bias"):
        assert torch.equal(found[name], model.get_parameter(name))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_contracts_over_its_inputs(groups):
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, groups=groups), nn.Conv2d(6, 2, 1))
    objective = objective_of(model, 5, 8, 3, 3)
    found = objective.unflatten(quantize_parameters(objective, "nvfp4"))["0.weight"]
    parts = model[0].weight.detach().chunk(groups)  # [in/groups, out/groups, 2, 2] each
    rows = torch.cat([part[:, j].flatten() for part in parts for j in range(6 // groups)]).view(6, -1)
    quantized = lsfast.fake_quantize(rows, "nvfp4", axis=-1).view(groups, 6 // groups, 8 // groups, 2, 2)
    for g in range(groups):
        for j in range(6 // groups):
            assert torch.equal(found.chunk(groups)[g][:, j], quantized[g, j])


def test_stochastic_rounding_depends_on_the_seed_and_differs_between_weights():
    body = nn.Linear(16, 16, bias=False)
    model = nn.Sequential(body, nn.ReLU(), copy.deepcopy(body), nn.Linear(16, 2))
    objective = objective_of(model, 5, 16)
    stochastic = lsfast.scheme("e2m1").replace(rounding="stochastic")
    first, again, other = (objective.unflatten(quantize_parameters(objective, stochastic, s)) for s in (1, 1, 2))
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["2.weight"])


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    objective = objective_of(model, 6, 5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    quantize_parameters(objective, "nvfp4")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_unknown_scheme_is_named_with_the_nearest():
    objective = objective_of(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), 6, 5)
    with pytest.raises(ValueError, match="got 'nvfp8'; nearest is 'nvfp4'"):
        quantize_parameters(objective, "nvfp8")
