"""The landscape room in plain torch: what the kernels compute, to be read, and the oracle of their tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def points(theta: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    """Return theta + sum_k c[:, k] directions[k], summed in that order: [n], [d, n], [g, d] -> [g, n]."""
    result = theta.expand(len(coordinates), -1)
    for k, direction in enumerate(directions):
        result = result + coordinates[:, k, None] * direction
    return result


def segments(shapes: Sequence[torch.Size], normalize: str | None) -> list[tuple[int, int, bool]]:
    """(first, end, scaled) of each group that is normalized as one.

    "filter": each slice along the first axis of a weight with two or more dimensions; "layer": each parameter. Those
    with fewer than two dimensions are not scaled: they get 0. "model", None: all parameters are one group.
    """
    if normalize not in ("filter", "layer"):
        return [(0, sum(shape.numel() for shape in shapes), True)]
    groups = []
    first = 0
    for shape in shapes:
        weight = len(shape) >= 2
        count = shape[0] if weight and normalize == "filter" else 1
        for _ in range(count):
            groups.append((first, first + shape.numel() // count, weight))
            first += shape.numel() // count
    return groups


def norms(x: Tensor, groups: Sequence[tuple[int, int, bool]]) -> Tensor:
    """Euclidean norm of each group of each row: [c, n] -> [c, groups], float64."""
    return torch.stack([x[:, first:end].double().norm(dim=1) for first, end, _ in groups], dim=1)


def normalized(vectors: Tensor, theta: Tensor, groups: Sequence[tuple[int, int, bool]]) -> Tensor:
    """Rows of [c, n] scaled, group by group, to the norm of theta's group; 0 where either is 0 or is not scaled."""
    result = torch.zeros_like(vectors)
    for first, end, scaled in groups:
        target = theta[first:end].double().norm()
        for row, into in zip(vectors, result, strict=True):
            norm = row[first:end].double().norm()
            if scaled and norm > 0:
                into[first:end] = row[first:end] * (target / norm).to(row.dtype)
    return result


def orthogonalized(vectors: Tensor, groups: Sequence[tuple[int, int, bool]]) -> Tensor:
    """Rows of [c, n] with, group by group, the part along the rows before removed; 0 beyond the group's size."""
    result = vectors.double()
    for first, end, _ in groups:
        part = result[:, first:end]
        for i in range(len(part)):
            if i >= end - first:
                part[i] = 0
                continue
            for _ in range(2):  # once more for the rounding errors of the first time
                for j in range(i):
                    squared = part[j].dot(part[j])
                    if squared > 0:
                        part[i] -= part[i].dot(part[j]) / squared * part[j]
    return result.to(vectors.dtype)


def ascent_sums(u: Tensor, gradient: Tensor, theta: Tensor, slope: float, offset: float) -> Tensor:
    """|c g|^2, u . c g, |u|^2 with c = slope |theta| + offset: [k, n], [k, n], [n] -> [k, 3], float64."""
    scaled = (slope * theta.double().abs() + offset) * gradient.double()
    u = u.double()
    return torch.stack([(scaled * scaled).sum(1), (u * scaled).sum(1), (u * u).sum(1)], dim=1)


def ascent_step(
    u: Tensor, gradient: Tensor, theta: Tensor, coefficients: Tensor, slope: float, offset: float, box: bool
) -> tuple[Tensor, Tensor]:
    """One step uphill and its points theta + c u', each rounded once from float64 to the dtype of theta."""
    first, second = coefficients[:, :1], coefficients[:, 1:]
    scale = slope * theta.double().abs() + offset
    scaled = scale * gradient.double()
    moved = (u + first * scaled.sign()).clamp(-second, second) if box else first * u.double() + second * scaled
    moved = moved.to(theta.dtype)
    return moved, (theta.double() + scale * moved.double()).to(theta.dtype)


def logit_sharpness(logits: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """100 (L(z') - L(z)) / (1 + L(z)) with each logit of [rows, classes] moved to its end of the box, float64."""
    z = logits.double()
    moves = epsilon * (z.abs() + 1.0)
    moves[torch.arange(len(z)), target] *= -1.0
    moved = torch.where(z == -torch.inf, z, z + moves)
    before, after = (torch.nn.functional.cross_entropy(x, target, reduction="none") for x in (z, moved))
    return 100.0 * (after - before) / (1.0 + before)
