"""The command ``lsfast``."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lsfast.program.errors import CaptureError

DEMO_MODELS = ("mlp", "cnn", "transformer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code.

    0: done. 2: something in the arguments or the installation, said in one line. 130: interrupted. A fault of lsfast
    itself is raised, with its traceback.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "env":
            from lsfast.env import environment_text

            print(environment_text())
            return 0
        return {"demo": _demo, "quantize": _quantize, "spectrum": _spectrum}[options.command](options)
    except (ValueError, TypeError, ImportError, OSError, CaptureError) as error:
        print(f"lsfast {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lsfast {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    import lsfast

    parser = argparse.ArgumentParser(
        prog="lsfast", description="Curvature, loss surfaces and low precision of PyTorch models."
    )
    parser.add_argument("--version", action="version", version=f"lsfast {lsfast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train three small models on handwritten digits and analyse their losses",
        description="Trains an MLP, a CNN and a transformer on handwritten digits and writes a report on their losses: "
        "spectra, traces, loss surfaces, and what low precision does to each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", default="lsfast-demo", metavar="DIR", help="folder for report.html, results.json, PNGs")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="of the split, the training and every estimate")
    demo.add_argument("--device", default="cpu", help="cpu or cuda")
    demo.add_argument(
        "--models", nargs="+", default=list(DEMO_MODELS), choices=DEMO_MODELS, metavar="NAME", help="which of them"
    )
    demo.add_argument("--steps", type=int, default=51, metavar="N", help="points along each side of a loss surface")
    quantize = commands.add_parser(
        "quantize",
        help="measure what number formats do to the weights in a safetensors file",
        description="Quantizes the weights in a safetensors file to each scheme and prints a line per tensor: signal "
        "to quantization noise, saturated values, values flushed to zero, bits per value. Nothing is written to FILE. "
        "Biases, norms, embeddings and heads are left out, by shape and name, and listed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    quantize.add_argument("file", metavar="FILE", help="a .safetensors file; pickles are refused")
    quantize.add_argument(
        "--scheme", nargs="+", action="extend", required=True, metavar="NAME", dest="schemes",
        default=argparse.SUPPRESS, help="one or several, such as nvfp4 mxfp4 fp8_e4m3",
    )  # fmt: skip
    quantize.add_argument("--out", metavar="DIR", help="folder for table.json and error.png", default=argparse.SUPPRESS)
    quantize.add_argument(
        "--include", nargs="+", action="extend", metavar="PATTERN", default=argparse.SUPPRESS,
        help="tensors to quantize, such as 'model.layers.*', in place of what their names say",
    )  # fmt: skip
    quantize.add_argument("--min-size", type=int, default=0, metavar="N", help="leave out tensors of fewer elements")
    quantize.add_argument(
        "--axis", type=int, default=1, choices=(0, 1),
        help="what blocks run along in [first axis, all others]: 1, or 0 for weights stored [in, out]",
    )  # fmt: skip
    _add_spectrum(commands)
    commands.add_parser("env", help="print versions, instruction set, CUDA architectures and devices")
    return parser


def _add_spectrum(commands: Any) -> None:
    spectrum = commands.add_parser(
        "spectrum",
        help="the spectrum of the Hessian, GGN or Fisher of a model of yours",
        description="Spectral density with standard errors, extreme eigenpairs with residuals and traces of the "
        "curvature of a model. Writes spectrum.json, density.npz, eigenvectors.safetensors, density.png and "
        "eigenvalues.png into DIR. The same command, run again, goes on where it was killed.",
    )
    add = spectrum.add_argument
    add(
        "--model", required=True, metavar="PKG:FN",
        help="a function of a module, found as python -m does, that returns (model, loss_fn, data)",
    )  # fmt: skip
    add(
        "--out", required=True, metavar="DIR", help="folder for what is written, and for what a killed run goes on from"
    )
    add("--kind", default="hessian", choices=("hessian", "ggn", "fisher"), help="default hessian; fisher: empirical")
    add("--probes", type=int, default=8, metavar="N", help="random vectors of the density, default 8")
    add("--steps", type=int, default=64, metavar="N", help="Lanczos steps of each, default 64")
    add("--eigs", type=int, default=10, metavar="N", help="eigenpairs, default 10; 0: none")
    add(
        "--which", default="LM", choices=("LM", "LA", "SA", "BE"),
        help="which eigenpairs: of largest magnitude (default), largest, smallest, from both ends",
    )  # fmt: skip
    add("--traces", type=int, default=64, metavar="N", help="products for traces by parameter, default 64; 0: none")
    add("--rtol", type=float, metavar="R", help="add probes until the trace is known to this relative standard error")
    add("--params", nargs="+", action="extend", metavar="PATTERN", help="parameters, such as 'encoder.*'; default all")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of every estimate, and of torch before FN is called; default 0",
    )
    add("--device", help="cpu or cuda; default: where FN puts the model")
    add("--dtype", choices=("float32", "float64"), help="of model and data; default: as FN makes them")
    add("--engine", choices=("program", "autograd"), default="program", help="autograd: for what cannot be captured")
    add(
        "--reorthogonalize",
        choices=("full", "selective", "none"),
        help="of the density's Lanczos vectors, default full",
    )
    add("--basis-dtype", choices=("float32", "float64", "bfloat16"), help="of the density's kept Lanczos vectors")
    add("--basis-device", choices=("cpu",), help="where they are kept; default: with the model")
    add(
        "--memory-limit", type=_bytes, metavar="SIZE",
        help="such as 8GiB, beyond model and data: half for products, half for Lanczos vectors",
    )  # fmt: skip


def _bytes(text: str) -> int:
    """Return the number of bytes of 8GiB, 500MB, 4096."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip().lower())
    if not found or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"a size must be bytes, or such as 500MB or 8GiB, got {text!r}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


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
    from lsfast.objective import Objective
    from lsfast.studies.spectrum import remove_checkpoints, spectrum_report
    from lsfast.studies.spectrum_table import require_safetensors
    from lsfast.studies.user_model import load_model

    out = _folder_of_figures(options.out)
    if options.eigs:
        require_safetensors()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if options.seed >= 0:
        torch.manual_seed(options.seed)
    user = load_model(options.model, options.device, getattr(torch, options.dtype) if options.dtype else None)
    half = None if options.memory_limit is None else max(1, options.memory_limit // 2)
    objective = Objective(
        user.model, user.loss_fn, user.data, options.params, reduction=getattr(user.loss_fn, "reduction", "mean"),
        engine=options.engine, memory_limit=half,
    )  # fmt: skip
    if options.engine == "program":
        with _without_graphs():
            objective.explain()  # what cannot be captured is said before any work
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


@contextmanager
def _without_graphs() -> Iterator[None]:
    """Drop what torch logs and prints of a graph it cannot capture: the error says it in one line."""
    printed, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(printed):
            yield
    except CaptureError:
        printed = io.StringIO()
        raise
    finally:
        logging.disable(before)
        sys.stderr.write(printed.getvalue())


def _folder_of_figures(out: str) -> Path:
    """Return the folder; what is in its way, or a missing matplotlib, is said before any work."""
    from lsfast.plotting.style import require_matplotlib

    require_matplotlib()
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out!r}")
    return folder
