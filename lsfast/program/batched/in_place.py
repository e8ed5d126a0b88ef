"""Element-by-element operations that write over an argument nothing else reads: a pass less through fresh memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.activate import DTYPES, activate_
from lsfast.program.batched.table import Many, align, aten, call_batched
from lsfast.program.graph import Step
from lsfast.program.rules.generic import call_operation
from lsfast.program.rules.linear_maps import overloads

_UNARY = ("relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "hardtanh", "relu6", "mish", "hardswish")
_BINARY = ("add", "sub", "mul")
_counterparts: dict[OpOverload, OpOverload] = {
    operation: getattr(aten, name + "_").default for name in _UNARY for operation in overloads(name)
} | {getattr(aten, name).Tensor: getattr(aten, name + "_").Tensor for name in _BINARY}
_FASTER_ALONE = ("relu", "gelu_tanh")  # than torch's in place; the others are with a summand
_COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)


def write_over(
    operation: OpOverload, arguments: tuple[Any, ...], many: Many, spare: tuple[bool, ...], shape: list[int]
) -> Tensor | None:
    """Return the result [*shape] in the memory of an argument, None where the operation or the arguments forbid it.

    `spare` says of each argument whether its memory may be taken.
    """
    inner = _counterparts.get(operation)
    if inner is None:
        return None
    name = _activation(operation, arguments)
    if name in _FASTER_ALONE and spare[0]:
        found = _in_order(arguments[0], None, name)
        if found is not None:
            return found
    given, flags = list(arguments), list(many)
    free = [place for place in range(min(2, len(given))) if spare[place] and list(given[place].shape) == shape]
    if not free:
        return None
    if free[0] == 1:
        if operation not in _COMMUTATIVE or (operation is aten.add.Tensor and given[2] != 1):
            return None
        given[:2], flags[:2] = [given[1], given[0]], [flags[1], flags[0]]
    for place in range(1, len(given)):
        if isinstance(given[place], Tensor):
            if given[place].dtype != given[0].dtype:
                return None
            if flags[place]:
                given[place] = align(given[place], given[0].dim() - 1)
    result: Tensor = call_operation(inner, tuple(given))
    return result


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


def _activation(operation: OpOverload, arguments: tuple[Any, ...]) -> str | None:
    if operation is aten.gelu.default:
        return "gelu" if arguments[1] == "none" else "gelu_tanh"
    return {aten.relu.default: "relu", aten.silu.default: "silu"}.get(operation)


def activation_of(step: Step) -> str | None:
    """Return the name of the activation that a step is, None for any other operation."""
    return _activation(step.operation, step.arguments)


def activated(
    operation: OpOverload,
    arguments: tuple[Any, ...],
    many: Many,
    spare: tuple[bool, ...],
    shape: list[int],
    activation: str,
) -> Tensor:
    """Return the activation of a linear layer or a sum, [*shape], in memory of its own or of an argument to spare."""
    fused = (activation, arguments[0].dtype) != ("gelu", torch.float64)  # of which torch's is twice as fast
    if fused and operation is aten.linear.default and (many[0] or many[1]) and len(shape) > 2:
        x, weight, bias = arguments
        y: Tensor = call_batched(operation, (x, weight, None), (many[0], many[1], False))
        if y.dtype in DTYPES and y.is_contiguous():
            rows = y.view(len(y), -1, y.shape[-1])
            added = None if bias is None else bias if many[2] else bias[None]
            activate_(rows, None if added is None else added.contiguous(), activation)
            return y
    sums = operation is aten.add.Tensor and arguments[0].shape == arguments[1].shape
    if fused and sums and list(arguments[0].shape) == shape:
        for place in range(2):
            if spare[place]:
                found = _in_order(arguments[place], arguments[1 - place], activation)
                if found is not None:
                    return found
    over = write_over(operation, arguments, many, spare, shape)
    y = call_batched(operation, arguments, many) if over is None else over
    result: Tensor = _FUNCTIONS[activation](y)
    return result


def _in_order(y: Tensor, x: Tensor | None, activation: str) -> Tensor | None:
    """Write f(y + x) over y, in whatever order the elements lie; None where they are not dense, or x lies otherwise."""
    steps = y.stride()
    order = sorted(range(y.dim()), key=lambda axis: -steps[axis])
    flat = y.permute(order)
    other = None if x is None else x.permute(order)
    if y.dtype not in DTYPES or not flat.is_contiguous():
        return None
    if other is not None and (other.dtype != y.dtype or not other.is_contiguous()):
        return None
    activate_(flat, other, activation)
    return y
