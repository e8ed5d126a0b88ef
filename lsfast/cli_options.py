"""The options of the command ``lsfast``."""

from __future__ import annotations

import argparse
import re
from typing import Any

DEMO_MODELS = ("mlp", "cnn", "transformer")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    import lsfast

    whole = argparse.ArgumentParser(
        prog="lsfast", description="Curvature, loss surfaces and low precision of PyTorch models."
    )
    whole.add_argument("--version", action="version", version=f"lsfast {lsfast.__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    _add_grid(commands)
    commands.add_parser("env", help="print versions, instruction set, CUDA architectures and devices")
    return whole


def _add_model(command: argparse.ArgumentParser, memory_limit: str) -> None:
    """Add the options of every command that takes a model of the user's."""
    add = command.add_argument
    add(
        "--model", required=True, metavar="PKG:FN",
        help="a function of a module, found as python -m does, that returns (model, loss_fn, data)",
    )  # fmt: skip
    add(
        "--out", required=True, metavar="DIR", help="folder for what is written, and for what a killed run goes on from"
    )
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
    add("--memory-limit", type=bytes_of, metavar="SIZE", help=memory_limit)


def _add_spectrum(commands: Any) -> None:
    spectrum = commands.add_parser(
        "spectrum",
        help="the spectrum of the Hessian, GGN or Fisher of a model of yours",
        description="Spectral density with standard errors, extreme eigenpairs with residuals and traces of the "
        "curvature of a model. Writes spectrum.json, density.npz, eigenvectors.safetensors, density.png and "
        "eigenvalues.png into DIR. The same command, run again, goes on where it was killed.",
    )
    _add_model(spectrum, "such as 8GiB, beyond model and data: half for products, half for Lanczos vectors")
    add = spectrum.add_argument
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
    add(
        "--reorthogonalize",
        choices=("full", "selective", "none"),
        help="of the density's Lanczos vectors, default full",
    )
    add("--basis-dtype", choices=("float32", "float64", "bfloat16"), help="of the density's kept Lanczos vectors")
    add("--basis-device", choices=("cpu",), help="where they are kept; default: with the model")


def _add_grid(commands: Any) -> None:
    grid = commands.add_parser(
        "grid",
        help="the loss around the weights of a model of yours",
        description="The loss on a line, in a plane or a volume around the weights of a model, in random directions, "
        "along eigenvectors of its Hessian, or in the plane of a training run. Writes grid.npz, grid.json, figures and "
        "report.html into DIR. The same command, run again, goes on where it was killed.",
    )
    _add_model(grid, "such as 8GiB, beyond model and data")
    add = grid.add_argument
    add(
        "--directions", default="random", choices=("random", "eigen", "trajectory"),
        help="random (default); eigen: of the Hessian, largest in magnitude; trajectory: components of --checkpoints",
    )  # fmt: skip
    add(
        "--steps", type=steps_of, default=(51, 51), metavar="NxM",
        help="points along each direction, default 51x51; 51: a line",
    )  # fmt: skip
    add(
        "--extent", type=float, metavar="E",
        help="from -E to E along each; default 1, and for a trajectory what holds all checkpoints",
    )  # fmt: skip
    add(
        "--normalize", choices=("filter", "layer", "model", "none"),
        help="scale of random directions to the weights, default filter",
    )  # fmt: skip
    add(
        "--checkpoints", nargs="+", action="extend", metavar="FILE",
        help="of a trajectory, in the order of training: state dicts (safetensors, or by torch.save)",
    )  # fmt: skip
    add("--scheme", metavar="NAME", help="number format of the weights at each point, such as nvfp4")
    add(
        "--batch-norm", default="eval", choices=("eval", "recompute"),
        help="its statistics: as they are (default), or of the data at each point",
    )  # fmt: skip
    add(
        "--tolerance", type=float, metavar="X",
        help="evaluate only the points that interpolation needs, right to X times the height above the lowest",
    )  # fmt: skip
    add("--subset", type=int, metavar="ROWS", help="evaluate on so many rows of the data, drawn once")


def bytes_of(text: str) -> int:
    """Return the number of bytes of 8GiB, 500MB, 4096."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip().lower())
    if not found or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"a size must be bytes, or such as 500MB or 8GiB, got {text!r}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def steps_of(text: str) -> tuple[int, ...]:
    """Return the points along each direction of 51x51, 25, 9x9x9."""
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise argparse.ArgumentTypeError(f"steps must be such as 51x51, got {text!r}")
    return tuple(int(part) for part in text.split("x"))
