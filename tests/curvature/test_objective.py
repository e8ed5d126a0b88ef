"""The objective: its value over any split, what it refuses, and that it leaves everything as it was."""

import pytest
import torch
from problems import problem
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lsfast


def state_of(model: nn.Module) -> tuple:
    parameters = [p.detach().clone() for p in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    return parameters, gradients, buffers, [m.training for m in model.modules()], torch.get_rng_state()


def same_state(a: tuple, b: tuple) -> bool:
    tensors = all(torch.equal(x, y) for x, y in zip(a[0] + a[2] + [a[4]], b[0] + b[2] + [b[4]], strict=True))
    gradients = all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in zip(a[1], b[1], strict=True)
    )
    return tensors and gradients and a[3] == b[3]


@pytest.mark.parametrize("train", [False, True])
def test_everything_is_as_before_after_success_and_after_an_exception(train):
    p = problem("cnn")
    p.model.train(train)
    for parameter in p.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state_of(p.model)
    loader = DataLoader(TensorDataset(p.inputs, p.targets), batch_size=4, shuffle=True)
    objective = lsfast.Objective(p.model, p.loss_fn, loader)
    objective.loss()
    objective.gradient()
    H = lsfast.HessianOperator(objective)
    H @ torch.ones(objective.n, dtype=torch.float64)
    lsfast.GGNOperator(objective) @ torch.ones(objective.n, dtype=torch.float64)
    H.check()
    assert same_state(before, state_of(p.model))

    calls = []

    def failing(outputs, targets):
        calls.append(0)
        if len(calls) > 2:
            torch.rand(3)
            raise RuntimeError("out of luck")
        return functional.cross_entropy(outputs, targets)

    objective = lsfast.Objective(p.model, failing, loader)
    for method in (objective.loss, objective.gradient):
        with pytest.raises(RuntimeError, match="out of luck"):
            method()
    assert same_state(before, state_of(p.model))


def test_loss_is_that_of_all_targets_whatever_the_batches():
    p = problem("class weights, smoothing, ignored targets")
    expected = p.loss_fn(p.model(p.inputs), p.targets)
    for sizes in ([10], [8, 2], [1] * 10, [3, 3, 4]):
        parts = list(zip(p.inputs.split(sizes), p.targets.split(sizes), strict=True))
        loss = lsfast.Objective(p.model, p.loss_fn, parts).loss()
        assert loss.dtype == torch.float64
        assert loss.shape == ()
        assert torch.allclose(loss, expected, rtol=1e-14)


def test_count_overrides_what_a_batch_counts():
    p = problem("mlp")

    def masked_mean(outputs, targets):
        keep = targets < 3
        return functional.cross_entropy(outputs[keep], targets[keep])

    parts = lsfast.Objective(p.model, masked_mean, p.split(8), count=lambda x, y: int((y < 3).sum()))
    assert torch.allclose(parts.loss(), masked_mean(p.model(p.inputs), p.targets), rtol=1e-14)


def test_unflatten_inverts_flatten_and_parameters_is_a_copy():
    p = problem("transformer")
    objective = lsfast.Objective(p.model, p.loss_fn, p.data)
    theta = objective.parameters
    assert torch.equal(objective.flatten(objective.unflatten(theta)), theta)
    for name, parameter in p.model.named_parameters():
        assert torch.equal(objective.unflatten(theta)[name], parameter)
    theta.zero_()
    assert objective.parameters.abs().max() > 0


def test_tied_weights_are_one_parameter():
    p = problem("tied tokens")
    assert lsfast.Objective(p.model, p.loss_fn, p.data).names == [
        "tied.embedding.weight",
        "tied.mix.weight",
        "tied.mix.bias",
    ]


def test_evaluate_gives_the_loss_and_metrics_at_each_point():
    p = problem("mlp")
    objective = lsfast.Objective(p.model, p.loss_fn, p.split(8))
    theta = objective.parameters
    points = torch.stack([theta, theta + 0.1, 0 * theta])
    result = objective.evaluate(points=points, metrics={"accuracy": lambda z, y: (z.argmax(1) == y).double().mean()})
    for point, value, accuracy in zip(points, result.values, result.metrics["accuracy"], strict=True):
        assert torch.equal(value, objective.at(point).loss())
        outputs = torch.func.functional_call(p.model, objective.unflatten(point), (p.inputs,))
        assert accuracy == pytest.approx(float((outputs.argmax(1) == p.targets).double().mean()))
    assert torch.allclose(result.values[2], torch.log(torch.tensor(5.0, dtype=torch.float64)))


def test_progress_counts_points_whatever_the_batches():
    p = problem("mlp")

    class Stream(IterableDataset):  # a DataLoader over it has a length that raises
        def __iter__(self):
            return iter(p.split(8))

    for data in (p.data, p.split(8), DataLoader(Stream(), batch_size=None)):
        objective, done = lsfast.Objective(p.model, p.loss_fn, data), []
        objective.evaluate(points=objective.parameters.expand(5, -1), progress=done.append)
        assert sum(done) == 5


def generator_of(p):
    yield from p.split(8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: lsfast.Objective("model", p.loss_fn, p.data), TypeError, "model must be a torch.nn.Module, got str"),
        (lambda p: lsfast.Objective(p.model, None, p.data), TypeError, "loss_fn must be callable"),
        (lambda p: lsfast.Objective(p.model, p.loss_fn, generator_of(p)), ValueError, "one-pass iterator generator"),
        (lambda p: lsfast.Objective(p.model, p.loss_fn, 3), TypeError, "data must be"),
        (lambda p: lsfast.Objective(p.model, p.loss_fn, []), ValueError, "at least one batch"),
        (lambda p: lsfast.Objective(p.model, p.loss_fn, [p.inputs]), ValueError, "batch 0 of data must be a pair"),
        (
            lambda p: lsfast.Objective(p.model, p.loss_fn, (p.inputs[:0], p.targets[:0])),
            ValueError,
            "must not be empty",
        ),
        (
            lambda p: lsfast.Objective(p.model, nn.CrossEntropyLoss(reduction="none"), p.data),
            ValueError,
            "reduction must be that of loss_fn, 'none'",
        ),
        (lambda p: lsfast.Objective(p.model, lambda z, y: z, p.data), ValueError, "must return a scalar tensor"),
        (lambda p: lsfast.Objective(p.model, lambda z, y: 0.5, p.data), ValueError, "must return a scalar tensor"),
        (
            lambda p: lsfast.Objective(p.model, lambda z, y: z.sum() / 0, p.data),
            ValueError,
            "loss must be a finite floating-point number",
        ),
        (
            lambda p: lsfast.Objective(p.model, p.loss_fn, p.data, params="conv*"),
            ValueError,
            "pattern 'conv\\*' must match",
        ),
        (
            lambda p: lsfast.Objective(p.model, p.loss_fn, p.data, reduction="max"),
            ValueError,
            "reduction must be one of",
        ),
        (lambda p: lsfast.Objective(p.model, p.loss_fn, p.data, engine="jax"), ValueError, "engine must be one of"),
        (lambda p: lsfast.Objective(p.model, p.loss_fn, p.data, weight_decay=-1.0), ValueError, "weight_decay must be"),
        (lambda p: lsfast.HessianOperator(p.model), TypeError, "objective must be an lsfast.Objective"),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    p = problem("mlp")
    before = state_of(p.model)
    with pytest.raises(error, match=message) as raised:
        call(p)
    assert "\n" not in str(raised.value)
    assert same_state(before, state_of(p.model))


def test_parameters_must_require_grad_and_agree():
    p = problem("mlp")
    p.model[0].weight.requires_grad_(False)
    assert "0.weight" not in lsfast.Objective(p.model, p.loss_fn, p.data).names
    with pytest.raises(ValueError, match="must require grad, got '0.weight'"):
        lsfast.Objective(p.model, p.loss_fn, p.data, params="*.weight")
    p.model.requires_grad_(False)
    with pytest.raises(ValueError, match="must have parameters that require grad"):
        lsfast.Objective(p.model, p.loss_fn, p.data)
    p.model.requires_grad_(True)
    p.model[2].float()
    with pytest.raises(ValueError, match="must share one dtype and device"):
        lsfast.Objective(p.model, p.loss_fn, p.data)


def test_dropout_in_train_mode_is_refused():
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.1))
    data = (torch.randn(4, 6), torch.randint(0, 5, (4,)))
    with pytest.raises(ValueError, match="dropout in train mode at '1'"):
        lsfast.Objective(model, nn.CrossEntropyLoss(), data)
    lsfast.Objective(model.eval(), nn.CrossEntropyLoss(), data)


def test_vectors_must_fit():
    p = problem("mlp")
    objective = lsfast.Objective(p.model, p.loss_fn, p.data)
    H = lsfast.HessianOperator(objective)
    n = objective.n
    with pytest.raises(ValueError, match=rf"vectors must have shape \[{n}\]"):
        H @ torch.ones(n + 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="must have dtype torch.float64, got torch.float32"):
        H @ torch.ones(n)
    with pytest.raises(ValueError, match=rf"rows must have shape \[k, {n}\]"):
        H.apply(torch.ones(n, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"points must have shape \[g, {n}\], got \[0, {n}\]"):
        objective.evaluate(points=objective.parameters[None][:0])
    with pytest.raises(ValueError, match="give either points, or both directions and coordinates"):
        objective.evaluate()
    with pytest.raises(ValueError, match=rf"parameters must have shape \[{n}\]"):
        objective.at(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="finite"):
        objective.at(torch.full((n,), float("nan"), dtype=torch.float64)).loss()
    with pytest.raises(ValueError, match="gradient must be finite"):
        objective.at(torch.full((n,), float("nan"), dtype=torch.float64)).gradient()


def test_targets_on_another_device_are_named():
    p = problem("mlp")
    with pytest.raises(ValueError, match="targets must be on cpu like the parameters, got meta"):
        lsfast.Objective(p.model, p.loss_fn, (p.inputs, p.targets.to("meta")))
