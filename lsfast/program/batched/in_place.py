"""Element-by-element operations that write over an argument nothing else reads: a pass less through fresh memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.batched.table import Many, align, aten, overloads
from lsfast.program.rules.generic import call_operation

_UNARY = ("relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "hardtanh", "relu6", "mish", "hardswish")
_BINARY = ("add", "sub", "mul")
_counterparts: dict[OpOverload, OpOverload] = {
    operation: getattr(aten, name + "_").default for name in _UNARY for operation in overloads(name)
} | {getattr(aten, name).Tensor: getattr(aten, name + "_").Tensor for name in _BINARY}
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
