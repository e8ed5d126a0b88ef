"""Sharpness of each row of the data by itself."""

import pytest
import torch
from torch import nn

import lsfast

from .problems import network, of_network, of_parameters

METHODS = [("sam", {}), ("asam", {"radius": 0.2}), ("average", {"samples": 3, "seed": 4})]


class Sequences(nn.Module):
    """A small language model: embedding, attention, layer norm, tied output weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        return (self.layer(self.embedding(tokens)) @ self.embedding.weight.T).transpose(1, 2)


def of_sequences():
    tokens = torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[1, 2:] = -100
    targets[3] = -100
    return lsfast.Objective(Sequences().double(), nn.CrossEntropyLoss(), (tokens, targets), weight_decay=0.01)


def row_by_row(objective, inputs, targets, method, options):
    """The sharpness of an objective over each row alone; 0 where it has no target."""
    found = []
    for i in range(len(targets)):
        if (targets[i] == -100).all():
            found.append(torch.zeros(2 if method == "average" else 1, dtype=torch.float64))
            continue
        alone = lsfast.Objective(
            objective.model,
            objective.loss_fn,
            (inputs[i : i + 1], targets[i : i + 1]),
            reduction=objective.reduction,
            weight_decay=objective.weight_decay,
        )
        value = lsfast.sharpness(alone, method, **options)
        found.append(torch.stack([value.value, value.stderr]) if method == "average" else value[None])
    return torch.stack(found, 1)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_values_are_those_of_an_objective_over_each_row(method, options):
    model = network(torch.float64).eval()
    model[1].running_mean += 0.1  # batch norm in eval mode has statistics of its own
    images = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(7) % 4
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    for objective, inputs, targets in (
        (lsfast.Objective(model, nn.CrossEntropyLoss(reduction="sum"), batches, reduction="sum"), images, labels),
        (of_sequences(), *of_sequences().data),
    ):
        found = lsfast.sharpness(objective, method, per_sample=True, **options)
        found = torch.stack([found.value, found.stderr]) if method == "average" else found[None]
        # Losses below 10, which round a few hundred times in float64, are subtracted.
        expected = row_by_row(objective, inputs, targets, method, options)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=500 * 10 * 2.0**-53)
        assert found.dtype == torch.float64
        assert not (found[0] == found[0, 0]).all()


def test_memory_limit_takes_rows_in_parts_with_the_same_values_and_leaves_the_model_alone():
    objective = of_network(torch.float64)
    objective.model.eval()
    before = objective.parameters
    values = lsfast.sharpness(objective, per_sample=True)
    small = lsfast.Objective(objective.model, objective.loss_fn, objective.data, memory_limit=1)
    torch.testing.assert_close(lsfast.sharpness(small, per_sample=True), values, rtol=1e-10, atol=1e-13)
    assert torch.equal(objective.parameters, before)
    assert all(parameter.grad is None for parameter in objective.model.parameters())


class NoRule(torch.autograd.Function):
    """The sine, with no rule for vmap."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def test_operation_without_a_rule_for_rows_is_run_row_by_row():
    class Model(nn.Linear):
        def forward(self, x):
            return self.function(super().forward(x))

    torch.manual_seed(0)
    model = Model(3, 1).double()
    data = (torch.randn(4, 3).double(), torch.randn(4, 1).double())
    values = []
    for model.function in (NoRule.apply, torch.sin):
        values.append(lsfast.sharpness(lsfast.Objective(model, nn.MSELoss(), data), per_sample=True))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-14)


def test_rows_that_are_not_independent_or_not_of_one_length_are_refused():
    with pytest.raises(ValueError, match="per_sample must not be given for batch norm over the batch, got it at '1'"):
        lsfast.sharpness(of_network(), per_sample=True)
    objective = lsfast.Objective(
        nn.Linear(3, 1), lambda outputs, targets: outputs.sum() * targets.sum(), (torch.ones(4, 3), torch.ones(2))
    )
    with pytest.raises(ValueError, match=r"per_sample must have tensors of one length along axis 0, got \[2, 4\]"):
        lsfast.sharpness(objective, per_sample=True)
    quadratic = of_parameters(lambda x: x @ x, torch.ones(2))
    for method in ("worst", "keskar", "critical"):
        with pytest.raises(ValueError, match=f"per_sample must not be given for '{method}'"):
            lsfast.sharpness(quadratic, method, per_sample=True)
