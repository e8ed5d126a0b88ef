"""`lsfast grid`: what it finds around a user's model, what it writes and refuses, and how it goes on after an end."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from grid_user import MODULE, run, user_folder  # noqa: F401  the last is a fixture

import lsfast
from lsfast import plotting
from lsfast.studies import GridReport, grid, grid_report


@pytest.fixture
def plain(monkeypatch):
    """No figures and no page: what is slow, and tested once."""
    monkeypatch.setattr(GridReport, "plot", lambda report, folder=None: [])
    monkeypatch.setattr(GridReport, "save_page", lambda report, folder: None)


def objective_of(seed=0, **options):
    torch.manual_seed(seed)
    return lsfast.Objective(*importlib.import_module(MODULE).mlp(), **options)


def numbers(out="out"):
    return json.loads((Path(out) / "grid.json").read_text())


def assert_same_grid(found, expected):
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.evaluated, expected.evaluated)
    assert found.labels == expected.labels
    assert all(map(torch.equal, found.coordinates, expected.coordinates))


def test_what_is_written_is_the_grid_of_the_users_model(tmp_path, capsys):
    out = tmp_path / "a" / "out"
    assert run("--steps", "5x4", "--seed", 3, out=out) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # a bar is for terminals
    names = ["contours.png", "grid.json", "grid.npz", "heatmap.png", "report.html", "surface.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(str(out / name) in captured.out.splitlines()[-1] for name in names)

    objective = objective_of(3)
    expected = lsfast.loss_grid(objective, lsfast.random_directions(objective, seed=3), (5, 4))
    assert_same_grid(lsfast.LossGrid.load(out / "grid.npz"), expected)
    found = numbers(out)
    assert found["loss"]["value"] == pytest.approx(float(objective.loss()), rel=1e-13)
    i, j = divmod(int(expected.values.argmin()), 4)
    x, y = expected.coordinates
    assert found["minimum"]["value"] == float(expected.values.min())
    assert found["minimum"]["at"] == [float(x[i]), float(y[j])]
    assert found["minimum"]["stderr"] == float(expected.stderr[i, j])
    assert found["maximum"]["value"] == float(expected.values.max())
    assert (found["shape"], found["points"], found["evaluations"], found["nonfinite"]) == ([5, 4], 20, 20, 0)
    assert found["axes"][1] == {"label": "random 1", "from": -1.0, "to": 1.0, "points": 4}
    assert found["settings"]["model"] == f"{MODULE}:mlp"
    assert (found["settings"]["seed"], found["settings"]["normalize"]) == (3, "filter")

    page = (out / "report.html").read_text()
    assert "Plotly.newPlot(" in page
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert outside.count('src="data:image/png;base64,') == 3
    assert "<td>loss at the origin</td><td>{:.6g}</td>".format(found["loss"]["value"]) in outside
    assert not re.search(r'(?:src|href)="(?!data:)', outside)  # it needs no other file

    words = [line.split() for line in captured.out.splitlines()]
    assert words[0] == ["Loss", "grid,", "5", "x", "4", "points,", "51", "parameters"]
    assert words[2][:5] == ["loss", "at", "the", "origin", f"{found['loss']['value']:.6g}"]
    smallest = found["minimum"]
    at = "({:.3g}, {:.3g})".format(*smallest["at"])
    assert ["minimum", f"{smallest['value']:.6g}", "±", f"{smallest['stderr']:.2g}", "at", *at.split()] in words
    assert ["random", "1", "-1", "1", "4"] in words


@pytest.mark.parametrize(
    ("options", "directions", "keywords"),
    [
        (["--normalize", "none", "--extent", "0.5"], {"normalize": None}, {"extent": 0.5}),
        (["--scheme", "nvfp4"], {}, {"scheme": "nvfp4", "seed": 0}),
        (["--subset", "7", "--batch-norm", "recompute"], {}, {"subset": 7, "batch_norm": "recompute"}),
        (["--tolerance", "0.1", "--params", "0.*"], {}, {"tolerance": 0.1}),
    ],
)
def test_options_are_those_of_the_functions(options, directions, keywords, plain):
    assert run("--steps", "9x5", *options) == 0
    objective = objective_of(params="0.*" if "--params" in options else None)
    expected = lsfast.loss_grid(objective, lsfast.random_directions(objective, **directions), (9, 5), **keywords)
    assert_same_grid(lsfast.LossGrid.load("out/grid.npz"), expected)
    found = numbers()
    assert (found["evaluations"], found["error"]) == (expected.evaluations, expected.error)
    data = objective.subset(7) if "--subset" in options else objective
    at_origin = data.evaluate(
        None, torch.zeros(1, objective.n).double(), torch.zeros(1, 1).double(), seed=0,
        scheme=keywords.get("scheme"), batch_norm=keywords.get("batch_norm", "eval"),
    )  # fmt: skip
    # One point is evaluated by itself, the grid's together: sums in another order.
    assert found["loss"]["value"] == pytest.approx(float(at_origin.values[0]), rel=1e-12)
    assert found["loss"]["stderr"] == pytest.approx(float(at_origin.stderr[0]), rel=1e-12)


def test_a_model_that_cannot_be_captured_is_evaluated_all_the_same(plain, capfd):
    assert run("--steps", "1x6", model="branching") == 0
    assert capfd.readouterr().err == ""  # none of the graph that torch prints
    assert numbers()["settings"]["engine"] == "autograd"
    assert run("--steps", "3", "--directions", "eigen", model="branching", out="other") == 2
    error = capfd.readouterr().err
    assert error.startswith("lsfast grid: Objective: the program engine could not capture the model")
    assert error.count("\n") == 1
    assert not Path("other").exists()


def test_eigenvectors_are_directions(plain, capsys):
    assert run("--steps", "3x3", "--directions", "eigen", "--extent", 0.1) == 0
    objective = objective_of()
    directions = lsfast.eigen_directions(lsfast.HessianOperator(objective))
    assert_same_grid(lsfast.LossGrid.load("out/grid.npz"), lsfast.loss_grid(objective, directions, 3, 0.1))
    assert all(label in capsys.readouterr().out for label in directions.labels[:1])


def save_checkpoints(count):
    model, _, _ = importlib.import_module(MODULE).mlp()
    files = [f"{i}.pt" for i in range(count)]
    for file in files:
        torch.save(model.state_dict(), file)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return files


def test_a_trajectory_is_shown_whole_in_the_plane_of_its_checkpoints(capsys):
    files = save_checkpoints(12)
    assert run("--steps", "4x3", "--directions", "trajectory", "--checkpoints", *files) == 0
    objective = objective_of()
    run_of = lsfast.trajectory_directions(objective, files)
    report, found = GridReport.load("out"), numbers()
    assert report.grid.labels == run_of.labels
    assert torch.equal(report.run.coordinates, run_of.coordinates)
    assert torch.equal(report.run.projected, run_of.projected)
    assert found["loss"]["value"] == pytest.approx(float(run_of.projected[-1]), rel=1e-12)
    for axis, places in zip(report.grid.coordinates, run_of.coordinates.T, strict=True):
        span = float(places.max() - places.min())
        assert float(places.min() - axis.min()) == pytest.approx(0.2 * span, rel=0.05)
        assert float(axis.max() - places.max()) == pytest.approx(0.2 * span, rel=0.05)
    printed = capsys.readouterr().out.splitlines()
    assert "  and 2 between" in printed
    assert ["12", "0", "0", *(f"{v[-1]:.5g}" for v in (run_of.values, run_of.projected))] in map(str.split, printed)
    page = Path("out/report.html").read_text()
    assert '"12 checkpoints"' in page
    assert page.count("<tr><td>  ") == 2 + 12  # of the directions, of the checkpoints


def test_points_that_are_not_finite_are_counted_and_one_direction_is_a_profile(capsys):
    assert run("--steps", 5, "--extent", 2, model="root") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert numbers()["nonfinite"] == 1  # of w = 0.5 + 0.5 x, or - 0.5 x, at -2 .. 2 one is negative
    assert ["not", "finite", "1"] in [line.split() for line in captured.out.splitlines()]
    page = Path("out/report.html").read_text()
    assert "The loss is NaN or infinite at 1 of 5 points" in page
    assert "newPlot" not in page
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "grid.json",
        "grid.npz",
        "profile.png",
        "report.html",
    ]


def test_three_directions_have_numbers_and_no_figure():
    assert run("--steps", "2x3x2") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["grid.json", "grid.npz", "report.html"]
    assert "No figure is drawn: there are 3 directions." in Path("out/report.html").read_text()
    assert lsfast.LossGrid.load("out/grid.npz").values.shape == (2, 3, 2)


def test_a_report_without_plotly_says_how_to_get_it(monkeypatch):
    def missing(*_):
        raise ImportError('pip install "lsfast[interactive]"')

    def drawn(report, folder):
        for name in report.figures:
            (folder / name).write_bytes(b"figure")

    monkeypatch.setattr(plotting.interactive, "require_plotly", missing)
    monkeypatch.setattr(GridReport, "plot", drawn)
    assert run("--steps", "2x2") == 0
    page = Path("out/report.html").read_text()
    assert "pip install &quot;lsfast[interactive]&quot;" in page
    assert page.count("data:image/png;base64,ZmlndXJl") == 3


def test_a_run_that_was_ended_goes_on_with_the_same_command(monkeypatch, plain, capsys):
    real = grid.loss_grid

    def ended(*arguments, **options):
        real(*arguments, **options)
        raise KeyboardInterrupt

    command = ("--steps", "8x5", "--directions", "eigen", "--extent", 0.1)
    assert run(*command, out="whole") == 0
    with monkeypatch.context() as context:
        context.setattr(grid, "loss_grid", ended)
        assert run(*command) == 130
    left = sorted(path.name for path in Path("out").iterdir())
    assert left == ["directions.checkpoint.npz", "grid.checkpoint.npz"]
    before = [(Path("out") / name).read_bytes() for name in left]
    for other in (("--extent", 0.2), ("--scheme", "fp8_e4m3"), ("--subset", 7)):
        capsys.readouterr()
        assert run(*command, *other) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("lsfast grid: loss_grid: checkpoint must be of this run, got 'out/grid.check")
        assert captured.err.count("\n") == 1
    assert run("--steps", "8x5", "--directions", "eigen", "--seed", 1) == 2
    assert "grid_report: checkpoint must be of this run, got 'out/directions." in capsys.readouterr().err
    assert [(Path("out") / name).read_bytes() for name in left] == before

    monkeypatch.setattr(grid, "eigen_directions", None)  # they are there
    assert run(*command) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["grid.json", "grid.npz"]
    assert_same_grid(lsfast.LossGrid.load("out/grid.npz"), lsfast.LossGrid.load("whole/grid.npz"))
    assert numbers("out")["loss"] == numbers("whole")["loss"]


def test_what_was_evaluated_is_not_evaluated_again(plain):
    batches = importlib.import_module(MODULE).Batches
    objective = objective_of()
    grid_report(objective, steps=(20, 20), checkpoint="kept")
    before = batches.passes
    again = grid_report(objective, steps=(20, 20), checkpoint="kept")
    # What the checkpoint belongs to and the loss at the origin take a few passes; 400 points many more.
    assert batches.passes - before < 8
    assert_same_grid(again.grid, lsfast.loss_grid(objective, lsfast.random_directions(objective), 20))


def test_a_saved_report_is_read_as_it_was(tmp_path):
    report = grid_report(objective_of(), steps=(3,))
    report.save(tmp_path / "r")
    again = GridReport.load(tmp_path / "r")
    assert again.to_dict() == report.to_dict()
    assert str(again) == str(report)
    (tmp_path / "r" / "grid.json").write_text("{")
    with pytest.raises(ValueError, match=r"GridReport\.load: path must be numbers of a loss grid"):
        GridReport.load(tmp_path / "r")
