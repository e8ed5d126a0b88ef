"""Points around the parameters: theta + sum_k c_k d_k for many coordinates c in one fused, differentiable pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops, register_fake


def parameter_points(theta: Tensor, directions: Tensor, coordinates: Tensor, out: Tensor | None = None) -> Tensor:
    r"""Return the points :math:`\theta + \sum_k c_{ik} d_k`, one for each row of `coordinates`.

    Summed in the order k = 0, 1, ..., each product and sum rounded to the dtype (the 16-bit types are computed in
    float32 and rounded once), so a coordinate of 0 adds exactly nothing (a finite direction times 0 is 0) and the bits
    are the same on every device.

    Parameters
    ----------
    theta
        [n], float32, float64, bfloat16 or float16.
    directions
        [d, n] with d >= 1, in the dtype and on the device of theta.
    coordinates
        [g, d], the same.
    out
        [g, n], contiguous: written to and returned. It has no derivative. Without it the result lies in fresh memory,
        whose pages the system has yet to give: on a CPU that takes several times as long as the arithmetic where the
        result is large (tens of MB). Who forms points again and again passes the same `out`.

    Returns
    -------
    Tensor
        [g, n]. Differentiable in all three (to any order, in both modes, under ``torch.func`` and ``torch.compile``).

    Raises
    ------
    ValueError
        If `out` shares memory with an argument, or a derivative is asked of it.
    TypeError
        If `out` is not a tensor.
    RuntimeError
        By the operator, if shapes, dtypes or devices do not fit together.

    Examples
    --------
    >>> parameter_points(torch.zeros(2), torch.eye(2), torch.tensor([[1.0, 0.0], [0.5, 2.0]]))
    tensor([[1.0000, 0.0000],
            [0.5000, 2.0000]])
    """
    if out is not None:
        _check_out(out, theta=theta, directions=directions, coordinates=coordinates)
        ops.parameter_points_out(theta, directions, coordinates, out)
        return out
    return _apply(theta, directions, coordinates)


def _apply(theta: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    function: type[torch.autograd.Function] = _Points if torch.compiler.is_compiling() else _TransformablePoints
    result: Tensor = function.apply(theta, directions, coordinates)
    return result


def _check_out(out: Tensor, **inputs: Tensor) -> None:
    checks.floating("parameter_points", "out", out)
    for name, tensor in inputs.items():
        if torch.is_grad_enabled() and (tensor.requires_grad or out.requires_grad):
            raise ValueError("parameter_points: out= has no derivative; call it without, or under torch.no_grad()")
        if out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() and out.numel() > 0:
            raise ValueError(f"parameter_points: out must not share memory with {name}, got a view of it")


class _Points(torch.autograd.Function):
    """The operator forward; backward by matrix products, which are differentiable in turn."""

    @staticmethod
    def forward(theta: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
        result: Tensor = ops.parameter_points(theta, directions, coordinates)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _, directions, coordinates = inputs
        ctx.save_for_backward(directions, coordinates)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        directions, coordinates = ctx.saved_tensors
        needs_theta, needs_directions, needs_coordinates = ctx.needs_input_grad
        return (
            gradient.sum(0) if needs_theta else None,
            coordinates.T @ gradient if needs_directions else None,
            gradient @ directions.T if needs_coordinates else None,
        )


class _TransformablePoints(_Points):
    """The same with rules for jvp and vmap, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _Points.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(ctx: Any, theta: Tensor | None, directions: Tensor | None, coordinates: Tensor | None) -> Tensor:
        at_directions, at_coordinates = ctx.saved_tensors
        tangent: Tensor = at_coordinates.new_zeros(at_coordinates.shape[0], at_directions.shape[1])
        if theta is not None:
            tangent = tangent + theta
        if directions is not None:
            tangent = tangent + at_coordinates @ directions
        if coordinates is not None:
            tangent = tangent + coordinates @ at_directions
        return tangent

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], theta: Tensor, directions: Tensor, coordinates: Tensor
    ) -> tuple[Tensor, int]:
        theta_dim, directions_dim, coordinates_dim = in_dims
        if theta_dim is None and directions_dim is None:  # one set of directions: more points of it
            stacked = coordinates.movedim(coordinates_dim or 0, 0)
            points = _apply(theta, directions, stacked.flatten(0, 1))
            return points.unflatten(0, stacked.shape[:2]), 0
        batch = info.batch_size
        thetas = theta.movedim(theta_dim, 0) if theta_dim is not None else theta.expand(batch, -1)
        sets = directions.movedim(directions_dim, 0) if directions_dim is not None else directions.expand(batch, -1, -1)
        if coordinates_dim is None:  # one set of coordinates: longer vectors
            longer = sets.transpose(0, 1).flatten(1)
            points = _apply(thetas.flatten(), longer, coordinates)
            return points.unflatten(1, thetas.shape), 1
        each = zip(thetas, sets, coordinates.movedim(coordinates_dim, 0), strict=True)
        return torch.stack([_apply(*one) for one in each]), 0


@register_fake("parameter_points")
def _(theta: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    return theta.new_empty(coordinates.shape[0], theta.shape[0])


@register_fake("parameter_points_out")
def _(theta: Tensor, directions: Tensor, coordinates: Tensor, out: Tensor) -> None:
    return None
