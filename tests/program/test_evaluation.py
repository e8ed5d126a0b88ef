"""Points evaluated together equal points evaluated one by one: whole models, losses, ways to say where, batch norms."""

import copy

import pytest
import torch
from loss_problems import LOSSES, loss_problem
from model_problems import MODEL_NAMES, model_problem
from problems import NAMES, problem
from torch import nn

import lsfast
from lsfast.program.errors import CaptureError

COUNT = 5


def around(objective, d=2, size=0.1, only="*"):
    """Directions [d, n] that move the parameters matched, and coordinates [COUNT, d], the first of them 0."""
    generator = torch.Generator().manual_seed(0)
    directions = size * torch.randn(d, objective.n, dtype=objective.dtype, generator=generator)
    for name, part in objective.slices.items():
        if only not in ("*", name):
            directions[:, part] = 0.0
    coordinates = torch.randn(COUNT, d, dtype=objective.dtype, generator=generator)
    coordinates[0] = 0.0
    return {"directions": directions, "coordinates": coordinates}


def assert_same(found, expected, tolerance):
    """Values, standard errors and metrics agree, relative to the largest of each."""
    pairs = [(found.values, expected.values), (found.stderr, expected.stderr)]
    pairs += [(found.metrics[name], metric) for name, metric in expected.metrics.items()]
    for one, other in pairs:
        atol = tolerance * float(other.nan_to_num().abs().max())
        torch.testing.assert_close(one, other, rtol=0.0, atol=atol, equal_nan=True)


def both(p, **options):
    """The objective by the program engine, and the one that calls the model at each point."""
    return p.objective(**options), p.objective(engine="autograd", **options)


def energy(outputs, targets):
    return outputs.square().mean()


# float64 sums in other orders, through up to a few dozen layers.
@pytest.mark.parametrize("make", [problem, model_problem], ids=["layers", "models"])
def test_points_together_equal_points_one_by_one(make):
    for name in NAMES if make is problem else [name for name in MODEL_NAMES if "eager" not in name]:
        p = make(name)
        together, one_by_one = both(p)
        where = around(together)
        tolerance = 200 * p.precision
        expected = one_by_one.evaluate(**where, metrics={"energy": energy})
        found = together.evaluate(**where, metrics={"energy": energy})
        assert found.points_at_once >= COUNT, name
        assert_same(found, expected, tolerance)
        assert_same(together.evaluate(**where, points_at_once=2), one_by_one.evaluate(**where), tolerance)
        points = together.parameters + where["coordinates"] @ where["directions"]
        assert_same(together.evaluate(points=points), one_by_one.evaluate(points=points), tolerance)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "tied tokens"])
def test_parameters_that_no_direction_moves_are_shared(name):
    p = problem(name)
    together, one_by_one = both(p)
    for only in together.names:
        where = around(together, only=only)
        assert_same(together.evaluate(**where), one_by_one.evaluate(**where), 1e-13)


def test_many_directions_are_not_carried_through_the_first_layer_and_give_the_same():
    together, one_by_one = both(problem("cnn"))
    where = around(together, d=9)
    assert_same(together.evaluate(**where), one_by_one.evaluate(**where), 1e-13)


@pytest.mark.parametrize(("inputs", "reduction"), [("rows", "sum"), ("sequences", "mean")])
def test_losses_and_their_errors_do_not_depend_on_the_batches(inputs, reduction):
    for loss in LOSSES:
        p = loss_problem(loss, reduction, inputs)
        whole, one_by_one = both(p, reduction=reduction)
        where = around(whole)
        found, expected = whole.evaluate(**where), one_by_one.evaluate(**where)
        assert_same(found, expected, 1e-13)
        split = p.objective(data=p.split(3), reduction=reduction).evaluate(**where)
        assert_same(split, found, 1e-13)


def test_the_standard_error_is_that_of_a_mean_over_rows():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2).double(), torch.randn(40, 3).double(), torch.randn(40, 2).double()
    objective = lsfast.Objective(model, nn.MSELoss(), [(x[:7], y[:7]), (x[7:], y[7:])])
    found = objective.evaluate(points=objective.parameters.expand(4, -1).contiguous())
    rows = (model(x) - y).square().mean(1)
    assert torch.allclose(found.values, rows.mean().expand(4), rtol=1e-14)
    assert torch.allclose(found.stderr, (rows.var() / 40).sqrt().expand(4), rtol=1e-12)
    single = lsfast.Objective(model, nn.MSELoss(), (x[:1], y[:1]))
    assert single.evaluate(points=single.parameters.expand(4, -1)).stderr.isnan().all()


def test_a_loss_that_cannot_be_taken_apart_has_the_error_over_its_batches():
    p = problem("mlp")
    loss_fn = lambda z, y: nn.functional.cross_entropy(z, y).exp()  # noqa: E731
    objective = lsfast.Objective(p.model, loss_fn, p.split(4), count=lambda x, y: len(y))
    found = objective.evaluate(points=objective.parameters.expand(4, -1))
    each = torch.stack([lsfast.Objective(p.model, loss_fn, batch).loss() for batch in p.split(4)])
    mean = (4 * each[0] + 6 * each[1]) / 10
    error = (2.0 * (16 * (each[0] - mean).square() + 36 * (each[1] - mean).square())).sqrt() / 10
    assert torch.allclose(found.values, mean.expand(4))
    assert torch.allclose(found.stderr, error.expand(4))


@pytest.mark.parametrize("name", ["cnn", "resnet in eval mode"])
def test_recomputed_batch_norms_are_those_of_training_on_all_data_as_one_batch(name):
    p = problem(name) if name in NAMES else model_problem(name)
    objective = p.objective(data=p.split(2))
    where = around(objective)
    training = copy.deepcopy(p.model).train()
    whole = lsfast.Objective(training, p.loss_fn, p.data, engine="autograd")
    found = objective.evaluate(**where, batch_norm="recompute", metrics={"energy": energy})
    expected = whole.evaluate(**where, metrics={"energy": energy})
    assert torch.allclose(found.values, expected.values, rtol=1e-12)
    assert torch.allclose(found.metrics["energy"], expected.metrics["energy"], rtol=1e-12)
    assert not torch.allclose(found.values, objective.evaluate(**where).values, rtol=1e-3)


def test_buffers_move_with_the_coordinates():
    p = problem("cnn")
    together, one_by_one = both(p)
    where = around(together)
    own = dict(p.model.named_buffers())["1.running_var"]
    rows = torch.stack([own, 0.1 * own, 0.05 * own])
    moved = together.evaluate(**where, buffers={"1.running_var": rows})
    assert_same(moved, one_by_one.evaluate(**where, buffers={"1.running_var": rows}), 1e-13)
    for index in (0, 3):
        model = copy.deepcopy(p.model)
        variance = own + where["coordinates"][index] @ rows[1:]
        model[1].running_var.copy_(variance)
        point = (together.parameters + where["coordinates"][index] @ where["directions"])[None]
        alone = lsfast.Objective(model, p.loss_fn, p.data).evaluate(points=point)
        assert torch.allclose(moved.values[index], alone.values[0], rtol=1e-12)
    given = together.evaluate(points=together.parameters.expand(4, -1), buffers={"1.running_var": own.expand(4, -1)})
    assert torch.allclose(given.values, together.loss().expand(4))


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp8_e4m3", "fp8_e4m3"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_a_scheme_rounds_the_weights_as_by_hand(name, scheme):
    objective = problem(name).objective()
    where = around(objective)
    found = objective.evaluate(**where, scheme=scheme)
    points = objective.parameters + where["coordinates"] @ where["directions"]
    given = objective.evaluate(points=points, scheme=scheme)
    for index, point in enumerate(points):
        by_hand = objective.at(lsfast.studies.quantize_parameters(objective.at(point), scheme)).loss()
        assert given.values[index] == pytest.approx(float(by_hand), rel=1e-13)
    # A coordinate's product is rounded before it is added here, so that a number may fall on the other side of a tie.
    assert torch.allclose(found.values, given.values, rtol=1e-3)


def test_weight_decay_is_that_of_each_point():
    for engine in ("program", "autograd"):
        p = problem("mlp")
        plain, decayed = p.objective(engine=engine), p.objective(engine=engine, weight_decay=0.3)
        where = around(plain)
        points = plain.parameters + where["coordinates"] @ where["directions"]
        added = 0.15 * points.square().sum(1)
        for place in (where, {"points": points}):
            difference = decayed.evaluate(**place).values - plain.evaluate(**place).values
            assert torch.allclose(difference, added, rtol=1e-13)


def test_nothing_of_the_model_changes():
    p = model_problem("resnet in train mode")
    before = copy.deepcopy(p.model.state_dict())
    state = torch.random.get_rng_state()
    objective = p.objective()
    objective.evaluate(**around(objective))
    assert all(torch.equal(before[name], value) for name, value in p.model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_losses_are_summed_in_float64():
    # The mean of 2^22 float32 rows of size 1 + 2^-20: float32 sums lose the second part.
    rows = 1 << 16
    model = nn.Linear(1, 1, bias=False)
    x = torch.ones(rows, 1)
    loss_fn = nn.L1Loss()
    with torch.no_grad():
        model.weight.fill_(1.0 + 2.0**-20)
    objective = lsfast.Objective(model, loss_fn, (x, torch.zeros(rows, 1)))
    found = objective.evaluate(points=objective.parameters.expand(4, -1))
    assert (found.values == 1.0 + 2.0**-20).all()


def test_an_infinite_or_undefined_loss_is_kept():
    p = problem("mlp")
    objective = p.objective()
    directions = torch.zeros(1, objective.n, dtype=torch.float64)
    directions[0, 0] = 1.0
    coordinates = torch.tensor([[0.0], [float("nan")], [float("inf")], [1.0]], dtype=torch.float64)
    values = objective.evaluate(directions=directions, coordinates=coordinates).values
    assert values.isfinite().tolist() == [True, False, False, True]  # infinity times a 0 of the direction is NaN
    assert not objective.evaluate(directions=directions, coordinates=coordinates).stderr[1].isfinite()


def test_a_model_that_cannot_be_captured_is_evaluated_point_by_point(capfd, monkeypatch):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            y = self.layer(x)
            return y if y.sum() > 0 else -y

    torch.manual_seed(0)
    objective = lsfast.Objective(Branches(), nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.randint(0, 2, (6,))))
    found = objective.evaluate(points=objective.parameters.expand(4, -1))
    assert found.points_at_once == 1
    assert torch.allclose(found.values, objective.loss().expand(4))
    assert capfd.readouterr().err == ""  # nothing of the graph that torch prints
    monkeypatch.setattr(torch.export, "export", None)  # that it cannot be captured is known
    with pytest.raises(CaptureError, match="could not capture the model"):
        objective.evaluate(points=objective.parameters.expand(4, -1), batch_norm="recompute")


def test_a_subset_holds_rows_of_the_data_once_and_in_order():
    p = problem("mlp")
    objective = p.objective(data=p.split(4))
    chosen = objective.subset(6, seed=1)
    kept = torch.cat([inputs for inputs, _ in chosen.data])
    places = [int((p.inputs == row).all(1).nonzero()) for row in kept]
    assert places == sorted(set(places))
    assert len(places) == 6
    assert torch.equal(torch.cat([targets for _, targets in chosen.data]), p.targets[places])
    by_hand = lsfast.Objective(p.model, p.loss_fn, (p.inputs[places], p.targets[places])).loss()
    assert chosen.loss() == pytest.approx(float(by_hand))
    assert objective.subset(10).loss() == pytest.approx(float(objective.loss()))
    with pytest.raises(ValueError, match="subset: rows must be at most the 10 of the data, got 11"):
        objective.subset(11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm": "train"}, "batch_norm must be one of"),
        ({"points_at_once": 0}, "points_at_once must be at least 1"),
        ({"scheme": "fp3"}, "scheme"),
        ({"buffers": {"x": torch.zeros(3)}}, "must be buffers of the model, got 'x'"),
        ({"buffers": {"1.running_var": torch.zeros(3, 5).double()}}, r"must have shape \[3, 4\], got \[3, 5\]"),
        ({"origin": torch.zeros(2).double()}, "origin must have shape"),
    ],
)
def test_bad_arguments_are_named(options, message):
    objective = problem("cnn").objective()
    with pytest.raises(ValueError, match=message):
        objective.evaluate(**around(objective), **options)


def test_statistics_that_a_batch_norm_in_training_does_not_read_are_refused():
    p = model_problem("resnet in train mode")
    objective = p.objective()
    mean = dict(p.model.named_buffers())["stem.1.running_mean"]
    with pytest.raises(ValueError, match="must be read by the model, got 'stem.1.running_mean' of one in train mode"):
        objective.evaluate(**around(objective), buffers={"stem.1.running_mean": mean.expand(3, -1)})
