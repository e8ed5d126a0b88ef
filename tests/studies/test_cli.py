"""The command: what it prints, and its exit codes."""

import subprocess
import sys

import numpy
import pytest
import torch

import lsfast
from lsfast import _C as library
from lsfast import cli
from lsfast.env import environment


def test_env_says_what_it_runs_on(capsys):
    assert cli.main(["env"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name: value.strip() for name, value in lines.items()}
    assert facts == environment()
    assert facts["lsfast"] == lsfast.__version__
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == numpy.__version__
    assert facts["instruction set"].startswith(library.cpu_capability)
    assert facts["CUDA kernels"] == (
        f"compiled for {library.cuda_architectures.replace(';', ', ')}" if library.has_cuda else "not compiled"
    )
    assert facts["devices"].startswith("cpu (")
    assert facts["threads"].split()[0] == str(torch.get_num_threads())


def test_python_m_lsfast_is_the_command():
    done = subprocess.run([sys.executable, "-m", "lsfast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lsfast {lsfast.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--device", "abacus"], "lsfast demo: --device must be cpu or cuda, got 'abacus'"),
        (["demo", "--device", "cuda:99"], "lsfast demo: run_demo: device must be one torch sees, got cuda:99"),
        (["demo", "--seed", "-1"], "lsfast demo: run_demo: seed must be at least 0, got -1"),
        (["demo", "--steps", "1"], "lsfast demo: run_demo: steps must be at least 2, got 1"),
    ],
)
def test_errors_of_users_are_one_line_and_exit_2(arguments, message, tmp_path, capsys):
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line_and_exits_2(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["demon"], ["demo", "--models", "rnn"], ["demo", "--seed", "x"]])
def test_a_command_that_does_not_parse_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: lsfast" in capsys.readouterr().err


def test_an_interruption_is_one_line_and_exits_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "lsfast demo: interrupted\n"


def test_the_demo_prints_its_summary(monkeypatch, tmp_path, capsys):
    from lsfast.studies import demo

    seen = {}

    def stands_in(out, **keywords):
        seen.update(keywords, out=out)
        return "a table"

    monkeypatch.setattr(demo, "run_demo", stands_in)
    assert cli.main(["demo", "--out", str(tmp_path), "--seed", "7", "--models", "cnn", "mlp", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "a table\n"
    assert seen == {
        "out": str(tmp_path), "seed": 7, "device": torch.device("cpu"), "models": ["cnn", "mlp"], "steps": 3,
    }  # fmt: skip


def test_the_instruction_set_says_if_it_was_chosen(monkeypatch):
    monkeypatch.setenv("LSFAST_CPU_CAPABILITY", "baseline")
    assert environment()["instruction set"].endswith("(by LSFAST_CPU_CAPABILITY)")


def test_importing_the_command_needs_no_matplotlib_and_no_scikit_learn():
    code = "import sys, lsfast.cli; sys.exit(any(name in sys.modules for name in ('matplotlib', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
