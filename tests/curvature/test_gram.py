"""The Gram operator J J^T against Jacobians of torch.func in float64, and what its spectrum says of J^T J."""

import pytest
import torch
from problems import NAMES, Problem, problem
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

import lsfast

ENGINES = ("program", "autograd")


def jacobian(p: Problem, params=None) -> Tensor:
    """d outputs / d theta [N, n] by torch.func of the model as a user would call it, with no part of lsfast."""
    named = {name: parameter.detach() for name, parameter in p.model.named_parameters()}
    chosen = [name for name in named if params is None or name.startswith(params)]

    def outputs(values: list[Tensor]) -> Tensor:
        return functional_call(p.model, dict(zip(chosen, values, strict=True)), (p.inputs,)).flatten()

    with sdpa_kernel(SDPBackend.MATH):
        parts = jacrev(outputs)([named[name] for name in chosen])
    return torch.cat([part.flatten(1) for part in parts], 1).detach()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def rows(k: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(k, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_dense_gram_matrix(name, engine):
    p = problem(name)
    J = jacobian(p)
    K = lsfast.GramOperator(p.objective(engine=engine))
    assert K.shape == (len(J), len(J))
    assert relative(K.to_dense(), J @ J.T) < 1e-13
    assert not K.parts


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "tied tokens"])
def test_ragged_batches_give_the_matrix_of_one(name, engine):
    # The outputs of a batch are flattened by themselves, and batches are in order: the split leaves the layout alone.
    p = problem(name)
    whole = lsfast.GramOperator(p.objective())
    for first in (1, 7):
        parts = lsfast.GramOperator(p.objective(p.split(first), engine=engine))
        assert [shape[0] for shape in parts.output_shapes] == [first, 10 - first]
        assert relative(parts.to_dense(), whole.to_dense()) < 1e-13


class Tokens(nn.Module):
    """Logits for every token; sequences of one batch have one length, those of another another."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.mix(torch.tanh(x + x.mean(1, keepdim=True))).transpose(1, 2)


def lengths_that_differ() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = [(torch.randint(0, 7, (b, t)), torch.randint(0, 3, (b, t))) for b, t in ((2, 5), (3, 2), (1, 4))]
        return Tokens().double(), data


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_may_differ_in_every_axis_of_their_outputs(engine):
    model, data = lengths_that_differ()
    loss_fn = nn.CrossEntropyLoss()
    J = torch.cat([jacobian(Problem(model, loss_fn, *batch)) for batch in data])
    K = lsfast.GramOperator(lsfast.Objective(model, loss_fn, data, engine=engine))
    assert K.output_shapes == ((2, 3, 5), (3, 3, 2), (1, 3, 4))
    assert relative(K.to_dense(), J @ J.T) < 1e-13
    parts = K.unflatten(torch.arange(60.0))
    assert [part.shape for part in parts] == list(K.output_shapes)
    assert torch.equal(torch.cat([part.flatten() for part in parts]), torch.arange(60.0))
    assert parts[1][0, 0, 0] == 30


def test_ignored_targets_weights_and_decay_do_not_change_it():
    p = problem("class weights, smoothing, ignored targets")
    plain = lsfast.Objective(
        p.model, nn.CrossEntropyLoss(reduction="sum"), (p.inputs, p.targets.abs() % 5), reduction="sum"
    )
    weighted = p.objective(weight_decay=0.5)
    assert torch.equal(lsfast.GramOperator(plain).to_dense(), lsfast.GramOperator(weighted).to_dense())
    ignored = lsfast.Objective(p.model, nn.CrossEntropyLoss(), [*p.split(3), (p.inputs, torch.full((10,), -100))])
    J = jacobian(p)
    assert relative(lsfast.GramOperator(ignored).to_dense(), torch.cat([J, J]) @ torch.cat([J, J]).T) < 1e-13


@pytest.mark.parametrize("pattern", ["0.", "2."])
def test_chosen_parameters_have_their_own_and_these_add_up(pattern):
    p = problem("mlp")
    J = jacobian(p, pattern)
    K = lsfast.GramOperator(p.objective(params=f"{pattern}*"))
    assert J.shape[1] < p.objective().n
    assert relative(K.to_dense(), J @ J.T) < 1e-13
    other = lsfast.GramOperator(p.objective(params="2.*" if pattern == "0." else "0.*"))
    assert relative((K + other).to_dense(), lsfast.GramOperator(p.objective()).to_dense()) < 1e-13


@pytest.mark.parametrize("name", ["silu and group norm, mse", "mlp", "tied tokens"])
def test_its_eigenvalues_are_those_of_the_ggn_of_a_square_loss(name):
    # MSELoss has the Hessian 2 / N in the outputs, so its GGN is 2 / N J^T J; with N < n the rest of it are zeros.
    p = problem(name)
    outputs = p.outputs({})
    objective = lsfast.Objective(p.model, nn.MSELoss(), (p.inputs, torch.zeros_like(outputs)))
    gram = torch.linalg.eigvalsh(lsfast.GramOperator(objective).to_dense()) * 2 / outputs.numel()
    ggn = torch.linalg.eigvalsh(lsfast.GGNOperator(objective).to_dense())
    shared = min(len(gram), len(ggn))
    # Eigenvalues of a symmetric matrix are found to eps |A| each, times a modest factor of its size.
    tolerance = 1e-14 * float(ggn[-1]) * len(ggn)
    assert float((gram[-shared:] - ggn[-shared:]).abs().max()) < tolerance
    rest = torch.cat([gram[: len(gram) - shared], ggn[: len(ggn) - shared]])
    assert bool((rest.abs() < tolerance).all())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("memory_limit", [None, 1])
def test_many_vectors_at_once_equal_one_at_a_time(engine, memory_limit):
    p = problem("mlp")
    K = lsfast.GramOperator(p.objective(p.split(4), engine=engine, memory_limit=memory_limit))
    given = rows(20, K.shape[0])
    before = given.clone()
    together = K.apply(given)
    assert torch.equal(given, before)
    assert relative(torch.stack([K @ row for row in given]), together) < 1e-13
    assert relative((K @ given.T).T, together) < 1e-13
    assert K.apply(given[:0]).shape == (0, K.shape[0])


def test_rows_are_taken_as_many_at_once_as_fit_the_memory_limit():
    p = problem("mlp")
    n, sizes = p.objective().n, []
    for limit, expected in ((None, [64, 6]), (4 * 10 * (2 * n + 50) * 8, [10] * 7), (1, [1] * 70)):
        K = lsfast.GramOperator(p.objective(memory_limit=limit))
        pull = K._linearization.vjp
        sizes.clear()
        K._linearization.vjp = lambda part, flat, pull=pull: (sizes.append(len(part)), pull(part, flat))[1]
        K.apply(rows(70, K.shape[0]))
        assert sizes == expected


def test_it_is_that_of_the_point_it_is_taken_at():
    p = problem("mlp")
    objective = p.objective()
    moved = objective.at(1.5 * objective.parameters)
    K = lsfast.GramOperator(moved)
    with torch.no_grad():
        for parameter in p.model.parameters():
            parameter.mul_(1.5)
    J = jacobian(p)
    assert relative(K.to_dense(), J @ J.T) < 1e-13


def test_the_spectral_density_and_the_eigenpairs_of_the_gram_matrix_are_those_of_the_jacobian():
    p = problem("transformer")
    J = jacobian(p)
    squares = torch.linalg.svdvals(J) ** 2
    K = lsfast.GramOperator(p.objective(p.split(6)))
    pairs = lsfast.eigsh(K, k=4)
    assert float((pairs.values - squares[:4]).abs().max()) < 1e-10 * float(squares[0])
    density = lsfast.spectral_density(K, probes=4, steps=K.shape[0])
    # With signs for probes and all steps the trace misses only what is off the diagonal: within 4 standard errors.
    assert abs(density.trace.value - float(squares.sum())) < 4 * density.trace.stderr
    assert float(density.nodes.max()) == pytest.approx(float(squares[0]), rel=1e-10)


def test_the_model_and_the_random_numbers_are_left_alone():
    p = problem("cnn")
    p.model.train()
    buffers = {name: buffer.clone() for name, buffer in p.model.named_buffers()}
    state = torch.random.get_rng_state()
    lsfast.GramOperator(p.objective()).to_dense()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in p.model.named_buffers())
    assert all(parameter.grad is None for parameter in p.model.parameters())


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class Narrow(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(torch.bfloat16)


def test_bad_input_is_named_before_any_product():
    p = problem("mlp")
    with pytest.raises(TypeError, match=r"GramOperator: objective must be an lsfast\.Objective, got Sequential"):
        lsfast.GramOperator(p.model)
    data = (torch.randn(3, 4), torch.randn(3, 2))
    pair = lsfast.Objective(Pair(4, 2), lambda z, y: (z[0] - y).square().mean(), data)
    with pytest.raises(TypeError, match="GramOperator: the loss must be given one tensor, got tuple; pass output= to"):
        lsfast.GramOperator(pair)
    narrow = lsfast.Objective(Narrow(4, 2), lambda z, y: (z.float() - y).square().mean(), data)
    with pytest.raises(
        ValueError, match=r"outputs must have the parameters' dtype torch\.float32, got torch\.bfloat16"
    ):
        lsfast.GramOperator(narrow)
    K = lsfast.GramOperator(p.objective())
    with pytest.raises(ValueError, match=r"apply: rows must have shape \[k, 50\], got \[2, 49\]"):
        K.apply(rows(2, 49))
    with pytest.raises(ValueError, match=r"unflatten: vector must have shape \[50\], got \[1, 50\]"):
        K.unflatten(rows(1, 50))


@pytest.mark.parametrize("engine", ENGINES)
def test_flat_jacobian_products_say_how_many_numbers_they_expect(engine):
    model, data = lengths_that_differ()
    L = lsfast.Objective(model, nn.CrossEntropyLoss(), data, engine=engine).linearize()
    with pytest.raises(ValueError, match="vjp: cotangents must have 60 numbers along axis 1, got 59"):
        L.vjp(rows(2, 59), flat=True)
