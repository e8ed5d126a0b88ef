"""Points around the parameters as one weight holds them under a quantization scheme: formed and rounded in one go."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops, register_fake
from lsfast.formats import QuantScheme
from lsfast.formats import scheme as scheme_of
from lsfast.program.points import parameter_points
from lsfast.scheme_numbers import scheme_numbers

_NAME = "quantized_points"


def quantized_points(
    theta: Tensor,
    directions: Tensor,
    coordinates: Tensor,
    scheme: str | QuantScheme,
    rows: int,
    length: int,
    seed: int | None = None,
    stream: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    r"""Return the points :math:`Q(\theta + \sum_k c_{ik} d_k)` of one weight, Q being `lsfast.fake_quantize`.

    A point is seen as ``[rows, length]`` and quantized along its rows as a tensor of its own: the result has the bits
    of ``fake_quantize(point.view(rows, length), scheme, seed=seed, stream=stream)`` for each point of
    `parameter_points`, for every scheme. Nothing but the quantized numbers is written: numbers are formed where they
    are rounded, from one read of theta and the directions for all points. Blocks of one dimension are formed once;
    whole rows and blocks of two dimensions once for their largest magnitude and once to be rounded. A scale for the
    tensor takes a pass before, which forms each point for its largest magnitude.

    Parameters
    ----------
    theta
        [n], n = rows * length: the weight; float32, float64, bfloat16 or float16.
    directions
        [d, n] with d >= 1, in the dtype and on the device of theta.
    coordinates
        [g, d], the same.
    scheme
        A name of `lsfast.schemes`, any ``eXmY``, or a `QuantScheme`.
    rows, length
        Blocks run along `length`, the last axis of the weight.
    seed
        Required by stochastic rounding. The draws of every point are the same: those of the element in its weight.
    stream
        Number of an independent sequence of draws under one seed.
    out
        [g, n], contiguous: written to and returned. Who evaluates points again and again passes the same `out`.

    Returns
    -------
    Tensor
        [g, n]; it has no derivative.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, rows * length is not n, a seed is missing, `out` shares memory with an
        argument, a derivative is asked for, or (with ``nan="raise"``) a point holds NaN or Inf.
    RuntimeError
        By the operator, if shapes, dtypes or devices do not fit together.

    Examples
    --------
    >>> quantized_points(torch.zeros(2), torch.ones(1, 2), torch.tensor([[0.3], [7.0]]), "e2m1", 1, 2)
    tensor([[0.5000, 0.5000],
            [6.0000, 6.0000]])
    """
    chosen = scheme_of(scheme)
    _check(theta, directions, coordinates, chosen, rows, length, seed, stream)
    if out is None:
        out = theta.new_empty(coordinates.shape[0], theta.shape[0])
    else:
        _check_out(out, theta=theta, directions=directions, coordinates=coordinates)
    with torch.no_grad():
        if chosen.nan == "raise":
            _refuse_nan(theta, directions, coordinates)
        if chosen.element == "fp32" and not chosen.hadamard:
            return parameter_points(theta, directions, coordinates, out=out)
        ops.quantized_points_out(
            theta, directions, coordinates, out, scheme_numbers(chosen), length, 0 if seed is None else seed, stream
        )
    return out


def _check(
    theta: object,
    directions: object,
    coordinates: object,
    scheme: QuantScheme,
    rows: object,
    length: object,
    seed: object,
    stream: object,
) -> None:
    for name, value in (("theta", theta), ("directions", directions), ("coordinates", coordinates)):
        tensor = checks.floating(_NAME, name, value)
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{_NAME}: {name} must not require a derivative, got one that does; use torch.no_grad()")
        if tensor.dim() != (1 if name == "theta" else 2):
            shape = "[n]" if name == "theta" else "[d, n]" if name == "directions" else "[g, d]"
            raise ValueError(f"{_NAME}: {name} must have shape {shape}, got {list(tensor.shape)}")
    n = theta.shape[0]  # type: ignore[attr-defined]
    height = checks.positive_integer(_NAME, "rows", rows)
    width = checks.positive_integer(_NAME, "length", length)
    if height * width != n:
        raise ValueError(f"{_NAME}: rows * length must be the {n} parameters of theta, got {height} * {width}")
    if scheme.hadamard and width % scheme.hadamard:
        raise ValueError(f"{_NAME}: hadamard={scheme.hadamard} must divide length, got {width}")
    if scheme.rounding == "stochastic" and seed is None:
        raise ValueError(f"{_NAME}: seed must be given for stochastic rounding, got None")
    checks.seed(_NAME, 0 if seed is None else seed)
    checks.positive_integer(_NAME, "stream", stream, least=0)


def _check_out(out: object, **inputs: Tensor) -> None:
    tensor = checks.like(_NAME, "out", out, inputs["theta"].dtype, inputs["theta"].device)
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise ValueError(f"{_NAME}: out must not require a derivative, got one that does; use torch.no_grad()")
    for name, given in inputs.items():
        if tensor.numel() > 0 and tensor.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
            raise ValueError(f"{_NAME}: out must not share memory with {name}, got a view of it")


def _refuse_nan(theta: Tensor, directions: Tensor, coordinates: Tensor) -> None:
    for i in range(coordinates.shape[0]):
        bad = ~torch.isfinite(parameter_points(theta, directions, coordinates[i : i + 1])[0])
        if bad.any():
            first, count = int(bad.nonzero()[0]), int(bad.sum())
            raise ValueError(
                f"{_NAME}: points must be finite for nan='raise', got {count} NaN or Inf in point {i}, first at {first}"
            )


@register_fake("quantized_points_out")
def _(theta: Tensor, directions: Tensor, coordinates: Tensor, out: Tensor, *arguments: object) -> None:
    return None
