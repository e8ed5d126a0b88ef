"""What number formats do to the weights of a checkpoint: a table per tensor, read from a file one tensor at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.formats import QuantScheme, element_format, scheme
from lsfast.quantization.fake_quantize import fake_quantize
from lsfast.studies.checkpoint_table import CheckpointTable, LeftOut, TensorError

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
# What a shape does not say, a component of the name does (between dots), or the whole name.
_BY_NAME = (
    ("an embedding", ("*embed*", "wte", "wpe", "shared", "*attention_bias")),
    ("the head", ("lm_head", "head", "heads", "classifier", "score", "output_projection", "output.weight")),
    ("a norm", ("*norm*", "ln_*", "ln[0-9]*", "bn[0-9]*")),
)


def quantize_checkpoint(
    path: str | os.PathLike[str],
    schemes: Sequence[str | QuantScheme],
    *,
    include: Sequence[str] | None = None,
    min_size: int = 0,
    axis: int = 1,
    seed: int | None = None,
    progress: bool = False,
) -> CheckpointTable:
    r"""Measure what each of several schemes does to the tensors of a safetensors file.

    A tensor is viewed as a matrix, [first axis, all others], which for a convolution's weight is [out, in kh kw],
    widened to float32, quantized along `axis`, and compared with itself. One tensor is held at a time.

    Only names and shapes are known, so what the studies leave out of a model is left out by them: what is not
    floating-point, what has fewer than two axes longer than 1 (biases, norms), names that end in ``bias``, and names a
    component of which is that of an embedding (contains ``embed``, or is ``wte``, ``wpe``, ``shared``; but no tensor of
    four axes is one), of a head (``lm_head``, ``head``, ``classifier``, ``score`` ...) or of a norm (contains
    ``norm``). The table lists all of it.

    Parameters
    ----------
    path
        A safetensors file. Pickles are refused, because reading one can run code.
    schemes
        Schemes or their names.
    include
        Name patterns such as ``"model.layers.*"``: the tensors to quantize, in place of what their names say. A tensor
        that is matched and cannot be a matrix is still left out.
    min_size
        Leave out tensors with fewer elements.
    axis
        1, or 0 for weights stored [in, out] (GPT-2's): the axis of the matrix that a matrix product sums over.
    seed
        Required by stochastic rounding; every tensor draws its own numbers from it.
    progress
        Show a bar over elements, on stderr.

    Returns
    -------
    CheckpointTable
        ``print(table)`` aligns it; also ``.plot(path)``, ``.save(path)``, ``.load(path)``.

    Raises
    ------
    ValueError, TypeError
        If the file is a pickle, no safetensors file or a torn one; if nothing in it is left to quantize, or a pattern
        matches nothing; for an unknown scheme, a negative size, another axis, a Hadamard transform that does not divide
        a tensor's axis.
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> print(lsfast.studies.quantize_checkpoint("model.safetensors", ["mxfp4", "nvfp4"]))
    """
    chosen = _schemes(schemes)
    checks.positive_integer("quantize_checkpoint", "min_size", min_size, least=0)
    if isinstance(axis, bool) or axis not in (0, 1):
        raise ValueError(f"quantize_checkpoint: axis must be 0 or 1, of [first axis, all others], got {axis!r}")
    if seed is not None:
        checks.seed("quantize_checkpoint", seed)
    elif any(each.rounding == "stochastic" for each in chosen):
        raise ValueError("quantize_checkpoint: seed must be given for stochastic rounding, got None")
    patterns = [include] if isinstance(include, str) else include
    with _opened(Path(path)) as file:
        names = sorted(file.keys(), key=_natural)
        sizes = {name: torch.Size(file.get_slice(name).get_shape()) for name in names}
        kinds = {name: file.get_slice(name).get_dtype() for name in names}
        _check_patterns(patterns, names)
        reasons = {name: _reason(name, sizes[name], kinds[name], patterns, min_size) for name in names}
        kept = [name for name in names if reasons[name] is None]
        if not kept:
            first = f", such as {names[0]!r}: {reasons[names[0]]}" if names else ""
            raise ValueError(
                f"quantize_checkpoint: {os.fspath(path)} must hold a weight to quantize, got {len(names)} tensors left "
                f"out{first}"
            )
        _check_hadamard(chosen, {name: sizes[name] for name in kept}, axis)
        rows: list[TensorError] = []
        with _bar(sum(sizes[name].numel() for name in kept), progress) as bar:
            for index, name in enumerate(kept):
                bar.set_postfix_str(name)
                rows += _measured(name, file.get_tensor(name), chosen, axis, seed, index)
                bar.update(sizes[name].numel())
    left_out = tuple(
        LeftOut(name, tuple(sizes[name]), reason) for name, reason in reasons.items() if reason is not None
    )
    return CheckpointTable(Path(path).name, tuple(each.name for each in chosen), tuple(rows), left_out)


def _schemes(schemes: Sequence[str | QuantScheme]) -> list[QuantScheme]:
    if isinstance(schemes, (str, QuantScheme)) or not isinstance(schemes, Sequence):
        raise TypeError(f"quantize_checkpoint: schemes must be a list of schemes, got {schemes!r}")
    if not schemes:
        raise ValueError("quantize_checkpoint: schemes must name at least one scheme, got none")
    chosen = [scheme(each) for each in schemes]
    names = [each.name for each in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"quantize_checkpoint: schemes must differ in name, got {name!r} twice")
    return chosen


def _measured(
    name: str, tensor: Tensor, chosen: Sequence[QuantScheme], axis: int, seed: int | None, stream: int
) -> Iterator[TensorError]:
    matrix = tensor.flatten(1).to(torch.float32)
    rows = matrix if axis == 1 else matrix.T  # [others, contraction]
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for each in chosen:
        _, found = fake_quantize(rows, each, -1, seed, out, statistics=True, stream=stream)
        yield TensorError(
            name=name,
            shape=tuple(tensor.shape),
            scheme=each.name,
            count=rows.numel(),
            bits=stored_bits(each, rows.shape) / rows.numel(),
            saturated=float(found.saturated),
            flushed=float(found.flushed),
            squared_error=float(found.squared_error),
            squared_sum=float(found.squared_sum),
            largest=float(found.largest),
        )


def stored_bits(chosen: QuantScheme, shape: Sequence[int]) -> int:
    """Return the bits that a matrix [height, length] takes: its codes, its scales, and the scale of the tensor.

    Examples
    --------
    >>> lsfast.studies.checkpoint.stored_bits(lsfast.scheme("nvfp4"), (16, 64)) / (16 * 64)
    4.53125
    """
    height, length = shape
    if chosen.block is None:
        scales = 0
    elif chosen.block == "tensor":
        scales = 1
    elif chosen.block == "row":
        scales = height
    elif isinstance(chosen.block, int):
        scales = height * -(-length // chosen.block)
    else:
        assert isinstance(chosen.block, tuple)
        scales = -(-height // chosen.block[0]) * -(-length // chosen.block[1])
    each = 32 if chosen.scale == "fp32" else 8
    return element_format(chosen.element).bits * length * height + each * scales + (32 if chosen.tensor_scale else 0)


def _reason(name: str, shape: torch.Size, kind: str, include: Sequence[str] | None, min_size: int) -> str | None:
    """Return why a tensor is left out, or None."""
    if kind not in ("F64", "F32", "F16", "BF16"):
        return f"{kind}, not float64, float32, float16 or bfloat16"
    if shape.numel() == 0:
        return "empty"
    if sum(size > 1 for size in shape) < 2:
        return "one dimension"
    if shape.numel() < min_size:
        return f"fewer than {min_size} elements"
    if include is not None:
        return None if any(fnmatchcase(name, pattern) for pattern in include) else "not included"
    components = name.lower().split(".")
    if components[-1].endswith("bias"):
        return "a bias"
    for reason, patterns in _BY_NAME:
        if reason == "an embedding" and len(shape) > 3:  # of image patches: a convolution
            continue
        if any(fnmatchcase(part, pattern) for part in (*components, name.lower()) for pattern in patterns):
            return reason
    return None


def _check_hadamard(chosen: Sequence[QuantScheme], kept: Mapping[str, torch.Size], axis: int) -> None:
    for name, shape in kept.items():
        length = shape[0] if axis == 0 else shape[1:].numel()
        for each in chosen:
            if each.hadamard and length % each.hadamard:
                raise ValueError(
                    f"quantize_checkpoint: hadamard={each.hadamard} must divide what is quantized, got {name!r} "
                    f"of {length}"
                )


def _check_patterns(include: Sequence[str] | None, names: Sequence[str]) -> None:
    if include is not None and not include:
        raise ValueError("quantize_checkpoint: include must hold at least one pattern, got none")
    for pattern in include or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"quantize_checkpoint: include pattern {pattern!r} must match a tensor, got none of {len(names)}"
            )


def _natural(name: str) -> list[Any]:
    """Sort layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; anything else is refused by what it is."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            'quantize_checkpoint needs safetensors, which is not installed: pip install "lsfast[files]"'
        ) from error
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix.lower() in _PICKLES or start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        raise ValueError(
            f"quantize_checkpoint: path must be a safetensors file, got {os.fspath(path)!r}, a pickle, which can run "
            f"code when it is read; where you trust it, convert it once: "
            f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), {path.stem + '.safetensors'!r})"
        )
    if start[8:] != b"{":
        raise ValueError(
            f"quantize_checkpoint: path must be a safetensors file, got {os.fspath(path)!r}, which does not begin "
            "as one"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(
            f"quantize_checkpoint: path must be a whole safetensors file, got {os.fspath(path)!r}: {error}"
        ) from None


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(
        total=total, desc="quantize", unit="value", unit_scale=True, disable=None if progress else True, leave=False
    ) as bar:
        yield bar
