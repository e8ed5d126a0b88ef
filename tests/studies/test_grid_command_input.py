"""`lsfast grid`: what is wrong with its arguments is said in one line, before any work."""

import builtins
from pathlib import Path

import pytest
from grid_user import run, user_folder  # noqa: F401  the last is a fixture

from lsfast import cli
from lsfast.cli_options import steps_of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0x3"], "grid_report: steps must be at least 1, got 0"),
        (["--extent", "0"], "grid_report: extent must be > 0, got 0.0"),
        (["--extent", "inf"], "grid_report: extent must be finite, got inf"),
        (["--tolerance", "-1"], "grid_report: tolerance must be > 0, got -1.0"),
        (["--seed", "-1"], "grid_report: seed must be at least 0, got -1"),
        (["--subset", "21"], "subset: "),
        (["--scheme", "fp3"], "scheme: name must be one of "),
        (["--checkpoints", "a.pt"], "grid_report: checkpoints must be left out with random directions, got 1"),
        (["--directions", "eigen", "--normalize", "layer"], "grid_report: normalize must be left out with eigen"),
        (["--directions", "trajectory"], "grid_report: checkpoints must be more than the 2 directions of a "),
        (["--directions", "trajectory", "--checkpoints", "a.pt", "b.pt", "c.pt"], "trajectory_directions: "),
        (["--device", "abacus"], "load_model: device must be cpu or cuda, got 'abacus'"),
        (["--params", "head.*"], "Objective: params pattern 'head.*' must match a parameter, got none of 4"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(arguments, message, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lsfast grid: {message}")
    assert captured.err.count("\n") == 1
    assert not Path("out").exists() or not list(Path("out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "required: --model"),
        (["--model", "a:b", "--out", "o", "--steps", "5,5"], "steps must be such as 51x51, got '5,5'"),
        (["--model", "a:b", "--out", "o", "--directions", "up"], "invalid choice: 'up'"),
        (["--model", "a:b", "--out", "o", "--normalize", "l2"], "invalid choice: 'l2'"),
    ],
)
def test_a_command_that_does_not_parse_exits_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["grid", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["grid", "--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    options = "model out directions steps extent normalize checkpoints scheme batch-norm tolerance subset seed device"
    assert all(f" --{name} " in printed for name in options.split())
    assert "points along each direction, default 51x51; 51: a line" in printed
    assert [steps_of(text) for text in ("51x51", "7", "2x3x4")] == [(51, 51), (7,), (2, 3, 4)]


def test_what_is_in_the_way_is_said_before_the_model_is_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").touch()
    assert run(model="fails") == 2
    assert capsys.readouterr().err == "lsfast grid: --out must be a folder, got the file 'out'\n"
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError("no matplotlib")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(model="fails", out="other") == 2
    assert 'pip install "lsfast[demo]"' in capsys.readouterr().err
