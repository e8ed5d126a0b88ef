"""The plane in which a training run moved most: principal components of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.landscape.directions import Directions
from lsfast.landscape.span import combinations, inner_products
from lsfast.landscape.states import State, buffers_of, read_state
from lsfast.objective import Objective


@dataclass(frozen=True, eq=False)
class Trajectory(Directions):
    """Directions in which a training run moved, and where its c checkpoints lie. All of these are float64 on the CPU.

    Attributes
    ----------
    variance
        [count]: the share of the squared distances of the checkpoints from the last one that each direction holds.
    coordinates
        [c, count] of each checkpoint's projection; those of the last are 0.
    values
        [c]: the loss at each checkpoint, with its own buffers.
    projected
        [c]: the loss at its projection, with the buffers of the last checkpoint. Where it is far from `values`, the
        plane does not show what the run saw.
    """

    variance: Tensor = field(kw_only=True)
    coordinates: Tensor = field(kw_only=True)
    values: Tensor = field(kw_only=True)
    projected: Tensor = field(kw_only=True)


def trajectory_directions(objective: Objective, checkpoints: Sequence[State] | Tensor, count: int = 2) -> Trajectory:
    r"""Return the principal components of a training run's checkpoints, seen from the last one.

    .. math:: M = [\theta_1 - \theta_c, \ldots, \theta_{c-1} - \theta_c, 0], \qquad
              M M^T = U \Lambda U^T, \qquad d_k = \Lambda_k^{-1/2} U_k^T M

    The differences are from the last checkpoint and not from their mean, so it lies at the origin, and the shares are
    of squared distances from it. The Gram matrix [c, c] is summed in float64; nothing of size n x n is made.

    Floating buffers (statistics of batch norms in eval mode) do not vary over the plane: they are the last
    checkpoint's, because a variance that followed the run linearly could be negative beyond it.
    ``batch_norm="recompute"`` of `loss_grid` takes statistics of each point instead.

    Parameters
    ----------
    objective
        Whose parameters the checkpoints are of. Parameters it does not vary stay the model's.
    checkpoints
        In the order of training, each a state dict, the path of one (safetensors, or by ``torch.save``), a module or a
        vector [n]; or a tensor [c, n]. They are read one at a time, and kept as one [c, n].
    count
        Number of directions, less than that of checkpoints.

    Returns
    -------
    Trajectory
        vectors [count, n] orthonormal, in the order of the shares, with signs such that the checkpoint farthest along a
        direction has a positive coordinate; origin the last checkpoint.

    Raises
    ------
    TypeError, ValueError
        If a checkpoint does not fit the model (names, shapes, kinds of numbers), its file cannot be read, there are too
        few, or they move in fewer than `count` directions by more than the rounding of their parameters.

    References
    ----------
    Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, section 7.

    Examples
    --------
    >>> run = lsfast.trajectory_directions(objective, sorted(Path("run").glob("*.safetensors")))
    >>> lsfast.loss_grid(objective, run, extent=[(-1.0, 5.0), (-2.0, 2.0)])
    """
    name = "trajectory_directions"
    if not isinstance(objective, Objective):
        raise TypeError(f"{name}: objective must be an Objective, got {type(objective).__name__}")
    checks.positive_integer(name, "count", count)
    if not isinstance(checkpoints, (Sequence, Tensor)) or isinstance(checkpoints, str):
        raise TypeError(f"{name}: checkpoints must be a sequence of states, got {type(checkpoints).__name__}")
    c = len(checkpoints)
    if c <= count:
        raise ValueError(f"{name}: checkpoints must be more than the {count} directions asked for, got {c}")

    rows, buffers = _read(name, objective, checkpoints)
    values = objective.evaluate(
        points=rows, buffers={key: torch.stack(each) for key, each in buffers.items()} or None
    ).values
    last = rows[-1].clone()
    moved = rows.sub_(last)
    gram = inner_products(moved, moved)
    squares, components = torch.linalg.eigh(gram.cpu())
    squares, components = squares.flip(0), components.flip(1).T.contiguous()
    # Smaller ones may be the rounding of two checkpoints, by eps / 2 of each element, or that of the inner products.
    distance = torch.finfo(objective.dtype).eps * float(inner_products(last[None], last[None]).sqrt())
    floor = c * max(distance**2, 8 * torch.finfo(torch.float64).eps * float(squares[0]))
    found = int((squares > floor).sum())
    if found < count:
        raise ValueError(
            f"{name}: checkpoints must move in at least {count} directions by more than rounding, got {found}"
        )

    farthest = components[:count].gather(1, components[:count].abs().argmax(1, keepdim=True))
    scaled = components[:count] * farthest.sign() / squares[:count, None].sqrt()
    vectors = _orthonormal(combinations(scaled, moved))
    coordinates = inner_products(moved, vectors)
    del rows, moved
    projected = objective.evaluate(
        last, vectors, coordinates.to(objective.dtype), buffers=_constant(buffers, count) or None
    ).values
    shares = squares[:count] / gram.diagonal().sum().item()
    return Trajectory(
        vectors,
        last,
        tuple(f"component {k} ({share:.3g} of variance)" for k, share in enumerate(shares.tolist())),
        _constant(buffers, count),
        variance=shares,
        coordinates=coordinates.cpu(),
        values=values.cpu(),
        projected=projected.cpu(),
    )


def _read(name: str, objective: Objective, checkpoints: Any) -> tuple[Tensor, dict[str, list[Tensor]]]:
    rows = torch.empty(len(checkpoints), objective.n, dtype=objective.dtype, device=objective.device)
    buffers = []
    for i, checkpoint in enumerate(checkpoints):
        rows[i], held = read_state(name, objective, checkpoint, f"checkpoints[{i}]")
        buffers.append(held)
    return rows, buffers_of(objective, buffers)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Remove what the division by a small root of a rounded eigenvalue left of lengths and angles."""
    factor = torch.linalg.cholesky(inner_products(vectors, vectors))
    identity = torch.eye(len(vectors), dtype=torch.float64, device=vectors.device)
    return combinations(torch.linalg.solve_triangular(factor, identity, upper=False), vectors)


def _constant(buffers: dict[str, list[Tensor]], count: int) -> dict[str, Tensor]:
    """Rows of buffers that are the last checkpoint's everywhere."""
    found = {}
    for name, values in buffers.items():
        found[name] = values[-1].new_zeros(1 + count, *values[-1].shape)
        found[name][0] = values[-1]
    return found
