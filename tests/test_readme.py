"""The README's figures are those of the committed files, and its example prints what it says."""

import importlib.util
import math
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_results_files():
    specification = importlib.util.spec_from_file_location("readme", ROOT / "bench" / "readme.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert "bench/results/cpu.json" in README
    assert module.with_tables(README) == README


def test_the_example_prints_what_is_shown(run_python):
    program = re.search(r"```python\n(.*?)```\n\nprints", README, re.DOTALL)[1]
    shown = re.search(r"prints\n\n```\n(.*?)```", README, re.DOTALL)[1]
    number = r"-?\d+\.?\d*"
    printed = run_python(program)
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    # Another torch or processor may round differently: the last digit shown may move.
    for a, b in zip(re.findall(number, printed), re.findall(number, shown), strict=True):
        assert math.isclose(float(a), float(b), rel_tol=2e-2), (a, b)


def test_the_curvature_spectrum_and_landscape_examples_run(run_python, tmp_path):
    section = README[README.index("## Curvature\n") : README.index("## Quantization\n")]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    printed = run_python("\n".join([f"import os\nos.chdir({str(tmp_path)!r})", *examples]))
    figures = ["contours.png", "corners.png", "density.png", "line.png", "run.png", "sharpest.png"]
    assert [file.name for file in sorted(tmp_path.glob("*.png"))] == figures
    shown = re.search(r"```\n(aten\..*?)```", section, re.DOTALL)[1].splitlines()
    assert [line.split()[:3] for line in printed.splitlines()[: len(shown)]] == [line.split()[:3] for line in shown]


def test_the_quantization_examples_run(run_python):
    section = README[README.index("## Quantization\n") : README.index("## Speed\n")]
    first, _, third = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    run_python("import torch, lsfast\n" + first)
    model = "layer = torch.nn.Linear(64, 8)\nx = torch.randn(4, 64)\n"
    objective = "objective = lsfast.Objective(torch.nn.Sequential(layer), torch.nn.MSELoss(), (x, torch.zeros(4, 8)))\n"
    run_python("import os, tempfile, torch, lsfast\nos.chdir(tempfile.mkdtemp())\n" + model + objective + third)


def test_the_quantize_command_prints_what_is_shown(run_python, tmp_path):
    shown = re.search(r"```\n\$ lsfast (quantize .*?)\n(.*?)```", README, re.DOTALL)
    program = re.search(r"```python\n(import torch\nfrom safetensors.*?)```", README, re.DOTALL)[1]
    command = f"from lsfast.cli import main\nmain({shown[1].split()})"
    printed = run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{program}\n{command}")
    assert printed.split() == shown[2].split()
    assert (tmp_path / "result" / "error.png").stat().st_size > 0


def shown_and_printed(name, run_python, folder):
    """What the README shows of a command on its experiment.py, and what it prints."""
    shown = re.search(rf"```\n\$ lsfast ({name} .*?)\n(.*?)```", README, re.DOTALL)
    program = re.search(r"```python\n(import torch\nfrom sklearn.*?)```", README, re.DOTALL)[1]
    (folder / "experiment.py").write_text(program)
    command = f"from lsfast.cli import main\nmain({shown[1].split()})"
    printed = run_python(f"import os\nos.chdir({str(folder)!r})\n{command}")
    number = r"-?\d+\.?\d*(?:e-?\d+)?"
    assert re.sub(number, "#", printed).split() == re.sub(number, "#", shown[2]).split()
    return re.findall(number, shown[2]), re.findall(number, printed)


def test_the_spectrum_command_prints_what_is_shown(run_python, tmp_path):
    shown, printed = shown_and_printed("spectrum", run_python, tmp_path)
    # Another processor trains to slightly other weights; the last column of the eigenvalues, residuals, is rounding.
    pairs = zip(printed, shown, strict=True)
    assert all(math.isclose(float(a), float(b), rel_tol=0.1) for a, b in pairs if not re.search("e-0[5-9]", b))
    assert (tmp_path / "result" / "density.png").stat().st_size > 0


def test_the_grid_command_prints_what_is_shown(run_python, tmp_path):
    shown, printed = shown_and_printed("grid", run_python, tmp_path)
    assert math.isclose(float(printed[3]), float(shown[3]), rel_tol=0.1)  # the loss at the origin
    assert (tmp_path / "surface" / "report.html").stat().st_size > 0
