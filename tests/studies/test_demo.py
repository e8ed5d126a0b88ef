"""The demo: its report is self-contained, its numbers are those of the public functions, its seed decides them."""

import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import lsfast
from lsfast.results import finite
from lsfast.studies.demo import analysis, models, run_demo
from lsfast.studies.demo.digits import load_digits
from lsfast.studies.demo.settings import Settings


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "by it"
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    summary = run_demo(folder, seed=1, models=["mlp"], steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    return folder, summary, json.loads((folder / "results.json").read_text())


class Page(HTMLParser):
    """Collects the attributes of a page, and the tags that are still open."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_needs_nothing_but_itself(demo):
    folder, _, _ = demo
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert not [name for name, _ in page.attributes if name in ("href", "srcset", "onload")]
    images = [value for name, value in page.attributes if name == "src"]
    assert len(images) == len(analysis.FIGURES)
    inside = [base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True) for image in images]
    assert sorted(inside) == sorted(path.read_bytes() for path in folder.glob("*.png"))


def test_every_picture_decodes_and_shows_something(demo):
    from matplotlib.image import imread

    folder, _, _ = demo
    names = sorted(path.name for path in folder.iterdir())
    pictures = [f"mlp-{figure}.png" for figure in analysis.FIGURES]
    assert names == sorted([*pictures, "report.html", "results.json"])
    for name in pictures:
        assert np.ptp(imread(folder / name)) > 0.5


def test_numbers_equal_those_of_the_public_functions(demo):
    _, _, results = demo
    found, settings = results["models"]["mlp"], Settings()
    digits = load_digits(1)
    model = models.train("mlp", digits, 1)
    data = digits.train_images[: settings.images], digits.train_labels[: settings.images]
    objective = lsfast.Objective(model, nn.CrossEntropyLoss(), data)
    hessian = lsfast.HessianOperator(objective)
    assert found["parameters"] == objective.n
    assert found["loss"] == float(objective.loss())
    # Points evaluated together round otherwise, in float32.
    assert found["loss_surface"]["values"][2][2] == pytest.approx(found["loss"], rel=1e-5)
    assert found["loss_surface"]["coordinates"] == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 2
    trace = lsfast.trace(hessian, num_products=settings.trace_products, seed=1)
    assert found["trace"] == {"value": trace.value, "stderr": trace.stderr}
    assert found["eigenvalues"] == lsfast.eigsh(hessian, k=settings.eigenvalues, which="LM").values.tolist()
    assert sum(found["spectral_density"]["weights"][0]) == pytest.approx(1.0, abs=1e-12)
    table = lsfast.precision_study(objective, settings.schemes, measures=["loss", "weight_error"], seed=1)
    for scheme in settings.schemes:
        assert found["precision"][scheme]["loss"] == table[scheme, "loss"]
        assert found["precision"][scheme]["weight_error"] == table[scheme, "weight_error"]


def test_the_summary_says_what_was_found_and_where(demo):
    folder, summary, results = demo
    found = results["models"]["mlp"]
    head, row, *_ = summary.splitlines()
    assert head.split()[-5:] == list(Settings().schemes)
    assert row.split()[:2] == ["mlp", f"{found['test_accuracy']:.3f}"]
    assert row.split()[-5:] == [f"{found['precision'][scheme]['test_accuracy']:.3f}" for scheme in Settings().schemes]
    assert f"{found['trace']['value']:.4g} ± {found['trace']['stderr']:.2g}" in row
    assert str(folder / "report.html") in summary
    assert str(folder / "results.json") in summary


def test_the_results_say_how_they_were_made(demo):
    _, _, results = demo
    assert results["seed"] == 1
    assert results["environment"] == lsfast.env.environment()
    assert results["settings"]["grid_steps"] == 5
    assert set(results["models"]["mlp"]["seconds"]) == set(analysis.STAGES)


def test_the_reference_row_is_the_model_itself(demo):
    _, _, results = demo
    found = results["models"]["mlp"]
    assert found["precision"]["fp32"]["test_accuracy"] == found["test_accuracy"]
    assert found["precision"]["fp32"]["loss"] == found["loss"]
    assert found["test_accuracy"] > 0.95


@pytest.mark.parametrize("name", list(models.MODELS))
def test_models_are_deterministic_in_the_seed_and_have_a_head_and_a_body(name, monkeypatch):
    constructor, _, rate = models.MODELS[name]
    monkeypatch.setitem(models.MODELS, name, (constructor, 1, rate))
    digits = load_digits(0)
    first, again = models.train(name, digits, 3), models.train(name, digits, 3)
    assert not first.training
    for (key, value), other in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    objective = lsfast.Objective(first, nn.CrossEntropyLoss(), (digits.test_images, digits.test_labels))
    chosen = lsfast.studies.quantizable_parameters(objective)
    weights = [key for key, value in first.named_parameters() if value.dim() > 1 and key != "position"]
    assert list(chosen) == weights[:-1]


def test_the_split_is_by_the_seed_and_loses_no_image():
    first, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.test_images, other.test_images)
    assert len(first.train_images) + len(first.test_images) == 1797


def test_a_failure_names_the_model_and_the_stage(tmp_path, monkeypatch):
    def fails(*arguments, **keywords):
        raise ValueError("no such luck")

    monkeypatch.setattr(lsfast, "spectral_density", fails)
    with pytest.raises(RuntimeError, match="demo: spectral density of the mlp failed: no such luck"):
        run_demo(tmp_path, models=["mlp"], steps=3)
    assert not (tmp_path / "report.html").exists()


def test_missing_images_are_said_with_what_installs_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "lsfast\[demo\]"'):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": ["rnn"]}, "models must be one of 'mlp', 'cnn', 'transformer', got 'rnn'"),
        ({"models": []}, "models must name at least one, got none"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named_before_any_work(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_demo(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_json_has_no_nan():
    assert finite({"a": [1.0, float("nan")], "b": (float("inf"), 2)}) == {"a": [1.0, None], "b": [None, 2]}
