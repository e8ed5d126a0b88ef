"""Directions to look along: random ones, scaled to the parameters they start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.landscape.segments import scale_segments_, segment_dots, segment_norms
from lsfast.objective import Objective

_NORMALIZE = ("filter", "layer", "model")


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the space of an objective's parameters, and the point they start from.

    Attributes
    ----------
    vectors
        [count, n], float32 or float64.
    origin
        [n], or None: the objective's parameters.
    labels
        One for each direction, for the axes of plots.
    buffers
        Buffers of the model that vary with the parameters (batch-norm statistics): name -> rows [1 + count, *shape].
        At origin + sum_k c_k d_k the buffer is rows[0] + sum_k c_k rows[1 + k]. Those not named are the model's.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit together.

    Examples
    --------
    >>> lsfast.Directions(torch.eye(3)[:2]).labels
    ('direction 0', 'direction 1')
    """

    vectors: Tensor
    origin: Tensor | None = None
    labels: tuple[str, ...] = ()
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.floating("Directions", "vectors", self.vectors)
        if self.vectors.dim() != 2 or 0 in self.vectors.shape:
            raise ValueError(f"Directions: vectors must have shape [count, n], got {list(self.vectors.shape)}")
        count, n = self.vectors.shape
        if self.origin is not None:
            checks.like("Directions", "origin", self.origin, self.vectors.dtype, self.vectors.device)
            if self.origin.shape != (n,):
                raise ValueError(f"Directions: origin must have shape [{n}], got {list(self.origin.shape)}")
        labels = tuple(self.labels) or tuple(f"direction {k}" for k in range(count))
        if len(labels) != count:
            raise ValueError(f"Directions: labels must be one for each of {count} directions, got {len(labels)}")
        object.__setattr__(self, "labels", labels)
        for name, rows in _mapping(self.buffers).items():
            checks.floating("Directions", f"buffers[{name!r}]", rows)
            if rows.shape[:1] != (1 + count,):
                shape = list(rows.shape)
                raise ValueError(
                    f"Directions: buffers[{name!r}] must have {1 + count} rows, the origin's first, got {shape}"
                )


def random_directions(
    objective: Objective,
    count: int = 2,
    normalize: str | None = "filter",
    orthogonal: bool = False,
    seed: int = 0,
) -> Directions:
    r"""Draw Gaussian directions, scaled to the size of the parameters.

    .. math:: d_g \leftarrow d_g \, |\theta_g| / |d_g| \quad \text{for each group } g

    The groups of ``"filter"`` are the slices along the first axis of each weight with two or more dimensions; of
    ``"layer"`` these weights as a whole; parameters with one dimension (biases, norm weights) get 0 in both. The group
    of ``"model"`` is the whole vector. A group where theta is 0 gets 0.

    Parameters
    ----------
    objective
        Whose parameters are the origin.
    count
        How many; the first ones do not depend on it.
    normalize
        ``"filter"``, ``"layer"``, ``"model"``, or None: entries of variance 1, unscaled.
    orthogonal
        Make the directions orthogonal within each group (within the whole vector for None) by Gram-Schmidt before they
        are scaled. In a group of m parameters the directions after the first m are 0.
    seed
        The draw is made on the CPU: the same for every device.

    Returns
    -------
    Directions
        vectors [count, n] in the dtype and on the device of the objective; origin None.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or every direction is 0: all parameters have one dimension, or are 0.

    References
    ----------
    Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018.

    Examples
    --------
    >>> directions = lsfast.random_directions(objective, count=2, seed=1)
    >>> directions.vectors.shape == (2, objective.n)
    True
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"random_directions: objective must be an Objective, got {type(objective).__name__}")
    checks.positive_integer("random_directions", "count", count)
    if normalize is not None:
        checks.one_of("random_directions", "normalize", normalize, _NORMALIZE)
    checks.seed("random_directions", seed)
    if not isinstance(orthogonal, bool):
        raise TypeError(f"random_directions: orthogonal must be True or False, got {orthogonal!r}")

    generator = torch.Generator().manual_seed(seed)
    vectors = torch.empty(count, objective.n, dtype=objective.dtype, device=objective.device)
    for vector in vectors:
        vector.copy_(torch.randn(objective.n, generator=generator, dtype=objective.dtype))
    lengths, scaled = _groups(objective, normalize)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(objective.device)
    if orthogonal:
        _orthogonalize_(vectors, offsets, lengths.to(objective.device))
    if normalize is not None:
        targets = segment_norms(objective.parameters[None], offsets) * scaled.to(objective.device)
        scale_segments_(vectors, offsets, _ratio(targets, segment_norms(vectors, offsets)))
        if not vectors.any():
            raise ValueError(
                f"random_directions: normalize={normalize!r} makes every direction 0, got parameters that "
                f"{'are 0' if scaled.any() else 'have one dimension; use model or None'}"
            )
    return Directions(vectors, None, tuple(f"random {k}" for k in range(count)))


def _mapping(buffers: Any) -> dict[str, Any]:
    if not isinstance(buffers, dict) or not all(isinstance(name, str) for name in buffers):
        raise TypeError(f"Directions: buffers must be a dict of tensors by name, got {type(buffers).__name__}")
    return buffers


def _groups(objective: Objective, normalize: str | None) -> tuple[Tensor, Tensor]:
    """Lengths [s] int64 of the groups that are normalized as one, and whether [s] each is scaled, else set to 0."""
    if normalize not in ("filter", "layer"):
        return torch.tensor([objective.n]), torch.tensor([True])
    lengths, scaled = [], []
    for shape in objective.shapes:
        weight = len(shape) >= 2
        filters = shape[0] if weight and normalize == "filter" else 1
        if filters:
            lengths.append(torch.full((filters,), shape.numel() // filters))
            scaled.append(torch.full((filters,), weight))
    return torch.cat(lengths), torch.cat(scaled)


def _orthogonalize_(vectors: Tensor, offsets: Tensor, lengths: Tensor) -> None:
    """Gram-Schmidt within each segment, modified, each direction twice: what rounding left of the first pass goes."""
    for i in range(1, len(vectors)):
        row = vectors[i : i + 1]
        for _ in range(2):
            for j in range(i):
                before = vectors[j : j + 1]
                squares = segment_dots(before, before, offsets)
                row -= scale_segments_(before.clone(), offsets, _ratio(segment_dots(row, before, offsets), squares))
        scale_segments_(row, offsets, (lengths > i).double()[None])


def _ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    """Quotients, 0 where the denominator is 0."""
    return torch.where(denominators > 0, numerators / denominators, 0.0)
