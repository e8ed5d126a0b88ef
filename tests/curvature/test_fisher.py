"""The Fisher, empirical and by Monte Carlo, against explicit gradients of single targets in float64."""

from typing import Any

import pytest
import torch
from problems import CLASSES, NAMES, Problem, problem
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import lsfast
from lsfast.curvature.fisher_factor import _draw_classes


def objective_of(p: Problem, **options: Any) -> lsfast.Objective:
    return lsfast.Objective(p.model, p.loss_fn, p.data, **options)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def gradients(p: Problem, losses: Any) -> Tensor:
    """The gradient of each of losses(outputs) [targets], by plain backward passes: [targets, n]."""
    objective = objective_of(p)
    theta = objective.parameters.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        values = losses(functional_call(p.model, objective.unflatten(theta), (p.inputs,))).flatten()
        return torch.stack([torch.autograd.grad(value, theta, retain_graph=True)[0] for value in values])


def explicit_fisher(p: Problem) -> Tensor:
    """The sum of c g g^T over targets, from the definition in FisherOperator's docstring."""
    loss_fn, y = p.loss_fn, p.targets
    if not isinstance(loss_fn, nn.CrossEntropyLoss):
        g = gradients(p, lambda z: type(loss_fn)(reduction="none")(z, y).sum(1))
        return g.T @ g / y.numel()
    if loss_fn.weight is None:
        g = gradients(p, lambda z: -z.log_softmax(1).gather(1, y.unsqueeze(1)))
        return g.T @ g / y.numel()
    kept = y != loss_fn.ignore_index
    weight, smoothing = loss_fn.weight, loss_fn.label_smoothing
    label = (1 - smoothing) * functional.one_hot(y[kept], CLASSES).double() + smoothing / CLASSES
    q = label * weight
    mass = q.sum(1)
    g = gradients(p, lambda z: -(q / mass[:, None] * z[kept].log_softmax(1)).sum(1))
    return (g.T * mass) @ g / weight[y[kept]].sum()


@pytest.mark.parametrize("name", NAMES)
def test_empirical_fisher_is_the_mean_of_products_of_gradients(name):
    p = problem(name)
    assert relative(lsfast.FisherOperator(objective_of(p)).to_dense(), explicit_fisher(p)) < 1e-12


def test_class_weights_weigh_the_gradients_of_the_targets():
    p = problem("mlp")
    weight = torch.rand(CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    F = lsfast.FisherOperator(lsfast.Objective(p.model, nn.CrossEntropyLoss(weight), p.data))
    g = gradients(p, lambda z: -z.log_softmax(1).gather(1, p.targets[:, None]))
    w = weight[p.targets]
    assert relative(F.to_dense(), (g.T * w) @ g / w.sum()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_an_8_and_2_split_gives_the_full_batch_fisher(name):
    p = problem(name)
    whole = lsfast.FisherOperator(objective_of(p))
    parts = lsfast.FisherOperator(lsfast.Objective(p.model, p.loss_fn, p.split(8)))
    v = torch.randn(3, whole.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert relative(parts.apply(v), whole.apply(v)) < 1e-13


@pytest.mark.parametrize("kind", ["empirical", "mc"])
@pytest.mark.parametrize("name", ["mlp", "tied tokens", "silu and group norm, mse"])
def test_fisher_is_symmetric_and_positive_semidefinite(name, kind):
    F = lsfast.FisherOperator(objective_of(problem(name)), kind=kind)
    dense = F.to_dense()
    assert relative(dense, dense.T) < 1e-13
    eigenvalues = torch.linalg.eigvalsh((dense + dense.T) / 2)
    assert eigenvalues[0] > -1e-14 * eigenvalues[-1] * len(eigenvalues)
    assert F.check().determinism == 0.0


@pytest.mark.parametrize("name", ["mlp", "silu and group norm, mse"])
@pytest.mark.parametrize("kind", ["empirical", "mc"])
def test_sum_reduction_is_the_mean_times_the_count(name, kind):
    p = problem(name)
    total = lsfast.Objective(p.model, type(p.loss_fn)(reduction="sum"), p.data, reduction="sum")
    v = torch.randn(total.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = p.targets.numel() * (lsfast.FisherOperator(objective_of(p), kind=kind) @ v)
    assert relative(lsfast.FisherOperator(total, kind=kind) @ v, expected) < 1e-13


def of_logits(loss_fn: Any, targets: Tensor) -> lsfast.Objective:
    p = problem("mlp")
    return lsfast.Objective(p.model, loss_fn, (p.inputs, targets))


@pytest.mark.parametrize("kind", ["empirical", "mc"])
def test_one_hot_probabilities_are_class_indices(kind):
    y = problem("mlp").targets
    indices = lsfast.FisherOperator(of_logits(nn.CrossEntropyLoss(), y), kind=kind).to_dense()
    one_hot = functional.one_hot(y, CLASSES).double()
    assert (
        relative(lsfast.FisherOperator(of_logits(nn.CrossEntropyLoss(), one_hot), kind=kind).to_dense(), indices)
        < 1e-13
    )


def test_nll_of_log_probabilities_is_cross_entropy():
    p = problem("class weights, smoothing, ignored targets")
    weight = p.loss_fn.weight
    cross_entropy = lsfast.Objective(p.model, nn.CrossEntropyLoss(weight), p.data)
    nll = lsfast.Objective(nn.Sequential(*p.model, nn.LogSoftmax(1)), nn.NLLLoss(weight), p.data)
    assert relative(lsfast.FisherOperator(nll).to_dense(), lsfast.FisherOperator(cross_entropy).to_dense()) < 1e-12


def test_a_loss_of_the_users_own_is_taken_by_rows_and_its_count():
    p = problem("tied tokens")

    def own(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(z, y)

    g = gradients(p, lambda z: functional.cross_entropy(z, p.targets, reduction="none").sum(1))
    for data in (p.data, p.split(7)):
        objective = lsfast.Objective(p.model, own, data, count=lambda inputs, targets: targets.numel())
        assert relative(lsfast.FisherOperator(objective).to_dense(), g.T @ g / p.targets.numel()) < 1e-12


def expectation_cases() -> dict[str, lsfast.Objective]:
    y = torch.rand(10, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bce = nn.BCEWithLogitsLoss(weight=y.flip(0) + 0.1, pos_weight=2 * y[0] + 0.1)
    return {
        "cross-entropy": objective_of(problem("mlp")),
        "weights, smoothing, ignored": objective_of(problem("class weights, smoothing, ignored targets")),
        "tokens": objective_of(problem("tied tokens")),
        "mse": objective_of(problem("silu and group norm, mse")),
        "binary cross-entropy": of_logits(bce, y),
    }


@pytest.mark.parametrize("name", expectation_cases())
def test_the_expectation_of_the_monte_carlo_fisher_is_the_ggn(name):
    # Quadratic forms of 150 independent operators of 4 samples: within 4 standard errors, and these are small.
    objective = expectation_cases()[name]
    v = torch.randn(3, objective.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = [lsfast.FisherOperator(objective, kind="mc", samples=4, seed=seed).apply(v) for seed in range(150)]
    forms = torch.stack([(v * product).sum(1) for product in drawn])
    expected = (v * lsfast.GGNOperator(objective).apply(v)).sum(1)
    error = forms.std(0) / len(forms) ** 0.5
    assert (error < 0.1 * expected).all()
    assert ((forms.mean(0) - expected).abs() < 4 * error).all()


def test_classes_are_drawn_with_the_probabilities_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, -2.0, float("-inf"), 2.0]).expand(20000, 5)
    frequency = _draw_classes(logits, torch.Generator().manual_seed(0)).bincount(minlength=5) / 20000
    p = logits[0].softmax(0)
    assert ((frequency - p).abs() <= 4 * (p * (1 - p) / 20000).sqrt()).all()


@pytest.mark.parametrize("name", ["mlp", "silu and group norm, mse"])
def test_draws_depend_on_seed_batch_and_sample_alone(name):
    p = problem(name)
    objective = lsfast.Objective(p.model, p.loss_fn, [p.data, p.data])
    v = torch.randn(20, objective.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    F = lsfast.FisherOperator(objective, kind="mc", samples=2, seed=3)
    together = F.apply(v)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one_by_one = torch.stack([lsfast.FisherOperator(objective, kind="mc", samples=2, seed=3) @ row for row in v[:3]])
    assert torch.equal(torch.get_rng_state(), state)
    assert relative(one_by_one, together[:3]) < 1e-13
    assert torch.equal(F.apply(v), together)
    assert relative(lsfast.FisherOperator(objective, kind="mc", samples=2, seed=4).apply(v), together) > 1e-2
    once = lsfast.FisherOperator(objective_of(p), kind="mc", samples=2, seed=3).apply(v)
    assert relative(once, together) > 1e-2  # the second batch, though equal, has draws of its own


def test_weight_decay_adds_its_multiple_of_the_identity():
    p = problem("mlp")
    plain, decayed = (lsfast.FisherOperator(objective_of(p, weight_decay=c)).to_dense() for c in (0.0, 0.3))
    assert relative(decayed, plain + 0.3 * torch.eye(len(plain), dtype=plain.dtype)) < 1e-14


@pytest.mark.parametrize("operator", [lsfast.GGNOperator, lsfast.FisherOperator])
def test_vectors_are_left_as_they_were_where_the_outputs_are_parameters(operator):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits

    A = operator(lsfast.Objective(Table(), nn.CrossEntropyLoss(), (torch.zeros(4), torch.tensor([0, 1, 2, 0]))))
    v = torch.randn(2, 12)
    before = v.clone()
    A.apply(v)
    assert torch.equal(v, before)


@pytest.mark.parametrize(
    "loss_fn", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(torch.rand(CLASSES))]
)
def test_ggn_of_class_probabilities_equals_its_definition(loss_fn):
    p = problem("mlp")
    loss_fn = loss_fn.double()
    targets = torch.rand(10, CLASSES, dtype=torch.float64).softmax(1)
    objective = lsfast.Objective(p.model, loss_fn, (p.inputs, targets))
    generic = lsfast.Objective(p.model, lambda z, y: loss_fn(z, y), (p.inputs, targets))
    assert relative(lsfast.GGNOperator(objective).to_dense(), lsfast.GGNOperator(generic).to_dense()) < 1e-12


@pytest.mark.parametrize("kind", ["empirical", "mc"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_have_a_fisher(kind, dtype):
    p = problem("mlp")
    low = lsfast.Objective(p.model.to(dtype), nn.CrossEntropyLoss(), (p.inputs.to(dtype), p.targets))
    v = torch.ones(low.n, dtype=dtype)
    product = lsfast.FisherOperator(low, kind=kind) @ v
    high = lsfast.Objective(p.model.double(), nn.CrossEntropyLoss(), (p.inputs.to(dtype).double(), p.targets))
    # A handful of roundings through three layers; draws differ only where a uniform number falls between the sums.
    expected = lsfast.FisherOperator(high, kind=kind) @ v.double()
    assert product.dtype == dtype
    assert relative(product.double(), expected) < 16 * torch.finfo(dtype).eps


def test_what_cannot_be_a_fisher_is_refused():
    objective = objective_of(problem("mlp"))
    with pytest.raises(TypeError, match="FisherOperator: objective must be an lsfast.Objective, got int"):
        lsfast.FisherOperator(3)
    with pytest.raises(ValueError, match="kind must be one of 'empirical', 'mc', got 'exact'"):
        lsfast.FisherOperator(objective, kind="exact")
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        lsfast.FisherOperator(objective, kind="mc", samples=0)
    with pytest.raises(ValueError, match="samples must be 1 for the empirical Fisher, got 2"):
        lsfast.FisherOperator(objective, samples=2)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        lsfast.FisherOperator(objective, kind="mc", seed=-1)
    with pytest.raises(ValueError, match="kind='mc' needs a loss whose targets can be drawn .* got HuberLoss"):
        lsfast.FisherOperator(objective_of(problem("huber")), kind="mc")
