"""Where an objective is evaluated: its parameters and buffers at g points, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lsfast import checks
from lsfast.formats import QuantScheme
from lsfast.formats import scheme as scheme_of
from lsfast.program.points import parameter_points
from lsfast.program.quantized_points import quantized_points
from lsfast.weights import contraction_first, contraction_last, quantizable_parameters, transposed_groups

if TYPE_CHECKING:
    from lsfast.objective import Objective

Rounding = Callable[[Tensor, Tensor | None], Tensor]


@dataclass
class Points:
    """The points to evaluate at, by name of a parameter or buffer.

    Attributes
    ----------
    count
        g, how many.
    coordinates
        [g, d]; None where every point is given.
    rows
        name -> [1 + d, *shape]: at a point row 0 plus its coordinates times the others.
    fixed
        name -> [*shape], the same at every point.
    given
        name -> [g, *shape].
    rounded
        name -> function that rounds a weight at points: of its rows [1 + d, *shape] and coordinates [g, d], or of its
        values [g, *shape] and None; returns [g, *shape].
    """

    count: int
    coordinates: Tensor | None
    rows: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    rounded: dict[str, Rounding] = field(default_factory=dict)

    def move_buffers(self, model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
        """Add buffers that differ between the points: rows with coordinates, else one for each point."""
        named = dict(model.named_buffers())
        unread = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            for name, _ in module.named_buffers(recurse=False)
        }
        lead = self.count if self.coordinates is None else 1 + self.coordinates.shape[1]
        for name, value in buffers.items():
            if name not in named:
                raise ValueError(f"evaluate: buffers must be buffers of the model, got {name!r}")
            if name in unread:
                raise ValueError(f"evaluate: buffers must be read by the model, got {name!r} of one in train mode")
            own = named[name]
            checks.like("evaluate", f"buffers[{name!r}]", value, own.dtype, own.device)
            if value.shape != (lead, *own.shape):
                raise ValueError(
                    f"evaluate: buffers[{name!r}] must have shape {[lead, *own.shape]}, got {list(value.shape)}"
                )
            (self.given if self.coordinates is None else self.rows)[name] = value.detach()

    def round_weights(self, objective: Objective, scheme: QuantScheme, seed: int | None) -> None:
        """Round the weights of a low-precision scheme at every point."""
        transposed = transposed_groups(objective)
        shapes = dict(zip(objective.names, objective.shapes, strict=True))
        for stream, name in enumerate(quantizable_parameters(objective)):
            self.rounded[name] = _rounding(shapes[name], transposed.get(name), scheme, seed, stream)

    def one(self, index: int) -> dict[str, Tensor]:
        """Return every parameter and buffer that these points name, at one of them."""
        found = dict(self.fixed)
        coordinates = None if self.coordinates is None else self.coordinates[index : index + 1]
        for name, value in self.given.items():
            found[name] = value[index]
        for name, rows in self.rows.items():
            assert coordinates is not None
            flat = rows.reshape(len(rows), -1)
            found[name] = parameter_points(flat[0], flat[1:], coordinates).view(rows.shape[1:])
        for name, rounding in self.rounded.items():
            found[name] = rounding(found[name][None], None)[0]
        return found

    def squared_norms(self, names: Sequence[str]) -> Tensor:
        """Return the sums of squares of these parameters [g], float64."""
        if self.rounded:
            points = (self.one(index) for index in range(self.count))
            return torch.stack([sum_of_squares([point[name] for name in names]) for point in points])
        total = torch.zeros(self.count, dtype=torch.float64, device=self._device())
        moving = [self.rows[name].reshape(len(self.rows[name]), -1).double() for name in names if name in self.rows]
        if moving:
            assert self.coordinates is not None
            gram = torch.stack([rows @ rows.T for rows in moving]).sum(0)
            c = torch.cat([self.coordinates.new_ones(self.count, 1), self.coordinates], 1).double()
            total += torch.einsum("gi,ij,gj->g", c, gram, c)
        total += sum_of_squares([self.fixed[name] for name in names if name in self.fixed])
        for name in names:
            if name in self.given:
                total += self.given[name].double().square().flatten(1).sum(1)
        return total

    def _device(self) -> torch.device:
        return next(iter({**self.rows, **self.fixed, **self.given}.values())).device


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of all squares, 0-dim float64."""
    return torch.stack(
        [torch.zeros((), dtype=torch.float64), *[t.double().square().sum().cpu() for t in tensors]]
    ).sum()


def points_of(
    objective: Objective,
    origin: Tensor | None,
    directions: Tensor | None,
    coordinates: Tensor | None,
    points: Tensor | None,
    scheme: str | QuantScheme | None,
    seed: int | None,
    buffers: Mapping[str, Tensor] | None,
) -> Points:
    """Check the arguments of `Objective.evaluate` that say where, and part them by name."""
    if (points is None) == (directions is None or coordinates is None):
        raise ValueError("evaluate: give either points, or both directions and coordinates")
    if points is not None:
        checks.like("evaluate", "points", points, objective.dtype, objective.device)
        if points.dim() != 2 or points.shape[1] != objective.n or len(points) == 0:
            raise ValueError(f"evaluate: points must have shape [g, {objective.n}], got {list(points.shape)}")
        where = chosen_points(objective, points.detach())
    else:
        assert directions is not None
        assert coordinates is not None
        start = objective.parameters if origin is None else origin
        columns_of = (("directions", directions, objective.n), ("coordinates", coordinates, len(directions)))
        for name, tensor, columns in columns_of:
            checks.like("evaluate", name, tensor, objective.dtype, objective.device)
            if tensor.dim() != 2 or tensor.shape[1] != columns or len(tensor) == 0:
                raise ValueError(f"evaluate: {name} must have shape [.., {columns}], got {list(tensor.shape)}")
        checks.like("evaluate", "origin", start, objective.dtype, objective.device)
        if start.shape != (objective.n,):
            raise ValueError(f"evaluate: origin must have shape [{objective.n}], got {list(start.shape)}")
        where = points_along(objective, start.detach(), directions.detach(), coordinates.detach())
    where.move_buffers(objective.model, buffers or {})
    if scheme is not None:
        where.round_weights(objective, scheme_of(scheme), seed)
    return where


def points_along(objective: Objective, origin: Tensor, directions: Tensor, coordinates: Tensor) -> Points:
    """Return the points origin + coordinates @ directions; parameters that no direction moves are fixed."""
    points = Points(len(coordinates), coordinates)
    for (name, part), shape in zip(objective.slices.items(), objective.shapes, strict=True):
        if directions[:, part].any():
            rows = torch.cat([origin[None, part], directions[:, part]])
            points.rows[name] = rows.view(len(rows), *shape)
        else:
            points.fixed[name] = origin[part].view(shape)
    return points


def chosen_points(objective: Objective, vectors: Tensor) -> Points:
    """Return the points given as vectors [g, n]."""
    slices = zip(objective.slices.items(), objective.shapes, strict=True)
    given = {name: vectors[:, part].unflatten(1, shape) if shape else vectors[:, part].squeeze(1)
             for (name, part), shape in slices}  # fmt: skip
    return Points(len(vectors), None, given=given)


def _rounding(shape: torch.Size, groups: int | None, scheme: QuantScheme, seed: int | None, stream: int) -> Rounding:
    def rounded(values: Tensor, coordinates: Tensor | None) -> Tensor:
        matrices = contraction_last(values, groups)
        rows, length = matrices.shape[1:]
        flat = matrices.flatten(1)
        if coordinates is not None:
            found = quantized_points(flat[0], flat[1:], coordinates, scheme, rows, length, seed, stream)
        else:
            nowhere = flat.new_zeros(1, 1)
            still = torch.zeros_like(flat[:1])
            each = [quantized_points(one, still, nowhere, scheme, rows, length, seed, stream) for one in flat]
            found = torch.cat(each)
        return contraction_first(found.view(-1, rows, length), shape, groups)

    return rounded
