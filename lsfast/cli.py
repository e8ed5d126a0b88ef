"""The command ``lsfast``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lsfast.cli_options import parser
from lsfast.program.errors import CaptureError

if TYPE_CHECKING:
    from lsfast.objective import Objective


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code.

    0: done. 2: something in the arguments or the installation, said in one line. 130: interrupted. A fault of lsfast
    itself is raised, with its traceback.
    """
    options = parser().parse_args(arguments)
    try:
        if options.command == "env":
            from lsfast.env import environment_text

            print(environment_text())
            return 0
        commands = {"demo": _demo, "grid": _grid, "quantize": _quantize, "spectrum": _spectrum}
        return commands[options.command](options)
    except (ValueError, TypeError, ImportError, OSError, CaptureError) as error:
        print(f"lsfast {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lsfast {options.command}: interrupted", file=sys.stderr)
        return 130


def _demo(options: argparse.Namespace) -> int:
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}") from error
    from lsfast.studies.demo import run_demo

    summary = run_demo(options.out, seed=options.seed, device=device, models=options.models, steps=options.steps)
    print(summary)
    return 0


def _quantize(options: argparse.Namespace) -> int:
    from lsfast.studies.checkpoint import quantize_checkpoint

    out = _folder_of_figures(options.out) if "out" in options else None
    table = quantize_checkpoint(
        options.file,
        options.schemes,
        include=getattr(options, "include", None),
        min_size=options.min_size,
        axis=options.axis,
        progress=True,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.save(out / "table.json")
        table.plot(out / "error.png")
    print(table)
    if out is not None:
        print(f"\nwritten: {out / 'table.json'}, {out / 'error.png'}")
    return 0


def _spectrum(options: argparse.Namespace) -> int:
    from lsfast.studies.spectrum import remove_checkpoints, spectrum_report
    from lsfast.studies.spectrum_table import require_safetensors

    out = _folder_of_figures(options.out)
    if options.eigs:
        require_safetensors()
    half = None if options.memory_limit is None else max(1, options.memory_limit // 2)
    objective = _objective(options, half)
    report = spectrum_report(
        objective, options.kind, options.probes, options.steps, options.eigs, options.which, options.traces,
        options.seed,
        reorthogonalize=options.reorthogonalize,
        basis_dtype=getattr(torch, options.basis_dtype) if options.basis_dtype else None,
        basis_device=options.basis_device, memory_limit=half, rtol=options.rtol,
        checkpoint=out, progress=sys.stderr.isatty(),
    )  # fmt: skip
    report = replace(report, settings={"model": options.model, "params": options.params, **report.settings})
    report.plot(out)
    report.save(out)
    remove_checkpoints(out)
    print(report)
    print(f"\nwritten: {', '.join(str(out / name) for name in report.files)}")
    return 0


def _grid(options: argparse.Namespace) -> int:
    from lsfast.studies.grid import grid_report, remove_grid_checkpoints

    out = _folder_of_figures(options.out)
    objective = _objective(options, options.memory_limit, captured=options.directions == "eigen")
    report = grid_report(
        objective, options.directions, options.steps, options.extent, options.normalize, options.checkpoints or (),
        options.scheme, options.batch_norm, options.tolerance, options.subset, options.seed,
        checkpoint=out, progress=sys.stderr.isatty(),
    )  # fmt: skip
    report = replace(report, settings={"model": options.model, "params": options.params, **report.settings})
    report.plot(out)
    report.save_page(out)
    report.save(out)
    remove_grid_checkpoints(out)
    print(report)
    print(f"\nwritten: {', '.join(str(out / name) for name in report.files)}")
    return 0


def _objective(options: argparse.Namespace, memory_limit: int | None, captured: bool = True) -> Objective:
    """Return the loss of the user's model; that it cannot be captured is said before any work, if it must be."""
    from lsfast.objective import Objective
    from lsfast.studies.user_model import load_model

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if options.seed >= 0:
        torch.manual_seed(options.seed)
    user = load_model(options.model, options.device, getattr(torch, options.dtype) if options.dtype else None)

    def made(engine: str) -> Objective:
        return Objective(
            user.model, user.loss_fn, user.data, options.params, reduction=getattr(user.loss_fn, "reduction", "mean"),
            engine=engine, memory_limit=memory_limit,
        )  # fmt: skip

    objective = made(options.engine)
    if options.engine == "program":
        try:
            objective.explain()
        except CaptureError:
            if captured:
                raise
            return made("autograd")
    return objective


def _folder_of_figures(out: str) -> Path:
    """Return the folder; what is in its way, or a missing matplotlib, is said before any work."""
    from lsfast.plotting.style import require_matplotlib

    require_matplotlib()
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out!r}")
    return folder
