"""The command ``lsfast``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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
