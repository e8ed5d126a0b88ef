"""`lsfast spectrum`: what it finds of a user's model, what it writes and refuses, and how it goes on after a kill."""

import builtins
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import lsfast
from lsfast import cli, plotting
from lsfast.checkpoint import Checkpoint
from lsfast.cli_options import bytes_of
from lsfast.studies import SpectrumReport, load_model, spectrum, spectrum_report

MODULE = "spectrum_command_user.models"
SOURCE = '''
import os, signal, torch
from torch import nn

def mlp():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    return model, nn.CrossEntropyLoss(), [(x[:10], y[:10]), (x[10:], y[10:])]

class Passes:
    """Batches that are read anew at every product; at a given pass the process is killed, or interrupted."""
    made = []

    def __init__(self, batches):
        self.batches, self.passes = batches, 0
        Passes.made.append(self)

    def __iter__(self):
        self.passes += 1
        if self.passes == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.passes == int(os.environ.get("INTERRUPT_AT", -1)):
            raise KeyboardInterrupt
        yield from self.batches

def killed():
    model, loss_fn, batches = mlp()
    return model, loss_fn, Passes(batches)

def summed():
    model = nn.Linear(3, 2)
    return model, nn.MSELoss(reduction="sum"), (torch.randn(5, 3), torch.randn(5, 2))

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, features, scale):
        return scale * self.layer(features)

class Weighted:
    def mse():
        weighted = nn.CrossEntropyLoss(weight=torch.rand(2))
        pairs = [({"features": torch.randn(4, 3), "scale": 2.0}, torch.randint(0, 2, (4,)))]
        return Named(), weighted, Passes(pairs)

class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)

def branching():
    return Branching(3, 2), nn.MSELoss(), (torch.rand(5, 3), torch.rand(5, 2))

def narrow():
    model, loss_fn, (x, y) = summed()
    return model.bfloat16(), loss_fn, (x.bfloat16(), y.bfloat16())

def dropout():
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout()), nn.MSELoss(), (torch.rand(5, 3), torch.rand(5, 2))

def number(): return 3
def two(): return nn.Linear(3, 2), nn.MSELoss()
def no_module(): return 1, nn.MSELoss(), []
def no_loss(): return nn.Linear(3, 2), None, []
def no_batch(): return nn.Linear(3, 2), nn.MSELoss(), []
def needs(what): return what
def fails():
    raise RuntimeError("first line\\nsecond line")
constant = 7
'''


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """A package of a user's in the current directory."""
    package = tmp_path / MODULE.split(".")[0]
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(SOURCE)
    (package / "broken.py").write_text("x = 1\nx +\n")
    (package / "missing.py").write_text("import not_a_package_of_anyone\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return tmp_path


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(SpectrumReport, "plot", lambda report, folder=None: [])


def run(*arguments, model="mlp", out="out"):
    return cli.main(["spectrum", "--model", f"{MODULE}:{model}", "--out", str(out), *map(str, arguments)])


def users_module():
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(MODULE)


def made_with(seed, name="mlp"):
    torch.manual_seed(seed)
    return getattr(users_module(), name)()


def dense_hessian(model, loss_fn, batches):
    """By double backward of the loss over all the data, with no part of lsfast."""
    names = [name for name, _ in model.named_parameters()]
    values = [parameter.detach() for parameter in model.parameters()]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def loss(theta):
        parts = theta.split([value.numel() for value in values])
        named = {name: part.view_as(value) for name, part, value in zip(names, parts, values, strict=True)}
        return loss_fn(torch.func.functional_call(model, named, (x,)), y)

    theta = torch.cat([value.flatten() for value in values])
    return loss(theta), torch.func.grad(loss)(theta), torch.autograd.functional.hessian(loss, theta)


def test_what_is_written_is_the_spectrum_of_the_users_model(user, capsys):
    out = user / "a" / "out"
    assert run("--eigs", 4, "--probes", 3, "--steps", 20, "--seed", 5, out=out) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # a bar is for terminals
    names = ["density.npz", "density.png", "eigenvalues.png", "eigenvectors.safetensors", "spectrum.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    for figure in ("density.png", "eigenvalues.png"):
        assert (out / figure).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert all(str(out / name) in captured.out.splitlines()[-1] for name in names)

    model, loss_fn, batches = made_with(5)
    loss, gradient, H = dense_hessian(model, loss_fn, batches)
    found = json.loads((out / "spectrum.json").read_text())
    assert (found["operator"], found["n"], found["probes"]) == ("hessian", len(H), 3)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-13)
    assert found["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-12)
    exact = torch.linalg.eigvalsh(H)
    expected = exact[exact.abs().argsort(descending=True)[:4]]
    values = torch.tensor([each["value"] for each in found["eigenvalues"]], dtype=torch.float64)
    # The stopping rule bounds residuals by 4e-11 |A|; the values are good to their squares.
    assert float((values - expected).abs().max()) < 1e-12 * float(exact.abs().max())
    assert all(each["residual"] < 1e-10 * float(exact.abs().max()) for each in found["eigenvalues"])
    first = 0
    for parameter, (name, value) in zip(found["parameters"], model.named_parameters(), strict=True):
        assert (parameter["name"], parameter["shape"]) == (name, list(value.shape))
        block = H[first : first + value.numel(), first : first + value.numel()]
        assert abs(parameter["trace"]["value"] - float(block.trace())) <= 5 * parameter["trace"]["stderr"]
        first += value.numel()
    assert found["settings"]["model"] == f"{MODULE}:mlp"
    assert found["settings"]["seed"] == 5
    assert found["environment"]["torch"] == torch.__version__

    density = lsfast.SpectralDensity.load(out / "density.npz")
    objective = lsfast.Objective(model, loss_fn, batches)
    direct = lsfast.spectral_density(lsfast.HessianOperator(objective), probes=3, steps=20, seed=5)
    assert torch.equal(density.nodes, direct.nodes)
    assert found["trace"]["value"] == density.trace.value
    assert found["criteria"]["largest"] == float(density.nodes.max())
    with safe_open(out / "eigenvectors.safetensors", framework="pt") as file:
        vectors, metadata = file.get_tensor("vectors"), file.metadata()
        assert torch.equal(file.get_tensor("values"), values)
    assert float((vectors @ H - values[:, None] * vectors).norm(dim=1).max()) < 1e-10 * float(exact.abs().max())
    assert json.loads(metadata["parameters"]) == [[name, list(p.shape)] for name, p in model.named_parameters()]


def test_the_printed_table_has_the_main_numbers(capsys, no_figures):
    assert run("--eigs", 2, "--probes", 2, "--steps", 8, "--traces", 4) == 0
    printed = capsys.readouterr().out
    found = json.loads(Path("out/spectrum.json").read_text())
    assert printed.startswith("Hessian, 51 parameters, 2 probes\n")
    words = [line.split() for line in printed.splitlines()]
    assert ["loss", f"{found['loss']:.6g}"] in words
    trace = found["trace"]
    assert ["trace", f"{trace['value']:.4g}", "±", f"{trace['stderr']:.2g}"] in words
    for rank, pair in enumerate(found["eigenvalues"], 1):
        assert [str(rank), f"{pair['value']:.6g}", f"{pair['residual']:.1e}"] in words
    for each in found["parameters"]:
        (line,) = (line for line in words if line[:1] == [each["name"]])
        assert line[1] == f"{each['trace']['value']:.4g}"


@pytest.mark.parametrize(
    ("kind", "operator"),
    [("ggn", lsfast.GGNOperator), ("fisher", lsfast.FisherOperator), ("hessian", lsfast.HessianOperator)],
)
def test_kind_parameters_and_end_of_the_spectrum_are_chosen(kind, operator, monkeypatch):
    scales = []
    monkeypatch.setattr(plotting, "spectral_density", lambda *_, scale, **__: scales.append(scale))
    monkeypatch.setattr(plotting, "eigenvalues", lambda *_, **__: None)
    assert run("--kind", kind, "--params", "2.*", "--which", "SA", "--eigs", 3, "--steps", 9, "--traces", 0) == 0
    model, loss_fn, batches = made_with(0)
    A = operator(lsfast.Objective(model, loss_fn, batches, params="2.*"))
    report = SpectrumReport.load("out")
    exact = torch.linalg.eigvalsh(A.to_dense())
    assert (report.kind, report.n, list(report.shapes)) == (kind, 21, ["2.weight", "2.bias"])
    assert report.parameter_traces == {}
    # Singular: the smallest are 0 for GGN and Fisher; a value is within its residual of an eigenvalue.
    assert float((report.eigenpairs.values - exact[:3]).abs().max()) < 1e-10 * float(exact[-1])
    assert scales == ["symlog" if kind == "hessian" else "log"]


def test_a_saved_report_is_read_as_it_was(user):
    report = spectrum_report(lsfast.Objective(*made_with(0)), probes=1, steps=5, eigs=2, traces=1)
    report.save(user / "r")
    again = SpectrumReport.load(user / "r")
    assert again.to_dict() == report.to_dict()  # NaN, the error of one probe, is null
    assert str(again) == str(report)
    assert torch.equal(again.eigenpairs.vectors, report.eigenpairs.vectors)
    (user / "r" / "spectrum.json").write_text('{"kind": "lsfast.SpectrumReport"}')
    with pytest.raises(ValueError, match=r"SpectrumReport\.load: path must be numbers of a spectrum"):
        SpectrumReport.load(user / "r")
    report.save(user / "r")
    vectors = user / "r" / "eigenvectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"SpectrumReport\.load: path must be a whole file of eigenvectors"):
        SpectrumReport.load(user / "r")


def test_options_are_handed_on_only_if_given(monkeypatch, no_figures):
    seen, real = [], (spectrum.spectral_density, spectrum.eigsh)

    def record(function):
        def call(*arguments, **options):
            seen.append(options)
            known = {name: value for name, value in options.items() if name in ("seed", "progress")}
            return function(*arguments, **known)

        return call

    monkeypatch.setattr(spectrum, "spectral_density", record(real[0]))
    monkeypatch.setattr(spectrum, "eigsh", record(real[1]))
    given = ["--reorthogonalize", "selective", "--basis-dtype", "bfloat16", "--memory-limit", "2GiB", "--rtol", 0.5]
    given += ["--basis-device", "cpu"]
    assert run("--eigs", 1, "--steps", 4, "--traces", 0) == 0
    assert run("--eigs", 1, "--steps", 4, "--traces", 0, *given) == 0
    density, pairs = Path("out") / "density.checkpoint.npz", Path("out") / "eigenvalues.checkpoint.npz"
    assert seen[0] == {"progress": False, "checkpoint": density}
    assert seen[1] == {"progress": False, "checkpoint": pairs, "seed": 0, "memory_limit": None}
    chosen = {
        "reorthogonalize": "selective",
        "basis_dtype": torch.bfloat16,
        "memory_limit": 2**30,
        "rtol": 0.5,
        "basis_device": "cpu",
    }
    assert seen[2] == seen[0] | chosen
    assert seen[3] == seen[1] | {"memory_limit": 2**30}
    settings = json.loads(Path("out/spectrum.json").read_text())["settings"]
    assert {name: settings[name] for name in chosen} == chosen | {"basis_dtype": "torch.bfloat16"}


def test_the_loss_says_whether_it_is_a_sum(no_figures):
    assert run("--eigs", 1, "--steps", 4, "--traces", 0, model="summed") == 0
    model, loss_fn, (x, y) = made_with(0, "summed")
    found = json.loads(Path("out/spectrum.json").read_text())
    assert found["loss"] == pytest.approx(float(loss_fn(model(x), y).detach()), rel=1e-6)
    assert found["settings"]["reduction"] == "sum"


def test_a_model_is_moved_with_its_loss_and_data(no_figures):
    users_module()
    user = load_model(f"{MODULE}:Weighted.mse", "cpu", torch.float64)
    assert {p.dtype for p in user.model.parameters()} == {torch.float64}
    assert user.loss_fn.weight.dtype == torch.float64
    for _ in range(2):  # anew at every pass
        ((inputs, targets),) = user.data
        assert (inputs["features"].dtype, inputs["scale"], targets.dtype) == (torch.float64, 2.0, torch.int64)
    assert lsfast.Objective(user.model, user.loss_fn, user.data).gradient().dtype == torch.float64
    assert run("--dtype", "float32", "--device", "cpu", "--eigs", 1, "--steps", 3, "--traces", 0) == 0
    assert json.loads(Path("out/spectrum.json").read_text())["settings"]["dtype"] == "torch.float32"


def test_what_cannot_be_captured_is_named_and_taken_by_the_other_engine(capsys, caplog, monkeypatch, no_figures):
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    few = ("--eigs", 1, "--steps", 3, "--traces", 2)
    assert run(*few, model="branching") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1  # and none of the graph that torch prints
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert captured.err.startswith("lsfast spectrum: ")
    assert 'engine="autograd"' in captured.err
    assert not Path("out").exists()
    assert run(*few, "--engine", "autograd", model="branching") == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (f"{MODULE}:none", f"'{MODULE}' must have a function 'none', got a module without 'none'"),
        (f"{MODULE}:Passes.none", "must have a function 'Passes.none', got a module without 'none'"),
        (f"{MODULE}:constant", "models:constant must be a function, got int"),
        ("no_package_of_mine:f", "'no_package_of_mine' must be a module that can be imported, got no module"),
        (f"{MODULE}.more:f", f"'{MODULE}.more' must be a module that can be imported, got no module"),
        ("spectrum_command_user.broken:f", "got SyntaxError: invalid syntax (broken.py, line 2)"),
        ("spectrum_command_user.missing:f", "got ModuleNotFoundError: No module named 'not_a_package_of_anyone'"),
        (MODULE, f"name must be package.module:function, got '{MODULE}'"),
        ("models.py:f", "'models.py' must be a module that can be imported"),
        (f"{MODULE}:a b", "name must be package.module:function"),
        (f"{MODULE}:number", "models:number() must return (model, loss_fn, data), got int"),
        (f"{MODULE}:two", "models:two() must return (model, loss_fn, data), got tuple of length 2"),
        (f"{MODULE}:no_module", "must return (model, loss_fn, data) with a torch.nn.Module, got int"),
        (f"{MODULE}:no_loss", "must return (model, loss_fn, data) with a callable loss_fn, got NoneType"),
        (f"{MODULE}:no_batch", "Objective: data must hold at least one batch, got none"),
        (f"{MODULE}:needs", "got TypeError: needs() missing 1 required positional argument: 'what'"),
        (f"{MODULE}:fails", "models:fails() must return, got RuntimeError: first line at "),
        (f"{MODULE}:narrow", "objective must have parameters in float32 or float64, got torch.bfloat16"),
        (f"{MODULE}:dropout", "got dropout in train mode at '1'; call model.eval()"),
    ],
)
def test_a_function_that_is_none_is_one_line_and_writes_nothing(model, message, capsys):
    assert cli.main(["spectrum", "--model", model, "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("lsfast spectrum: ")
    assert message in captured.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probes", "0"], "spectrum_report: probes must be at least 1, got 0"),
        (["--steps", "0"], "spectrum_report: steps must be at least 1, got 0"),
        (["--eigs", "-1"], "spectrum_report: eigs must be at least 0, got -1"),
        (["--eigs", "52"], "spectrum_report: eigs must be at most the number of parameters 51, got 52"),
        (["--traces", "-1"], "spectrum_report: traces must be at least 0, got -1"),
        (["--seed", "-1"], "spectrum_report: seed must be at least 0, got -1"),
        (["--rtol", "2"], "spectrum_report: rtol must lie between 0 and 1, got 2.0"),
        (["--device", "abacus"], "load_model: device must be cpu or cuda, got 'abacus'"),
        (["--device", "cuda:99"], "load_model: device must be one torch sees, got cuda:99 of 0"),
        (["--params", "head.*"], "Objective: params pattern 'head.*' must match a parameter, got none of 4"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(arguments, message, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"lsfast spectrum: {message}\n")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "required: --model"),
        (["--model", "a:b"], "required: --out"),
        (["--model", "a:b", "--out", "o", "--kind", "ntk"], "invalid choice: 'ntk'"),
        (["--model", "a:b", "--out", "o", "--memory-limit", "much"], "such as 500MB or 8GiB, got 'much'"),
        (["--model", "a:b", "--out", "o", "--memory-limit", "0"], "such as 500MB or 8GiB, got '0'"),
    ],
)
def test_a_command_that_does_not_parse_exits_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["spectrum", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("2GiB", 2**31), ("1.5gib", 3 * 2**29), ("500MB", 5e8), ("3K", 3000), ("2 TiB", 2**41), ("7b", 7)],
)
def test_sizes_are_read(text, expected):
    assert bytes_of(text) == expected


def test_an_out_that_is_a_file_is_refused_before_the_model_is_made(user, capsys):
    (user / "out").touch()
    assert run(model="fails") == 2
    assert capsys.readouterr().err == "lsfast spectrum: --out must be a folder, got the file 'out'\n"


@pytest.mark.parametrize(("missing", "extra"), [("safetensors", "files"), ("matplotlib", "demo")])
def test_a_missing_package_is_said_with_what_installs_it(missing, extra, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == missing:
            raise ImportError(f"no {missing}")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(model="fails") == 2
    captured = capsys.readouterr()
    assert f'pip install "lsfast[{extra}]"' in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("out").exists()


def test_without_eigenvectors_there_is_no_file_and_no_figure_of_them():
    assert run("--eigs", 0, "--steps", 4, "--traces", 0) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["density.npz", "density.png", "spectrum.json"]
    report = SpectrumReport.load("out")
    assert report.eigenpairs is None
    assert len(report.plot()) == 1


def numbers(out):
    found = json.loads((Path(out) / "spectrum.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "environment")}


def test_a_run_killed_and_interrupted_goes_on_with_the_same_command_to_the_same_numbers(user, monkeypatch, no_figures):
    few = ("--probes", "6", "--steps", "44", "--eigs", "4", "--traces", "8")
    assert run(*few, model="killed", out="whole") == 0
    passes = users_module().Passes
    uninterrupted = passes.made[-1].passes
    # Less than 10 passes are not Lanczos steps, and of these every 16th leaves a checkpoint: the first end comes after
    # it, the second, having gone on from it, after the next, and both before the 44th.
    command = [sys.executable, "-m", "lsfast", "spectrum", "--model", f"{MODULE}:killed", "--out", "out", *few]
    root = str(Path(lsfast.__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "KILL_AT": "30", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with monkeypatch.context() as interrupted:
        interrupted.setenv("INTERRUPT_AT", "30")
        assert run(*few, model="killed") == 130
    assert (user / "out" / "density.checkpoint.npz").exists()
    assert not (user / "out" / "spectrum.json").exists()
    assert run(*few, model="killed") == 0
    assert passes.made[-1].passes <= uninterrupted - 32
    assert numbers("out") == numbers("whole")
    found, expected = SpectrumReport.load("out"), SpectrumReport.load("whole")
    assert torch.equal(found.density.nodes, expected.density.nodes)
    assert torch.equal(found.eigenpairs.vectors, expected.eigenpairs.vectors)
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(path.name for path in Path("whole").iterdir())


def test_a_checkpoint_of_another_run_is_one_line_that_names_it(user, capsys):
    (user / "out").mkdir()
    file = user / "out" / "density.checkpoint.npz"
    Checkpoint("spectral_density", file, {"n": 3}).save({"nodes": torch.ones(1)})
    before = file.read_bytes()
    assert run("--steps", 4) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "checkpoint must be of this run, got 'out/density.checkpoint.npz' of one with " in captured.err
    assert file.read_bytes() == before


def test_a_report_takes_an_objective_in_known_precision_only():
    with pytest.raises(TypeError, match=r"spectrum_report: objective must be an lsfast\.Objective, got Linear"):
        spectrum_report(nn.Linear(2, 2))
    objective = lsfast.Objective(*made_with(0))
    with pytest.raises(ValueError, match="kind must be one of 'hessian', 'ggn', 'fisher', got 'ntk'"):
        spectrum_report(objective, "ntk")
    with pytest.raises(ValueError, match="which must be one of 'LM', 'LA', 'SA', 'BE', got 'SM'"):
        spectrum_report(objective, which="SM")
