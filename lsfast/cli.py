"""The command ``lsfast``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

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
        if options.command == "quantize":
            return _quantize(options)
        return _demo(options)
    except (ValueError, TypeError, ImportError, OSError) as error:
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
    commands.add_parser("env", help="print versions, instruction set, CUDA architectures and devices")
    return parser


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

    out = Path(options.out) if "out" in options else None
    if out is not None:
        from lsfast.plotting.style import require_matplotlib

        require_matplotlib()
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out must be a folder, got the file {str(out)!r}")
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
