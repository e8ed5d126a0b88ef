"""In-place operations without writing: every write makes a new slot, and views of what was written follow.

A write through a view (``x[:, 0] = 1``) is carried up to the tensor it is a view of, by the operation that is the
view's counterpart (``select_scatter``), and the tensor's other views are taken anew when they are next read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from lsfast.program.errors import CaptureError, origin
from lsfast.program.graph import Slot
from lsfast.program.rules.generic import all_arguments
from lsfast.program.rules.linear_maps import permutation_of

aten = torch.ops.aten

_KEEP_ORDER = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "alias"}
_KEEP_ORDER |= {"view_as", "reshape_as", "to", "detach", "expand_as", "expand", "float", "type_as"}
_MAYBE_VIEWS = {"reshape", "contiguous", "flatten", "to", "reshape_as", "float", "type_as"}

Emit = Callable[..., Any]


@dataclass
class _Value:
    slot: int
    root: fx.Node
    version: int = 0
    parent: fx.Node | None = None
    again: Callable[[int], int] | None = None  # the view of another version of its parent
    scatter: Callable[[int, int], int] | None = None  # the parent with this view of it replaced


class Versions:
    """Which slot holds the present value of each node of a graph."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._values: dict[fx.Node, _Value] = {}
        self._alias: dict[fx.Node, fx.Node] = {}
        self._version: dict[fx.Node, int] = {}

    def enter(self, node: fx.Node, slot: int) -> None:
        """Say that a node's value is in a slot, and is no view."""
        self._values[node] = _Value(slot, node)
        self._version[node] = 0

    def slot(self, node: fx.Node) -> int:
        """Return the slot of the present value of a node."""
        while node in self._alias:
            node = self._alias[node]
        value = self._values[node]
        if value.parent is not None and value.version != self._version[value.root]:
            assert value.again is not None
            value.slot = value.again(self.slot(value.parent))
            value.version = self._version[value.root]
        return value.slot

    def call(self, node: fx.Node, values: dict[fx.Node, Any], detached: bool) -> None:
        """Emit the call of a node, writes turned into new values."""
        operation = node.target
        assert isinstance(operation, OpOverload)
        nodes = all_arguments(operation, node.args, dict(node.kwargs))
        arguments: Any = fx.map_arg(nodes, lambda n: values[n] if n in values else Slot(self.slot(n)))  # type: ignore[arg-type, return-value]
        where = origin(node)
        if operation._schema.is_mutable:
            self._write(node, nodes[0], operation, arguments, detached, where)
            return
        slot = self._emit(operation, tuple(arguments), node.meta["val"], detached, where)
        if isinstance(slot, list):
            for user in node.users:
                index = user.args[1]
                assert isinstance(index, int)
                self._enter_result(user, slot[index], node, nodes, operation, tuple(arguments), index, where)
        else:
            self._enter_result(node, slot, node, nodes, operation, tuple(arguments), None, where)

    def _write(
        self, node: fx.Node, written: Any, operation: OpOverload, arguments: Any, detached: bool, where: str
    ) -> None:
        while written in self._alias:
            written = self._alias[written]
        slot = self._emit(functional_form(operation), tuple(arguments), node.meta["val"], detached, where)
        chain = [written]
        while (parent := self._values[chain[-1]].parent) is not None:
            self.slot(parent)
            chain.append(parent)
        root = chain[-1]
        self._version[root] += 1
        for child, above in zip(chain, [*chain[1:], None], strict=True):
            value = self._values[child]
            value.slot, value.version = slot, self._version[root]
            if above is not None:
                assert value.scatter is not None
                slot = value.scatter(self._values[above].slot, slot)
        self._alias[node] = written

    def _enter_result(
        self,
        node: fx.Node,
        slot: int,
        call: fx.Node,
        nodes: Any,
        operation: OpOverload,
        arguments: tuple[Any, ...],
        index: int | None,
        where: str,
    ) -> None:
        if not _is_view(operation, call):
            self.enter(node, slot)
            return
        parent = nodes[0]
        while parent in self._alias:
            parent = self._alias[parent]
        root = self._values[parent].root

        def again(of: int) -> int:
            results = self._emit(operation, (Slot(of), *arguments[1:]), call.meta["val"], False, where)
            return int(results[index] if index is not None else results)

        def scatter(into: int, child: int) -> int:
            counterpart, rest = _counterpart(operation, arguments, parent.meta["val"], call.meta["val"], index)
            first = (Slot(child),) if counterpart in _INVERSES else (Slot(into), Slot(child))
            return int(self._emit(counterpart, (*first, *rest), parent.meta["val"], False, where))

        self._values[node] = _Value(slot, root, self._version[root], parent, again, scatter)


def functional_form(operation: OpOverload) -> OpOverload:
    """Return the operation that gives what an in-place one writes."""
    name = operation._schema.name.split("::")[1]
    packet = getattr(getattr(torch.ops, operation.namespace), name.removesuffix("_"), None)
    overload = getattr(packet, operation._overloadname, None) if name.endswith("_") else None
    if not isinstance(overload, OpOverload):
        raise CaptureError(
            f"Objective: {operation} writes to its arguments, which the program engine does not take; "
            'pass engine="autograd" to Objective'
        )
    return overload


_INVERSES = {aten.reshape.default, aten.permute.default}


def _counterpart(
    operation: OpOverload, arguments: tuple[Any, ...], whole: Tensor, part: Any, index: int | None
) -> tuple[OpOverload, tuple[Any, ...]]:
    """Return (operation, arguments after the tensors) that puts a view back into what it is a view of."""
    name = operation._schema.name.split("::")[1]
    if name == "select":
        return aten.select_scatter.default, arguments[1:]
    if name == "slice":
        return aten.slice_scatter.default, arguments[1:]
    if name == "unbind":
        return aten.select_scatter.default, (arguments[1], index)
    if name in ("split", "chunk", "split_with_sizes"):
        assert index is not None
        dim = arguments[2]
        first = sum(piece.shape[dim] for piece in part[:index])
        return aten.slice_scatter.default, (dim, first, first + part[index].shape[dim], 1)
    permutation = permutation_of(operation, arguments, whole.dim())
    if permutation is not None:
        return aten.permute.default, ([permutation.index(axis) for axis in range(whole.dim())],)
    if name in _KEEP_ORDER and part.numel() == whole.numel():
        return aten.reshape.default, (list(whole.shape),)
    raise CaptureError(
        f"Objective: a write through {operation} is not taken by the program engine; "
        'pass engine="autograd" to Objective'
    )


def _is_view(operation: OpOverload, node: fx.Node) -> bool:
    """Whether the result of a call shares memory with its first argument."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return False
    name = operation._schema.name.split("::")[1]
    if name in _MAYBE_VIEWS:
        whole, part = source.meta["val"], node.meta["val"]
        if part.dtype != whole.dtype or part.numel() != whole.numel():
            return False
        probe = torch.empty_strided(whole.shape, whole.stride(), device="meta")
        again = probe.contiguous() if name == "contiguous" else probe.reshape(part.shape)
        return again is probe or again._base is probe
    first = operation._schema.arguments[0]
    return first.alias_info is not None and not first.alias_info.is_write
