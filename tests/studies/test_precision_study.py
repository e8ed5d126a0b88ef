"""Precision studies equal the same measures taken by hand."""

import copy
import math

import pytest
import torch
from torch import nn

import lsfast
from lsfast.studies.precision import accuracy


@pytest.fixture
def objective():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 3))
    return lsfast.Objective(model, nn.CrossEntropyLoss(), (inputs, labels))


def quantized_by_hand(objective, scheme):
    model = copy.deepcopy(objective.model)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(lsfast.fake_quantize(layer.weight, scheme, axis=-1))
    return model


def test_values_equal_those_of_a_model_quantized_by_hand(objective):
    table = lsfast.precision_study(objective, ["bf16", "fp8_e4m3", "nvfp4"])
    inputs, labels = objective.data
    for scheme in ("bf16", "fp8_e4m3", "nvfp4"):
        model = quantized_by_hand(objective, scheme)
        by_hand = lsfast.Objective(model, nn.CrossEntropyLoss(), objective.data)
        assert table[scheme, "loss"] == float(by_hand.loss())
        with torch.no_grad():
            assert table[scheme, "accuracy"] == float((model(inputs).argmax(1) == labels).double().mean())
        assert table[scheme, "sharpness"] == float(lsfast.sharpness(by_hand, method="sam", radius=0.05))
        eigenvalues = torch.linalg.eigvalsh(lsfast.HessianOperator(by_hand).to_dense().double())
        # float32 products: the largest eigenvalue is known to a few units of the last place of the matrix's norm.
        assert table[scheme, "largest_eigenvalue"] == pytest.approx(float(eigenvalues[-1]), rel=1e-4)
        pairs = [(model[i].weight, objective.model[i].weight) for i in (0, 2)]
        error = sum((q - w).double().square().sum() for q, w in pairs) / sum(
            w.double().square().sum() for _, w in pairs
        )
        assert table[scheme, "weight_error"] == pytest.approx(math.sqrt(float(error)), rel=1e-12)


def test_the_reference_comes_first_and_once(objective):
    table = lsfast.precision_study(objective, ["bf16", "fp32", "bf16"], measures=["loss", "weight_error"])
    assert table.schemes == ("fp32", "bf16")
    assert table["fp32", "weight_error"] == 0.0
    assert table["fp32", "loss"] == float(objective.loss())


def test_errors_grow_as_formats_get_coarser(objective):
    table = lsfast.precision_study(objective, ["bf16", "fp8_e4m3", "fp8_e5m2", "nvfp4"], measures=["weight_error"])
    errors = table.values[:, 0]
    assert (errors.diff() > 0).all()


def test_measures_can_be_ones_own(objective):
    measures = {"loss": "loss", "gradient norm": lambda moved: moved.gradient().norm()}
    table = lsfast.precision_study(objective, ["bf16"], measures=measures)
    theta = lsfast.studies.quantize_parameters(objective, "bf16")
    assert table.measures == ("loss", "gradient norm")
    assert table["bf16", "gradient norm"] == float(objective.at(theta).gradient().norm())


def test_two_roundings_of_one_scheme_are_two_rows(objective):
    stochastic = lsfast.scheme("e3m2").replace(rounding="stochastic")
    table = lsfast.precision_study(objective, ["e3m2", stochastic], measures=["loss"], seed=3)
    assert table.schemes == ("fp32", "e3m2", "e3m2 stochastic")
    assert table["e3m2", "loss"] != table["e3m2 stochastic", "loss"]
    again = lsfast.precision_study(objective, ["e3m2", stochastic], measures=["loss"], seed=3)
    assert torch.equal(table.values, again.values)


def test_the_model_and_the_generators_are_left_alone(objective):
    before, state = copy.deepcopy(objective.model.state_dict()), torch.get_rng_state()

    def fails(moved):
        raise ZeroDivisionError

    lsfast.precision_study(objective, ["nvfp4"])
    with pytest.raises(ZeroDivisionError):
        lsfast.precision_study(objective, ["nvfp4"], measures={"fails": fails})
    assert all(torch.equal(value, objective.model.state_dict()[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in objective.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.model.training


def test_a_loss_that_is_not_finite_is_a_value_of_the_table(objective):
    def infinite_unless_reference(outputs, labels):
        value = nn.functional.cross_entropy(outputs, labels)
        return torch.where((value.detach() - reference).abs() < 1e-6, value, torch.inf)

    reference = float(objective.loss())
    fragile = lsfast.Objective(objective.model, infinite_unless_reference, objective.data)
    table = lsfast.precision_study(fragile, ["e2m1"], measures=["loss", "largest_eigenvalue", "sharpness"])
    assert table["e2m1", "loss"] == math.inf
    assert math.isnan(table["e2m1", "largest_eigenvalue"])
    assert math.isnan(table["e2m1", "sharpness"])
    assert math.isfinite(table["fp32", "loss"])


def test_accuracy_takes_classes_last_or_second_and_skips_what_is_ignored():
    logits = torch.eye(5)[torch.tensor([[1, 2, 3], [4, 0, 1]])]  # [2, 3, 5], right at the tokens they were made from
    targets = torch.tensor([[1, 2, 0], [4, -100, 1]])

    class Fixed(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.scale, self.outputs = nn.Parameter(torch.ones(())), outputs

        def forward(self, x):
            return self.scale * self.outputs

    last = lsfast.Objective(
        Fixed(logits), lambda z, t: nn.functional.cross_entropy(z.flatten(0, 1), t.flatten()), (torch.ones(1), targets)
    )
    second = lsfast.Objective(Fixed(logits.transpose(1, 2)), nn.CrossEntropyLoss(), (torch.ones(1), targets))
    assert accuracy(last) == accuracy(second) == 4 / 5
    without_zero = nn.CrossEntropyLoss(ignore_index=0)
    targets = torch.tensor([[1, 2, 0], [4, 0, 2]])  # the outputs are right at one of the two zeros, which do not count
    third = lsfast.Objective(Fixed(logits.transpose(1, 2)), without_zero, (torch.ones(1), targets))
    assert accuracy(third) == 3 / 4


def test_accuracy_of_other_targets_is_refused(objective):
    inputs, _ = objective.data
    regression = lsfast.Objective(objective.model, nn.MSELoss(), (inputs, torch.zeros(40, 3)))
    with pytest.raises(
        ValueError, match=r"accuracy needs class indices as targets.*got targets \[40, 3\] torch.float32"
    ):
        lsfast.precision_study(regression, ["bf16"], measures=["accuracy"])


def test_a_table_reads_as_text_and_survives_a_file(objective, tmp_path):
    table = lsfast.precision_study(objective, ["bf16", "nvfp4"], measures=["loss", "weight_error"])
    head, *rows = str(table).splitlines()
    assert head.split() == ["loss", "weight_error"]
    assert [row.split()[0] for row in rows] == ["fp32", "bf16", "nvfp4"]
    assert len({len(row) for row in rows}) == 1
    table.save(tmp_path / "table.json")
    loaded = lsfast.PrecisionTable.load(tmp_path / "table.json")
    assert (loaded.schemes, loaded.measures) == (table.schemes, table.measures)
    assert torch.equal(loaded.values, table.values)
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    (tmp_path / "torn.json").write_text((tmp_path / "table.json").read_text()[:40])
    with pytest.raises(ValueError, match="torn.json must be JSON"):
        lsfast.PrecisionTable.load(tmp_path / "torn.json")


def test_an_index_that_is_not_there_is_named(objective):
    table = lsfast.precision_study(objective, ["bf16"], measures=["loss"])
    with pytest.raises(KeyError, match="measure must be one of loss, got 'lost'"):
        table["bf16", "lost"]
    with pytest.raises(KeyError, match="scheme must be one of fp32, bf16, got 'bf17'"):
        table["bf17", "loss"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schemes": ["fp8_e4m4"]}, ValueError, "got 'fp8_e4m4'; nearest is 'fp8_e4m3'"),
        ({"schemes": []}, ValueError, "schemes must name at least one scheme, got none"),
        ({"schemes": "bf16"}, TypeError, "schemes must be a list of schemes, got 'bf16'"),
        ({"measures": []}, ValueError, "measures must name at least one measure, got none"),
        ({"measures": "loss"}, TypeError, "measures must be a list of names or a mapping, got 'loss'"),
        ({"measures": ["acuracy"]}, ValueError, "got 'acuracy'; nearest is 'accuracy'"),
        ({"measures": {"m": lambda moved: "high"}}, TypeError, "measure 'm' must return a number, got str"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(objective, arguments, error, message):
    with pytest.raises(error, match=message):
        lsfast.precision_study(objective, **({"schemes": ["bf16"], "measures": ["loss"]} | arguments))


def test_something_that_is_no_objective_is_named():
    with pytest.raises(TypeError, match=r"objective must be an lsfast.Objective, got Linear"):
        lsfast.precision_study(nn.Linear(2, 2), ["bf16"])
