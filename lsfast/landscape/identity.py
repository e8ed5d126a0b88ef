"""What a grid's checkpoint says of the grid it belongs to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lsfast.landscape.directions import Directions
from lsfast.landscape.mesh import Evaluate

Description = dict[str, int | float | str]

_GOLDEN = 0.6180339887498949
_CHUNK = 2**22
_POINTS = 4  # the fewest that the objective evaluates together


def describe(
    evaluate: Evaluate, theta: Tensor, directions: Directions, axes: Sequence[Tensor], settings: Mapping[str, object]
) -> tuple[Description, int]:
    """Return what the values of a grid depend on, for `Checkpoint`, and how many points are evaluated together.

    Vectors are known by numbers that no rounding changes much, model and data by the loss at `theta`.
    """
    description: Description = {name: str(value) for name, value in settings.items()}
    description["steps"] = "x".join(str(len(axis)) for axis in axes)
    for k, axis in enumerate(axes):
        bits = hashlib.sha256(axis.double().numpy().tobytes()).hexdigest()[:8]
        description[f"coordinates {k}"] = f"{axis[0]:.9g} to {axis[-1]:.9g} ({bits})"
    vectors = {"origin": theta, **{f"direction {k}": row for k, row in enumerate(directions.vectors)}}
    vectors |= {f"buffer {name} {k}": row for name, rows in directions.buffers.items() for k, row in enumerate(rows)}
    for name, vector in vectors.items():
        norm, mark = marks_of(vector.detach().flatten())
        description[f"{name} (norm)"], description[f"{name} (mark)"] = number(norm), number(mark)
    found = evaluate(axes[0].new_zeros(_POINTS, len(axes)), None)
    description["loss at the origin"] = number(float(found.values[0]))
    return description, found.points_at_once


def number(value: float) -> float | str:
    """Return a number as it is compared: NaN and Inf by name."""
    return value if math.isfinite(value) else str(value)


def marks_of(vector: Tensor) -> tuple[float, float]:
    """Return the norm of a vector, and one with weights for its places and signs: both grow with every entry."""
    squares = marked = 0.0
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK].double()
        place = torch.arange(start, start + len(part), dtype=torch.float64, device=part.device)
        squares += float(part.square().sum())
        marked += float((part.square() * (1.0 + (place * _GOLDEN) % 1.0) * (1.0 + (part > 0))).sum())
    return squares**0.5, marked**0.5
