"""Linearizations over data: batches that are kept or made anew, parts of the vectors, Jacobians, faults in the data."""

import gc

import pytest
import torch
from problems import NAMES, problem
from torch import Tensor, nn

import lsfast
from lsfast.program import linearization
from lsfast.program.rules import losses


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def two_layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


BATCHES = [(real(5, 6, seed=s), real(5, 3, seed=s)) for s in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_both_engines_give_the_same_products(name):
    p = problem(name)
    rows = None
    for operator in (lsfast.HessianOperator, lsfast.GGNOperator):
        found = []
        for engine in ("program", "autograd"):
            A = operator(lsfast.Objective(p.model, p.loss_fn, p.data, engine=engine))
            rows = real(3, A.shape[0]) if rows is None else rows
            found.append(A.apply(rows))
        assert (found[0] - found[1]).norm() < 1e-12 * found[1].norm()


def points_made(monkeypatch) -> list[object]:
    made: list[object] = []
    original = linearization.Point

    class Counted(original):
        def __init__(self, *arguments) -> None:
            made.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(linearization, "Point", Counted)
    return made


def test_points_are_kept_while_they_fit_and_made_anew_otherwise(monkeypatch):
    made = points_made(monkeypatch)
    model, rows = two_layers(), real(4, 83)
    products = []
    for limit, expected in ((None, 4), (100_000, 4), (1, 8)):
        made.clear()
        H = lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), BATCHES, memory_limit=limit))
        H.apply(rows)
        products.append(H.apply(rows))
        assert len(made) == expected
    assert (products[0] - products[1]).norm() < 1e-14 * products[0].norm()
    assert (products[0] - products[2]).norm() < 1e-14 * products[0].norm()


def test_what_is_held_stays_below_half_the_limit():
    objective = lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES, memory_limit=6_000)
    L = objective.linearize()
    L.hvp(real(2, 83))
    held = [batch.point.held_bytes() for batch in L._batches if batch.point is not None]
    assert 0 < len(held) < 4
    assert sum(held) == L._held <= 3_000


def test_the_limit_decides_how_many_vectors_a_pass_takes(monkeypatch):
    sizes: list[int] = []
    original = linearization.Point.hvp
    monkeypatch.setattr(
        linearization.Point, "hvp", lambda self, rows, out: (sizes.append(len(rows)), original(self, rows, out))[1]
    )
    rows = real(9, 83)
    results = []
    for limit in (None, 10_000, 1):
        sizes.clear()
        H = lsfast.HessianOperator(lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES[:1], memory_limit=limit))
        results.append(H.apply(rows))
        assert sizes == {None: [9], 1: [1] * 9}.get(limit, sizes)
        assert limit != 10_000 or 1 < len(sizes) < 9
    assert (results[0] - results[1]).norm() < 1e-14 * results[0].norm()
    assert (results[0] - results[2]).norm() < 1e-14 * results[0].norm()


def test_jvp_and_vjp_are_those_of_the_outputs_of_all_batches():
    ragged = [BATCHES[0], (real(2, 6), real(2, 3))]
    objective = lsfast.Objective(two_layers(), nn.MSELoss(), ragged)
    x = torch.cat([inputs for inputs, _ in ragged])

    def outputs(theta: Tensor) -> Tensor:
        return objective.outputs(objective.unflatten(theta), x)

    J = torch.autograd.functional.jacobian(outputs, objective.parameters)  # [7, 3, n]
    for engine in ("program", "autograd"):
        L = lsfast.Objective(two_layers(), nn.MSELoss(), ragged, engine=engine).linearize()
        rows, cotangents = real(4, 83), real(4, 7, 3)
        assert torch.allclose(L.jvp(rows), torch.einsum("bon,kn->kbo", J, rows), atol=1e-13)
        assert torch.allclose(L.vjp(cotangents), torch.einsum("bon,kbo->kn", J, cotangents), atol=1e-13)
        with pytest.raises(ValueError, match="cotangents must have 7 rows along axis 1, got 6"):
            L.vjp(cotangents[:, :6])


def test_products_and_jacobians_may_come_in_any_order():
    objective = lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES)
    oracle = lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES, engine="autograd").linearize()
    rows, L = real(2, 83), objective.linearize()
    for name in ("ggnvp", "hvp", "jvp", "ggnvp", "hvp"):
        found, expected = getattr(L, name)(rows), getattr(oracle, name)(rows)
        assert (found - expected).norm() < 1e-13 * expected.norm()


def test_data_that_changes_between_passes_is_found():
    class Shuffled:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(BATCHES if self.passes < 3 else BATCHES[::-1])

    objective = lsfast.Objective(two_layers(), nn.MSELoss(), Shuffled())
    H = lsfast.HessianOperator(objective)
    H.apply(real(1, 83))
    with pytest.raises(ValueError, match="data must be the same at every pass, batch 0 has changed; is it shuffled?"):
        H.apply(real(1, 83))


def test_a_loader_that_keeps_its_order_is_read_again_and_again():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*BATCHES[0]), batch_size=2)
    H = lsfast.HessianOperator(lsfast.Objective(two_layers(), nn.MSELoss(), loader))
    whole = lsfast.HessianOperator(lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES[0]))
    rows = real(2, 83)
    for _ in range(2):
        assert (H.apply(rows) - whole.apply(rows)).norm() < 1e-13 * whole.apply(rows).norm()


class Root(nn.Module):
    """Its square root has an infinite derivative at 0, which meets a zero: NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.w * x
        return (0.0 * y.sqrt()).sum(1, keepdim=True)


def test_a_nan_in_the_gradient_is_traced_to_the_operation_that_made_it():
    objective = lsfast.Objective(Root(), nn.MSELoss(), (torch.eye(3).double(), torch.ones(3, 1).double()))
    message = (
        r"gradient must be finite, got NaN, first in the derivative of aten.sqrt.default at .*test_linearization.py"
    )
    with pytest.raises(ValueError, match=message):
        lsfast.HessianOperator(objective).apply(real(1, 3))


def test_a_loss_that_sees_the_parameters_past_the_outputs_has_no_ggn():
    model = two_layers()
    objective = lsfast.Objective(
        model,
        lambda out, targets: (out[0] - targets).square().mean() + out[1],
        BATCHES,
        output=lambda out: (out, model[0].weight.square().sum()),
    )
    lsfast.HessianOperator(objective).check()
    with pytest.raises(TypeError, match="the loss must be given one tensor"):
        lsfast.GGNOperator(objective).apply(real(1, 83))


def test_nothing_is_left_behind_by_a_product():
    objective = lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES)
    H, rows = lsfast.HessianOperator(objective), real(2, 83)
    H.apply(rows)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(x, Tensor) for x in gc.get_objects())

    before = tensors()
    H.apply(rows)
    assert tensors() == before


class Scaled(nn.Module):
    """Its logits are a parameter, seen through a view: their tangents lie in the rows that the caller gave."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(real(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.view(4, 3)


def loss_twice(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y) + z.square().mean()


def loss_of_a_view(z: Tensor, y: Tensor) -> Tensor:
    squares = z.square().mean()
    return nn.functional.cross_entropy(z.view(-1, 3), y) + squares


@pytest.mark.parametrize("kind", ["hvp", "ggnvp"])
@pytest.mark.parametrize(
    ("model", "loss", "in_place"),
    [
        (two_layers, nn.CrossEntropyLoss(), True),
        (two_layers, loss_twice, True),  # the square comes later in the program: its derivative is done before
        (two_layers, loss_of_a_view, False),
        (Scaled, nn.CrossEntropyLoss(), False),
    ],
    ids=["alone", "used twice", "a view of what another needs", "the caller's own memory"],
)
def test_the_adjoints_of_logits_take_the_place_of_their_tangents_where_nothing_needs_them(
    monkeypatch, model, loss, in_place, kind
):
    x, y = real(4, 6), torch.tensor([0, 2, 1, 1])
    pair = [lsfast.Objective(model(), loss, (x, y), engine=engine).linearize() for engine in ("program", "autograd")]
    rows = real(2, pair[0].parameters.numel())
    before, places = rows.clone(), []
    original = losses.CrossEntropy.vjp_jvp

    def watched(self, adjoints, *tangents):
        found = original(self, adjoints, *tangents)
        places.append(found[0].data_ptr() == tangents[0].data_ptr())
        return found

    monkeypatch.setattr(losses.CrossEntropy, "vjp_jvp", watched)
    found, expected = (getattr(linearization, kind)(rows) for linearization in pair)
    assert (found - expected).norm() < 1e-13 * expected.norm()
    assert torch.equal(rows, before)
    assert places == [in_place]


def test_explain_names_the_operations_without_a_rule():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(real(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(self.w @ self.w.T + torch.eye(4)) @ torch.sin(x)

    objective = lsfast.Objective(Odd(), lambda z, y: (z - y).square().mean(), (real(4, 2), real(4, 2)))
    explanation = objective.explain()
    assert explanation.generic == ("aten.linalg_inv.default",)
    counts = {(operation, rule): count for operation, rule, count in explanation.rows}
    assert counts["aten.matmul.default", "native"] == 2
    assert counts["aten.sin.default", "constant"] == 1
    line = next(line for line in str(explanation).splitlines() if "linalg_inv" in line)
    assert "generic" in line
    assert "test_linearization.py" in line
    assert lsfast.HessianOperator(objective).check().finite_difference < 1e-7


def test_bfloat16_products_on_the_cpu_say_what_they_cost():
    model, data = two_layers().float(), (BATCHES[0][0].float(), BATCHES[0][1].float())
    exact = lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), data)).check()
    assert exact.matmul_precision == 0.0
    objective = lsfast.Objective(model, nn.MSELoss(), data, matmul_precision="bf16")
    before = torch.backends.mkldnn.matmul.fp32_precision
    defects = lsfast.HessianOperator(objective).check()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    # Factors are rounded to 8 bits where the processor has such products; where not, nothing changes.
    assert defects.matmul_precision < 2.0**-5
    found = lsfast.HessianOperator(objective) @ torch.ones(83)
    expected = lsfast.HessianOperator(objective.with_matmul_precision("ieee")) @ torch.ones(83)
    assert (found - expected).norm() <= 2.0**-5 * expected.norm()


def test_the_data_of_a_loader_is_not_kept_with_points_that_are_not():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*BATCHES[0]), batch_size=2)
    L = lsfast.Objective(two_layers(), nn.MSELoss(), loader, memory_limit=1).linearize()
    L.hvp(real(1, 83))
    assert all(batch.point is None and batch.leaves == [] for batch in L._batches)


def test_check_is_of_the_point_the_operator_was_taken_at():
    model = two_layers()
    H = lsfast.HessianOperator(lsfast.Objective(model, nn.MSELoss(), BATCHES[0]))
    before = H.check()
    with torch.no_grad():
        model[0].weight.add_(0.5)
    assert H.check() == before
    assert before.finite_difference < 1e-8


def test_rows_are_checked():
    L = lsfast.Objective(two_layers(), nn.MSELoss(), BATCHES[0]).linearize()
    for product in (L.hvp, L.ggnvp, L.jvp):
        with pytest.raises(ValueError, match=r"rows must have shape \[k, 83\], got \[1, 84\]"):
            product(real(1, 84))
        with pytest.raises(ValueError, match=r"rows must have dtype torch.float64, got torch.float32"):
            product(torch.ones(1, 83))


def test_a_nan_in_the_loss_is_traced_also_for_a_ggn():
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.log(self.w * x)

    good, bad = (torch.ones(2, 1).double(), torch.ones(2, 1).double()), (-torch.ones(2, 1).double(), torch.ones(2, 1))
    objective = lsfast.Objective(Log(), nn.MSELoss(), [good, (bad[0], bad[1].double())])
    with pytest.raises(ValueError, match=r"loss must be finite, got NaN, first in aten.log.default at .*\.py:"):
        lsfast.GGNOperator(objective).apply(torch.ones(1, 1).double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "causal attention", "silu and group norm, mse"])
def test_low_precision_models_have_products(name, dtype):
    p = problem(name)
    exact = lsfast.HessianOperator(lsfast.Objective(p.model, p.loss_fn, p.data))
    rows = real(2, exact.shape[0]) / exact.shape[0] ** 0.5
    expected = exact.apply(rows)
    targets = p.targets.to(dtype) if p.targets.is_floating_point() else p.targets
    objective = lsfast.Objective(p.model.to(dtype), p.loss_fn, (p.inputs.to(dtype), targets))
    found = lsfast.HessianOperator(objective).apply(rows.to(dtype))
    assert found.dtype == dtype
    # Some twenty operations deep, each rounded once to 8 or 11 bits, and the model itself rounded.
    assert (found.double() - expected).norm() < 40 * torch.finfo(dtype).eps * expected.norm()


def test_arguments_are_checked():
    data = (real(5, 6), real(5, 3))
    with pytest.raises(ValueError, match="matmul_precision must be one of 'ieee', 'tf32', 'bf16', got 'fp8'"):
        lsfast.Objective(two_layers(), nn.MSELoss(), data, matmul_precision="fp8")
    with pytest.raises(ValueError, match="memory_limit must be a number of bytes > 0, got 0"):
        lsfast.Objective(two_layers(), nn.MSELoss(), data, memory_limit=0)
    with pytest.raises(ValueError, match="engine must be one of 'program', 'autograd', got 'jit'"):
        lsfast.Objective(two_layers(), nn.MSELoss(), data, engine="jit")
