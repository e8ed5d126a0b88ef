"""Runs the demo: every model in turn, then the report, the numbers and the table for the terminal."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lsfast import checks
from lsfast.env import environment
from lsfast.plotting.style import require_matplotlib
from lsfast.results import finite, write_text
from lsfast.studies.demo.analysis import STAGES, Analysis, analyse, as_dict
from lsfast.studies.demo.digits import Digits, load_digits
from lsfast.studies.demo.models import MODELS
from lsfast.studies.demo.report import html_report
from lsfast.studies.demo.settings import Settings
from lsfast.studies.table import align

_SHARE_OF_MODEL = {"mlp": 1, "cnn": 3, "transformer": 6}  # of the time, for the overall bar
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} done, {remaining} left"


def run_demo(
    out: str | os.PathLike[str] = "lsfast-demo",
    seed: int = 0,
    device: torch.device | str = "cpu",
    models: Sequence[str] = tuple(MODELS),
    steps: int = 51,
) -> str:
    """Train and analyse the models; write ``report.html``, ``results.json`` and the figures; return the final table.

    Every file is written whole or not at all. The global random number generators are as before.

    Parameters
    ----------
    out
        Folder of the files, made if there is none.
    seed
        Of the split of the images, the training, and every estimate: the same seed gives the same numbers.
    device
        Where the models run.
    models
        Names out of ``mlp``, ``cnn``, ``transformer``.
    steps
        Points along each side of a loss surface.

    Raises
    ------
    ValueError, TypeError, OSError
        Before any work: a bad seed, an unknown model, no such device, a folder that cannot be made.
    ImportError
        Without scikit-learn or matplotlib.
    RuntimeError
        If the analysis of a model fails: the message names the model and the stage.
    """
    started = time.perf_counter()
    checks.seed("run_demo", seed)
    checks.positive_integer("run_demo", "steps", steps, least=2)
    if not models:
        raise ValueError("run_demo: models must name at least one, got none")
    for name in models:
        checks.one_of("run_demo", "models", name, tuple(MODELS))
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"run_demo: device must be one torch sees, got {device} and no CUDA device")
    require_matplotlib()  # what is missing is said before any work
    settings = replace(Settings(), grid_steps=steps)
    digits = load_digits(seed, device)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

    chosen = list(dict.fromkeys(models))
    stages = {(name, stage): _SHARE_OF_MODEL[name] * share for name in chosen for stage, share in STAGES.items()}
    analyses = []
    with _one_thread(), tqdm(total=sum(stages.values()), desc="lsfast demo", bar_format=_BAR) as bar:
        for name in chosen:
            analyses.append(_analysed(name, digits, settings, seed, folder, bar))
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "device": str(device),
        "train_images": len(digits.train_images),
        "test_images": len(digits.test_images),
        "seconds": time.perf_counter() - started,
        "environment": environment(),
        "settings": asdict(settings),
    }
    results = facts | {"models": {analysis.name: as_dict(analysis) for analysis in analyses}}
    write_text(folder / "results.json", json.dumps(finite(results), indent=1, allow_nan=False))
    write_text(folder / "report.html", html_report(analyses, facts, folder))
    return summary(analyses, folder, time.perf_counter() - started)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: tensors this small gain little from more, and sums then have one order everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _analysed(name: str, digits: Digits, settings: Settings, seed: int, folder: Path, bar: tqdm[Any]) -> Analysis:
    under_way: list[str] = []

    def begins(stage: str) -> None:
        _finish(under_way, name, bar)
        under_way.append(stage)
        bar.set_description_str(f"{name}, {stage}")

    try:
        analysis = analyse(name, digits, settings, seed, folder, begins, progress=sys.stderr.isatty())
    except OSError:
        raise
    except Exception as error:
        raise RuntimeError(f"demo: {under_way[-1] if under_way else 'start'} of the {name} failed: {error}") from error
    _finish(under_way, name, bar)
    return analysis


def _finish(under_way: list[str], name: str, bar: tqdm[Any]) -> None:
    if under_way:
        bar.update(_SHARE_OF_MODEL[name] * STAGES[under_way.pop()])


def summary(analyses: Sequence[Analysis], folder: Path, seconds: float) -> str:
    """Return the table for the terminal: what was found, and where it is."""
    schemes = analyses[0].table.schemes
    rows = [["", "accuracy", "loss", "largest eigenvalue", "trace", *schemes]]
    for found in analyses:
        accuracies = [f"{found.table[scheme, 'test_accuracy']:.3f}" for scheme in schemes]
        trace = f"{found.trace.value:.4g} ± {found.trace.stderr:.2g}"
        largest = f"{float(found.eigenpairs.values.max()):.4g}"
        rows.append([found.name, f"{found.test_accuracy:.3f}", f"{found.loss:.4f}", largest, trace, *accuracies])
    return (
        f"{align(rows)}\n\n"
        "accuracy: on the test images, as trained and with weights in each format; the rest: of the training loss.\n"
        f"{seconds:.0f} s. Report: {folder / 'report.html'}; numbers: {folder / 'results.json'}"
    )
