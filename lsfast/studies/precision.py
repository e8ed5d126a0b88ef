"""Precision studies: measures of a loss and of its shape at weights rounded to each of several schemes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lsfast import checks
from lsfast.curvature import HessianOperator
from lsfast.data import batches, tensors_in
from lsfast.formats import QuantScheme, scheme
from lsfast.landscape.sharpness import sharpness
from lsfast.objective import Objective
from lsfast.spectrum import eigsh
from lsfast.studies.table import PrecisionTable
from lsfast.studies.weights import quantize_parameters
from lsfast.weights import quantizable_parameters

Measure = Callable[[Objective], Any]

REFERENCE = "fp32"


def loss(objective: Objective) -> float:
    """Return the loss; NaN and Inf are values."""
    return float(objective.evaluate(points=objective.parameters[None]).values[0])


def accuracy(objective: Objective) -> float:
    """Return the share of targets that are the largest output of their class axis.

    Targets are class indices (those of the loss's ``ignore_index`` do not count); outputs have one axis more, the
    second as in ``torch.nn.CrossEntropyLoss``, or the last.

    Raises
    ------
    ValueError
        For other targets.
    """
    ignored = getattr(objective.loss_fn, "ignore_index", -100)
    named = objective.unflatten(objective.parameters)
    right = total = 0
    with objective.undisturbed(), torch.no_grad():
        for inputs, targets in batches(objective.data):
            outputs = objective.outputs(named, inputs)
            axis = _class_axis(outputs, targets)
            kept = targets != ignored
            right += int(((outputs.argmax(axis) == targets) & kept).sum())
            total += int(kept.sum())
    return right / total if total else float("nan")


def largest_eigenvalue(objective: Objective, seed: int = 0) -> float:
    """Return the largest eigenvalue of the Hessian; NaN where the loss is not finite."""
    if not math.isfinite(loss(objective)):
        return float("nan")
    return float(eigsh(HessianOperator(objective), k=1, which="LA", seed=seed).values[0])


def sam_sharpness(objective: Objective) -> float:
    r"""Return :math:`L(w + \rho g / |g|) - L(w)` with :math:`\rho = 0.05`; NaN where the loss is not finite."""
    if not math.isfinite(loss(objective)):
        return float("nan")
    return float(sharpness(objective, method="sam", radius=0.05))


MEASURES: tuple[str, ...] = ("weight_error", "loss", "accuracy", "largest_eigenvalue", "sharpness")


def precision_study(
    objective: Objective,
    schemes: Sequence[str | QuantScheme],
    measures: Sequence[str] | Mapping[str, str | Measure] = MEASURES,
    seed: int = 0,
    progress: bool = False,
) -> PrecisionTable:
    r"""Measure a loss and its shape at weights rounded to each of several schemes.

    For each scheme the weights of `lsfast.studies.quantizable_parameters` are fake-quantized along their contraction,
    and the measures are taken of the objective at the resulting parameters. Activations are not quantized. The first
    row is always ``fp32``, the reference.

    Parameters
    ----------
    objective
        Its parameters are the ones quantized; it and its model are unchanged.
    schemes
        Schemes or their names. A row is named by its scheme; where two schemes have the same name, by how they round.
    measures
        Names, or a mapping from a column's name to a measure: a name, or a callable that takes an objective and
        returns a number. The names: ``"weight_error"``, :math:`|W_q - W| / |W|` over all quantized weights together;
        ``"loss"``; ``"accuracy"``, for class targets; ``"largest_eigenvalue"`` of the Hessian; ``"sharpness"``, SAM's
        with radius 0.05. The last two are NaN where the loss is not finite.
    seed
        Of stochastic rounding and of the eigenvalue's start vector.
    progress
        Show a bar with the time left, on stderr.

    Returns
    -------
    PrecisionTable
        ``table[scheme, measure]`` is a number; ``print(table)`` aligns them; ``.values`` [schemes, measures] float64.

    Raises
    ------
    ValueError, TypeError
        For an unknown scheme or measure (the message names the nearest), none given, a measure that returns no number,
        an objective without weights to quantize.

    Examples
    --------
    >>> table = lsfast.precision_study(objective, ["bf16", "fp8_e4m3", "nvfp4"], measures=["loss", "accuracy"])
    >>> table["nvfp4", "accuracy"]
    0.9833333333333333
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"precision_study: objective must be an lsfast.Objective, got {type(objective).__name__}")
    checks.seed("precision_study", seed)
    rows = _rows(schemes)
    columns = _columns(measures, seed)
    weights = quantizable_parameters(objective)
    reference = objective.parameters
    values = torch.empty(len(rows), len(columns), dtype=torch.float64)
    with tqdm(total=values.numel(), desc="precision", disable=not progress, leave=False) as bar:
        for i, (label, chosen) in enumerate(rows.items()):
            moved = objective.at(quantize_parameters(objective, chosen, seed))
            for j, (name, measure) in enumerate(columns.items()):
                bar.set_postfix_str(f"{label} {name}")
                found = _weight_error(moved, reference, weights) if measure is None else measure(moved)
                values[i, j] = _number(name, found)
                bar.update(1)
    return PrecisionTable(schemes=tuple(rows), measures=tuple(columns), values=values)


def _rows(schemes: Sequence[str | QuantScheme]) -> dict[str, QuantScheme]:
    """Return the schemes by the label of their row, the reference first."""
    if isinstance(schemes, (str, QuantScheme)) or not isinstance(schemes, Sequence):
        raise TypeError(f"precision_study: schemes must be a list of schemes, got {schemes!r}")
    if not schemes:
        raise ValueError("precision_study: schemes must name at least one scheme, got none")
    chosen = [scheme(REFERENCE)]
    for item in schemes:
        described = scheme(item)
        if described not in chosen:
            chosen.append(described)
    names = [item.name for item in chosen]
    rows: dict[str, QuantScheme] = {}
    for item in chosen:
        label = item.name
        if names.count(label) > 1 and item != scheme(label):
            label = f"{label} {item.rounding}"
        if label in rows:
            label = f"{label} {len(rows)}"
        rows[label] = item
    return rows


def _columns(measures: Sequence[str] | Mapping[str, str | Measure], seed: int) -> dict[str, Measure | None]:
    """Return the measures by the name of their column; None is the weight error, which no objective alone knows."""
    known: dict[str, Measure | None] = {
        "weight_error": None,
        "loss": loss,
        "accuracy": accuracy,
        "largest_eigenvalue": lambda objective: largest_eigenvalue(objective, seed),
        "sharpness": sam_sharpness,
    }
    if isinstance(measures, str) or not isinstance(measures, (Sequence, Mapping)):
        raise TypeError(f"precision_study: measures must be a list of names or a mapping, got {measures!r}")
    if not measures:
        raise ValueError("precision_study: measures must name at least one measure, got none")
    items = measures.items() if isinstance(measures, Mapping) else [(name, name) for name in measures]
    columns: dict[str, Measure | None] = {}
    for column, measure in items:
        if callable(measure):
            columns[column] = measure
        elif measure in known:
            columns[column] = known[measure]
        else:
            near = difflib.get_close_matches(str(measure), known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"precision_study: measures must be of {', '.join(known)} or callables, got {measure!r}; "
                f"nearest is {near!r}"
            )
    return columns


def _weight_error(moved: Objective, reference: Tensor, weights: Sequence[str]) -> float:
    after, before = moved.unflatten(moved.parameters), moved.unflatten(reference)
    error = sum(float((after[name] - before[name]).double().square().sum()) for name in weights)
    return float((error / sum(float(before[name].double().square().sum()) for name in weights)) ** 0.5)


def _number(name: str, found: Any) -> float:
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"precision_study: measure {name!r} must return a number, got {type(found).__name__}"
        ) from error


def _class_axis(outputs: Any, targets: Any) -> int:
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and not targets.dtype.is_floating_point:
        shape = list(outputs.shape)
        if outputs.dim() == targets.dim() + 1 and outputs.dim() > 1 and [shape[0], *shape[2:]] == list(targets.shape):
            return 1
        if shape[:-1] == list(targets.shape):
            return -1
    got = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors_in(targets)) or type(targets).__name__
    came = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"precision_study: accuracy needs class indices as targets and one more axis in the outputs, got targets {got} "
        f"and outputs {came}"
    )
