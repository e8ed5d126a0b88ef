"""From a model and its loss to a `Program`: capture by ``torch.export``, then plain steps with their rules.

What is not a plain call of an ATen operation is taken apart here: tuples, in-place operations (functionalize.py),
regions without gradient. What cannot be captured raises `CaptureError`, which names the line of the model.
"""

from __future__ import annotations

import io
import logging
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from lsfast.data import call_arguments
from lsfast.program.errors import CaptureError, first_line, line_of, origin
from lsfast.program.functionalize import Versions
from lsfast.program.graph import Program, Slot, Step
from lsfast.program.rules import find_rule
from lsfast.program.rules.generic import all_arguments, generic_rule

aten = torch.ops.aten

_FLAT = {"detach", "sign", "floor", "ceil", "round", "trunc", "zeros_like", "ones_like", "full_like", "empty_like"}
_FLAT |= {"new_zeros", "new_ones", "new_full", "new_empty", "heaviside", "lift_fresh_copy", "sgn", "rand_like"}
_IGNORED = {"_assert_tensor_metadata", "_assert_async", "sym_constrain_range", "_assert_scalar"}


class _BatchLoss(nn.Module):
    """What is exported: (inputs, targets) -> (what the loss is given, loss)."""

    def __init__(self, model: nn.Module, loss_fn: Any, output: Callable[[Any], Any] | None) -> None:
        super().__init__()
        self.model, self.loss_fn, self.output = model, loss_fn, output

    def forward(self, inputs: Any, targets: Any) -> Any:
        arguments, keywords = call_arguments(inputs)
        result = self.model(*arguments, **keywords)
        outputs = result if self.output is None else self.output(result)
        loss = self.loss_fn(outputs, targets)
        return (outputs if isinstance(outputs, Tensor) else None), loss


def signature(inputs: Any, targets: Any) -> Any:
    """Return what a capture depends on in a batch: its structure, the shapes and dtypes of its tensors, the rest."""
    leaves, structure = pytree.tree_flatten((inputs, targets))
    seen = tuple((tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves)
    return structure, seen


def data_tensors(inputs: Any, targets: Any) -> list[Any]:
    """Return the leaves of a batch in the order in which a program counts its data."""
    return list(pytree.tree_flatten((inputs, targets))[0])


def capture(
    model: nn.Module,
    loss_fn: Any,
    output: Callable[[Any], Any] | None,
    names: list[str],
    inputs: Any,
    targets: Any,
) -> Program:
    """Return the program of the loss of one batch as a function of the parameters `names`.

    Raises
    ------
    CaptureError
        If the model has control flow that depends on data, a ``torch.autograd.Function`` of its own, random numbers,
        or anything else that ``torch.export`` does not take.
    """
    whole = _BatchLoss(model, loss_fn, output)
    modes = [(module, module.training) for module in model.modules()]
    whole.training = model.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # With gradients on, so that the model's own no_grad regions are seen.
        # Without the fused modules of inference, which have no derivative.
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings(), _without_graphs(), _no_functions_of_their_own(), torch.enable_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(whole, (inputs, targets), strict=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"Objective: the program engine could not capture the model{line_of(error)}: {first_line(error)}; "
            'pass engine="autograd" to Objective'
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training
    return _Lowering(exported, names, model).program()


@contextmanager
def _without_graphs() -> Iterator[None]:
    """Drop what torch logs and prints of a graph it cannot capture: the error names the line of the model."""
    printed, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logging.disable(before)


@contextmanager
def _no_functions_of_their_own() -> Iterator[None]:
    """Refuse a ``torch.autograd.Function``: a capture would see its forward and lose its backward without a word."""
    original = torch.autograd.Function.__dict__["apply"]

    def refuse(cls: type, *args: Any, **keywords: Any) -> Any:
        if getattr(cls, "captured_whole", False):  # ours: the operator inside has a rule
            return original.__get__(None, cls)(*args, **keywords)
        raise TypeError(f"{cls.__name__} is a torch.autograd.Function, whose derivative a capture does not see")

    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


class _Lowering:
    """Turns an exported program into steps."""

    def __init__(self, exported: Any, names: list[str], model: nn.Module) -> None:
        self.steps: list[Step] = []
        self.slots = 0
        self.active: set[int] = set()
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.parameters: dict[str, int] = {}
        self.others: dict[str, int] = {}
        self.constants: dict[int, Any] = {}
        self.data: dict[int, int] = {}
        self.exported = exported
        self.versions = Versions(self._emit)
        same = _first_names(model)
        inputs = exported.graph_signature
        parameters, buffers = inputs.inputs_to_parameters, inputs.inputs_to_buffers
        lifted = inputs.inputs_to_lifted_tensor_constants
        user = {name: place for place, name in enumerate(inputs.user_inputs)}
        values: dict[fx.Node, Any] = {}
        for node in exported.graph.nodes:
            if node.op != "placeholder":
                continue
            if not isinstance(node.meta.get("val"), Tensor):
                values[node] = node.meta.get("val")
                continue
            slot = self._new_slot(node.meta["val"])
            self.versions.enter(node, slot)
            name = parameters.get(node.name) or buffers.get(node.name)
            if name is not None and name.startswith("model."):
                name = same.get(name.removeprefix("model."), name.removeprefix("model."))
                known = self.parameters.get(name, self.others.get(name))
                if known is not None:
                    self.versions.enter(node, known)
                elif name in names:
                    self.parameters[name] = slot
                    self.active.add(slot)
                else:
                    self.others[name] = slot
            elif node.name in user:
                self.data[user[node.name]] = slot
            else:
                source = exported.state_dict if name is not None else exported.constants
                self.constants[slot] = source[name or lifted[node.name]].detach()
        self.result = self._lower(exported.graph_module, values, detached=False)

    def _new_slot(self, value: Any) -> int:
        self.shapes[self.slots] = tuple(value.shape) if isinstance(value, Tensor) else (0,)
        self.slots += 1
        return self.slots - 1

    def _lower(self, module: fx.GraphModule, values: dict[fx.Node, Any], detached: bool) -> Any:
        """Emit the steps of a graph; return what it returns, with slots for tensors."""
        for node in module.graph.nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], lambda n: self._value(n, values))
            if node.op == "get_attr":
                values[node] = getattr(module, str(node.target))
                if isinstance(values[node], Tensor):
                    slot = self._new_slot(values[node])
                    self.constants[slot] = values.pop(node).detach()
                    self.versions.enter(node, slot)
            elif node.op == "call_function":
                self._call(node, values, detached)
        raise CaptureError("Objective: the captured graph has no output")

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        return values[node] if node in values else Slot(self.versions.slot(node))

    def _call(self, node: fx.Node, values: dict[fx.Node, Any], detached: bool) -> None:
        target = node.target
        if target is operator.getitem:
            source, index = node.args
            if source in values:  # of a region's results
                found = values[source][index]  # type: ignore[index]
                if isinstance(found, Slot):
                    self.versions.enter(node, found.index)
                else:
                    values[node] = found
            return  # of an operation's results: entered with the operation
        if not isinstance(target, OpOverload):
            values[node] = self._region(node, values, detached)
            return
        name = target._schema.name.split("::")[1]
        if name in _IGNORED:
            return
        if name == "broadcast_tensors":
            self._broadcast(node, detached)
            return
        if torch.Tag.nondeterministic_seeded in target.tags and not _is_deterministic_call(target, node):
            raise CaptureError(
                f"Objective: model must be deterministic, got {target}{origin(node)}; call model.eval(), or draw the "
                "random numbers outside"
            )
        self.versions.call(node, values, detached)

    def _broadcast(self, node: fx.Node, detached: bool) -> None:
        """Expand each tensor by itself: each result depends on its own tensor only."""
        sources: Any = node.args[0]
        for user in node.users:
            index: Any = user.args[1]
            source, value = sources[index], node.meta["val"][index]
            slot = self.versions.slot(source)
            if value.shape != source.meta["val"].shape:
                slot = self._emit(
                    aten.expand.default, (Slot(slot), list(value.shape), False), value, detached, origin(node)
                )
            self.versions.enter(user, slot)

    def _region(self, node: fx.Node, values: dict[fx.Node, Any], detached: bool) -> Any:
        """Emit a region with its own gradient mode, or without autocast."""
        name = str(node.target)
        arguments = list(node.args)
        if "set_grad_enabled" in name:
            enabled, inner, given = arguments[0], arguments[1], arguments[2:]
            detached = detached or not enabled
        elif "autocast" in name and arguments[2] is False:
            inner, given = arguments[4], arguments[5:]
        else:
            raise CaptureError(
                f'Objective: the program engine does not take {name}{origin(node)}; pass engine="autograd" to Objective'
            )
        module = values[inner]  # type: ignore[index]
        inside: dict[fx.Node, Any] = {}
        holders = [inner_node for inner_node in module.graph.nodes if inner_node.op == "placeholder"]
        for holder, argument in zip(holders, given, strict=True):
            value = self._value(argument, values) if isinstance(argument, fx.Node) else argument
            if isinstance(value, Slot):
                self.versions.enter(holder, value.index)
            else:
                inside[holder] = value
        return self._lower(module, inside, detached)

    def _emit(
        self, operation: OpOverload, arguments: tuple[Any, ...], results: list[Any] | Any, detached: bool, where: str
    ) -> Any:
        """Add a step; return the slot of its result, or a list of slots."""
        several = isinstance(results, (tuple, list))
        slots = [self._new_slot(value) for value in (results if several else [results])]
        flags = tuple(self._activity(argument) for argument in arguments)
        moving = any(any(flag) if isinstance(flag, tuple) else flag for flag in flags)
        name = operation._schema.name.split("::")[1]
        smooth = [
            slot
            for slot, value in zip(slots, results if several else [results], strict=True)
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        moving = moving and bool(smooth) and not detached and name not in _FLAT
        make, rule = None, "constant"
        if moving:
            self.active.update(smooth)
            make = find_rule(operation) or generic_rule(operation)
            rule = "generic" if find_rule(operation) is None else "native"
        result = tuple(slots) if several else slots[0]
        self.steps.append(Step(operation, arguments, result, flags, make, rule, where))
        return slots if several else slots[0]

    def _activity(self, argument: Any) -> bool | tuple[bool, ...]:
        if isinstance(argument, Slot):
            return argument.index in self.active
        if isinstance(argument, (tuple, list)) and any(isinstance(item, Slot) for item in argument):
            return tuple(isinstance(item, Slot) and item.index in self.active for item in argument)
        return False

    def _own_slot(self, parameter: int) -> Slot:
        """Give outputs that are a parameter itself a slot of their own, which everything reads instead."""
        slot = self.slots
        self.slots += 1
        self.shapes[slot] = self.shapes[parameter]
        self.active.add(slot)
        self.steps = [
            replace(step, arguments=tuple(_redirected(argument, parameter, slot) for argument in step.arguments))
            for step in self.steps
        ]
        make = find_rule(aten.alias.default)
        self.steps.insert(0, Step(aten.alias.default, (Slot(parameter),), slot, (True,), make, "native", ""))
        return Slot(slot)

    def program(self) -> Program:
        """Return the steps that matter, those of the outputs first."""
        outputs, loss = self.result
        if isinstance(outputs, Slot) and outputs.index in self.parameters.values():
            outputs = self._own_slot(outputs.index)
        if not isinstance(loss, Slot):
            raise CaptureError("Objective: loss_fn must return a tensor that depends on the model's outputs")
        z = outputs.index if isinstance(outputs, Slot) and outputs.index in self.active else None
        of_model = _needed(self.steps, z)
        of_loss = _needed(self.steps, loss.index)
        first = [step for index, step in enumerate(self.steps) if index in of_model]
        rest = [step for index, step in enumerate(self.steps) if index in of_loss and index not in of_model]
        kept = [_with_results_read(step, first + rest, {loss.index, z}) for step in first + rest]
        used = {slot for step in kept for slot, _ in step.read()} | {loss.index}
        moving = {slot for step in kept if step.make is not None for slot in step.written()}
        return Program(
            steps=tuple(kept),
            slots=self.slots,
            parameters={name: slot for name, slot in self.parameters.items() if slot in used},
            others={name: slot for name, slot in self.others.items() if slot in used},
            constants={slot: value for slot, value in self.constants.items() if slot in used},
            data={place: slot for place, slot in self.data.items() if slot in used},
            outputs=z,
            loss=loss.index,
            model_steps=len(first) if z is not None else 0,
            through_outputs=z is not None and not _reads_active(rest, z, self.active),
            tangent_size=sum(math.prod(self.shapes[slot]) for slot in moving),
            largest_tangent=max((math.prod(self.shapes[slot]) for slot in moving), default=0),
            active=frozenset(self.active),
            shapes=tuple(self.shapes[slot] for slot in range(self.slots)),
        )


def _redirected(argument: Any, old: int, new: int) -> Any:
    """Return an argument with one slot replaced by another."""
    if isinstance(argument, (tuple, list)):
        return type(argument)(_redirected(item, old, new) for item in argument)
    return Slot(new) if argument == Slot(old) else argument


def _reads_active(steps: list[Step], outputs: int, active: set[int]) -> bool:
    """Whether the loss's own steps read anything that depends on the parameters but the outputs."""
    own = {slot for step in steps for slot in step.written()} | {outputs}
    return any(slot in active and slot not in own for step in steps for slot, _ in step.read())


def _needed(steps: list[Step], slot: int | None) -> set[int]:
    """Return the indices of the steps that a slot depends on."""
    wanted, found = {slot}, set()
    for index in range(len(steps) - 1, -1, -1):
        if wanted.intersection(steps[index].written()):
            found.add(index)
            wanted.update(read for read, _ in steps[index].read())
    return found


def _with_results_read(step: Step, steps: list[Step], ends: set[int | None]) -> Step:
    if not isinstance(step.results, tuple):
        return step
    read = {slot for other in steps for slot, _ in other.read()} | ends
    results = tuple(slot if slot in read else None for slot in step.results)
    return replace(step, results=results)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor (tied weights have several)."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _is_deterministic_call(target: OpOverload, node: fx.Node) -> bool:
    """Whether an operation that may draw random numbers draws none: dropout with p = 0 or in eval mode."""
    values = dict(zip([a.name for a in target._schema.arguments], _plain(target, node), strict=True))
    if target._schema.name == "aten::scaled_dot_product_attention":
        return bool(values["dropout_p"] == 0.0)
    return bool(values.get("train") is False or values.get("training") is False or values.get("p") == 0.0)


def _plain(target: OpOverload, node: fx.Node) -> tuple[Any, ...]:
    return all_arguments(target, node.args, dict(node.kwargs))
