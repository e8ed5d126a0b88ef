"""Directions between states of a model: the line through two, the plane through three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lsfast.landscape.directions import Directions
from lsfast.landscape.span import combinations, inner_products
from lsfast.landscape.states import State, buffers_of, difference, read_state
from lsfast.objective import Objective


@dataclass(frozen=True, eq=False)
class Plane(Directions):
    """The plane through three states.

    Attributes
    ----------
    coordinates
        [3, 2] float64, on the CPU: of the three states, in the order they were given.
    """

    coordinates: Tensor = field(kw_only=True)


def between(objective: Objective, a: State, b: State) -> Directions:
    r"""Return the direction from one state of a model to another: a at coordinate 0, b at 1.

    .. math:: \theta(t) = a + t \, (b - a)

    Floating buffers (statistics of batch norms in eval mode) go along, so that each end has its own loss. A state
    without buffers, such as a vector, has those of the model. Beyond the ends they are extrapolated; a variance may
    become negative there.

    Parameters
    ----------
    objective
        Whose parameters the states are of. Parameters it does not vary stay the model's.
    a, b
        A state dict, the path of one (safetensors, or by ``torch.save``), a module, or a vector [n].

    Returns
    -------
    Directions
        vectors [1, n] with b - a, origin a. At 1 the point is b to rounding.

    Raises
    ------
    TypeError, ValueError
        If a state does not fit the model (names, shapes, kinds of numbers), its file cannot be read, or both are equal.

    Examples
    --------
    >>> line = lsfast.between(objective, "start.safetensors", model.state_dict())
    >>> lsfast.loss_grid(objective, line, steps=25, extent=[(0.0, 1.0)]).values
    """
    (start, end), buffers = _read("between", objective, {"a": a, "b": b})
    vectors = (end - start)[None]
    if not vectors.any():
        raise ValueError("between: b must differ from a in its parameters, got equal ones")
    rows = {name: torch.stack([first, difference(last, first)]) for name, (first, last) in buffers.items()}
    return Directions(vectors, start, ("a to b",), rows)


def plane_through(objective: Objective, a: State, b: State, c: State) -> Plane:
    r"""Return the plane through three states of a model: a at (0, 0), b at (1, 0), c where `coordinates` says.

    .. math:: d_0 = b - a, \qquad d_1 = \frac{|b - a|}{|v|} v, \qquad v = (c - a) - \text{its part along } d_0

    Both directions have the length of b - a and are orthogonal, so the plane is drawn without distortion. Floating
    buffers go along, so that each of the three states has its own loss (see `between`).

    Parameters
    ----------
    objective
        Whose parameters the states are of. Parameters it does not vary stay the model's.
    a, b, c
        A state dict, the path of one (safetensors, or by ``torch.save``), a module, or a vector [n].

    Returns
    -------
    Plane
        vectors [2, n], origin a.

    Raises
    ------
    TypeError, ValueError
        If a state does not fit the model, its file cannot be read, a and b are equal, or the three lie on one line to
        the rounding of their parameters.

    References
    ----------
    Garipov, Izmailov, Podoprikhin, Vetrov, Wilson: Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
    NeurIPS 2018.

    Examples
    --------
    >>> plane = lsfast.plane_through(objective, first, second, third)
    >>> plane.coordinates[2]  # of the third
    """
    (start, second, third), buffers = _read("plane_through", objective, {"a": a, "b": b, "c": c})
    along, across = second - start, third - start
    length = _norm(along)
    if length == 0.0:
        raise ValueError("plane_through: b must differ from a in its parameters, got equal ones")
    part = _along(across, along)
    # What rounding of the three states, by eps / 2 of each element, can leave of three points on one line; twice that.
    noise = torch.finfo(objective.dtype).eps * (_norm(third) + abs(part) * _norm(second) + abs(1 - part) * _norm(start))
    rest = combinations(_row(1.0, -part), torch.stack([across, along]))[0]
    height = _norm(rest)
    if height <= noise:
        raise ValueError(
            f"plane_through: a, b and c must not lie on one line, got c within {height:.3g} of that through a and b"
        )
    scale = length / height
    rest = combinations(_row(scale, -_along(rest, along) * scale), torch.stack([rest, along]))[0]
    vectors = torch.stack([along, rest])
    x, y = torch.linalg.solve(inner_products(vectors, vectors), inner_products(vectors, across[None]))[:, 0].tolist()
    coordinates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [x, y]], dtype=torch.float64)
    rows = {name: _plane_rows(values, x, y) for name, values in buffers.items()}
    return Plane(vectors, start, ("a to b", "toward c"), rows, coordinates=coordinates)


def _plane_rows(values: Sequence[Tensor], x: float, y: float) -> Tensor:
    """Rows of the affine buffer that has the three values at (0, 0), (1, 0) and (x, y)."""
    first, second, third = (value.double() for value in values)
    along = difference(second, first)
    across = (difference(third, first) - x * along) / y
    return torch.stack([first, along, across]).to(values[0].dtype)


def _read(
    function: str, objective: Objective, states: dict[str, State]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    if not isinstance(objective, Objective):
        raise TypeError(f"{function}: objective must be an Objective, got {type(objective).__name__}")
    found = [read_state(function, objective, state, name) for name, state in states.items()]
    return [vector for vector, _ in found], buffers_of(objective, [buffers for _, buffers in found])


def _row(*coefficients: float) -> Tensor:
    return torch.tensor([coefficients], dtype=torch.float64)


def _norm(x: Tensor) -> float:
    return float(inner_products(x[None], x[None]).sqrt())


def _along(x: Tensor, y: Tensor) -> float:
    """Return the coordinate of x along y."""
    return float(inner_products(x[None], y[None]) / inner_products(y[None], y[None]))
