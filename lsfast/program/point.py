"""A program at one point: the rules of its steps, and the passes of tangents and adjoints through them.

A forward pass makes a rule for every step, a backward pass gives each rule its adjoint. After that a Hessian product
for K vectors is one pass of tangents forward and one of adjoint tangents backward; a GGN product is a pass of
tangents to the outputs, the loss's own Hessian, and a pass of adjoints back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lsfast.program.graph import Program, Slot, Step
from lsfast.program.rules.rule import Rule

Layout = dict[str, tuple[int, torch.Size]]
Watch = Callable[[Step, str, Any], None]


class Point:
    """A program at one point: the rules of its steps with the values they keep.

    Parameters
    ----------
    program
        What is evaluated.
    parameters
        Name -> tensor, the chosen ones.
    others
        Name -> tensor, the other parameters and the buffers.
    data
        The leaves of (inputs, targets).
    layout
        Name -> (first, shape) of a chosen parameter in a vector [n].
    watch
        Called with each step, "value" or "derivative", and what it gave: to find where something goes wrong.
    """

    def __init__(
        self,
        program: Program,
        parameters: dict[str, Tensor],
        others: dict[str, Tensor],
        data: list[Any],
        layout: Layout,
        watch: Watch | None = None,
    ) -> None:
        self.program, self.layout, self._watch = program, layout, watch
        self._adjoints: dict[int, Any] = {}  # of the model's values, once the loss's rules have theirs
        self._held = False
        self._plans: dict[tuple[int, int, bool], tuple[dict[int, list[int]], set[int | None]]] = {}
        self._name_of = {slot: name for name, slot in program.parameters.items()}
        values: list[Any] = [None] * program.slots
        for name, slot in program.parameters.items():
            values[slot] = parameters[name]
        for name, slot in program.others.items():
            values[slot] = others[name]
        for slot, value in program.constants.items():
            values[slot] = value
        for place, slot in program.data.items():
            values[slot] = data[place]
        self._given = {value.untyped_storage().data_ptr() for value in values if isinstance(value, Tensor)}
        self._counted: tuple[bool, int] | None = None
        self.rules: list[Rule | None] = []
        last = _last_reads(program)
        for index, step in enumerate(program.steps):
            arguments = tuple(_filled(argument, values) for argument in step.arguments)
            rule = None
            if step.make is None:
                result = step.call(arguments)
            else:
                rule = step.make(step.active)
                result = rule.forward(*arguments)
            del arguments
            if watch is not None:
                watch(step, "value", result)
            self.rules.append(rule)
            step.store(result, values)
            del result
            for slot in last[index]:
                values[slot] = None
        self.loss: Tensor = values[program.loss]
        self.outputs: Tensor | None = None if program.outputs is None else values[program.outputs]

    # -- passes -------------------------------------------------------------------------------------------------------

    def tangents(self, rows: Tensor, to_loss: bool) -> dict[int, Any]:
        """Pass K tangents forward; return those that the way back needs, by slot (and those of the ends)."""
        found = self._of_parameters(rows)
        stop = len(self.program.steps) if to_loss else self.program.model_steps
        self._forward(found, 0, stop, keep=to_loss)
        return found

    def _of_parameters(self, rows: Tensor) -> dict[int, Any]:
        found = {}
        for name, slot in self.program.parameters.items():
            found[slot] = self._part(rows, name)
        return found

    def _forward(self, found: dict[int, Any], start: int, stop: int, keep: bool) -> None:
        last, wanted = self._plan(start, stop, keep)
        for index in range(start, stop):
            step, rule = self.program.steps[index], self.rules[index]
            if rule is None:
                continue
            result = rule.jvp(*_tangent_arguments(step, found))
            if isinstance(step.results, tuple):
                for slot, value in zip(step.results, result, strict=True):
                    if slot in self.program.active:
                        found[slot] = value
            else:
                found[step.results] = result
            for slot in last[index]:
                if slot not in wanted:
                    found.pop(slot, None)

    def _plan(self, start: int, stop: int, keep: bool) -> tuple[dict[int, list[int]], set[int | None]]:
        """Return the slots that are read last at each step, and those whose tangents must stay."""
        if (start, stop, keep) not in self._plans:
            wanted: set[int | None] = {self.program.loss, self.program.outputs}
            if keep:
                for step, rule in zip(self.program.steps[start:stop], self.rules[start:stop], strict=True):
                    if rule is not None and rule.curved:
                        wanted.update(slot for slot, active in step.read() if active)
            self._plans[start, stop, keep] = (_last_reads(self.program, start, stop), wanted)
        return self._plans[start, stop, keep]

    def _backward(
        self,
        adjoints: dict[int, Any],
        start: int,
        stop: int,
        out: Tensor | None,
        tangents: dict[int, Any] | None = None,
        rows: Tensor | None = None,
        hold: bool = False,
    ) -> None:
        """Pass adjoints from the steps before `stop` back to `start`; those of parameters are written to `out` [K, n].

        With `tangents` what is passed are the tangents of the adjoints, and `rows` is what the caller gave. With `hold`
        the rules are given the adjoint, of which there is one row.
        """
        name_of = self._name_of
        written: set[int] = set()
        for index in range(stop - 1, start - 1, -1):
            step, rule = self.program.steps[index], self.rules[index]
            if rule is None:
                continue
            if isinstance(step.results, tuple):
                adjoint: Any = tuple(None if slot is None else adjoints.pop(slot, None) for slot in step.results)
                reached = any(part is not None for part in adjoint)
            else:
                adjoint = adjoints.pop(step.results, None)
                reached = adjoint is not None
            if tangents is not None:
                for slot in step.written():
                    tangents.pop(slot, None)
            if not reached:
                continue
            if out is not None:
                for place, argument in enumerate(step.arguments):
                    if isinstance(argument, Slot) and argument.index in name_of and argument.index not in written:
                        rule.into[place] = self._part(out, name_of[argument.index])
            if tangents is None:
                found = rule.vjp(adjoint)
            else:
                if rule.lent is not None:
                    rule.may_overwrite = self._is_free(index, step.arguments[rule.lent], tangents, rows)
                found = rule.vjp_jvp(adjoint, *_tangent_arguments(step, tangents))
            if self._watch is not None:
                self._watch(step, "derivative", found)
            if hold:
                rule.hold(_single(adjoint))
            del adjoint
            for slot, value in _adjoint_results(step, found):
                name = name_of.get(slot)
                if name is None:
                    adjoints[slot] = value if slot not in adjoints else adjoints[slot] + value
                elif out is not None:
                    part = self._part(out, name)
                    if slot in written:
                        part.add_(value)
                    elif not any(value is place for place in rule.into.values()):
                        part.copy_(value)
                    written.add(slot)
            rule.into.clear()
            del found
        if out is not None and start == 0:
            for name, (first, shape) in self.layout.items():
                if self.program.parameters.get(name) not in written:
                    out[:, first : first + shape.numel()] = 0.0

    def _is_free(self, index: int, argument: Any, tangents: dict[int, Any], rows: Tensor | None) -> bool:
        """Whether the tangents of an argument of a step are needed by no step that is yet to come, nor the caller's."""
        if not isinstance(argument, Slot) or argument.index not in tangents:
            return False
        mine = tangents[argument.index].untyped_storage().data_ptr()
        others = [value for slot, value in tangents.items() if slot != argument.index and isinstance(value, Tensor)]
        if any(x.untyped_storage().data_ptr() == mine for x in (*others, rows) if x is not None):
            return False
        earlier = zip(self.program.steps[:index], self.rules[:index], strict=True)
        return not any(
            rule is not None and rule.curved and (argument.index, True) in step.read() for step, rule in earlier
        )

    def _part(self, rows: Tensor, name: str) -> Tensor:
        """Return the view [K, *shape] of the part of rows [K, n] that belongs to a parameter."""
        first, shape = self.layout[name]
        strides = [1] * len(shape)
        for axis in range(len(shape) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * shape[axis]
        return rows.as_strided((len(rows), *shape), (rows.stride(0), *strides), rows.storage_offset() + first)

    def hold_loss(self) -> None:
        """Give the rules of the loss their adjoints."""
        if not self._adjoints:
            self._adjoints = {self.program.loss: torch.ones_like(self.loss)[None]}
            self._backward(self._adjoints, self.program.model_steps, len(self.program.steps), None, hold=True)

    def hold(self) -> Tensor | None:
        """Give every rule its adjoint; return the adjoint of the parameters [n], None if that had been done before.

        It is the gradient where the loss depends on the parameters through the model alone.
        """
        if self._held:
            return None
        self.hold_loss()
        gradient = self.loss.new_empty(1, sum(shape.numel() for _, shape in self.layout.values()))
        self._backward(dict(self._adjoints), 0, self.program.model_steps, gradient, hold=True)
        self._adjoints = {self.program.loss: None}
        self._held = True
        result: Tensor = gradient[0]
        return result

    def held_bytes(self) -> int:
        """Return the memory of what the rules keep, without parameters and data."""
        if self._counted is None or self._counted[0] != self._held:
            storages: dict[int, int] = {}
            for rule in self.rules:
                for tensor in _tensors_of(rule):
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = int(storage.nbytes())
            count: int = sum(size for at, size in storages.items() if at not in self._given)
            self._counted = (self._held, count)
        return self._counted[1]

    def bytes_per_vector(self) -> int:
        """Return about what one more vector takes: a tangent and an adjoint of every value, and its own n."""
        n = sum(shape.numel() for _, shape in self.layout.values())
        return (2 * self.program.tangent_size + n) * self.loss.element_size()

    def largest_tangent(self) -> int:
        """Return the bytes of the largest tangent of one vector."""
        return self.program.largest_tangent * self.loss.element_size()

    # -- products -----------------------------------------------------------------------------------------------------

    def hvp(self, rows: Tensor, out: Tensor) -> None:
        """Write the Hessian products of rows [K, n] to out [K, n]."""
        self.hold()
        tangents = self.tangents(rows, to_loss=True)
        tangents.pop(self.program.loss, None)
        adjoints = {self.program.loss: self.loss.new_zeros((len(rows), *self.loss.shape))}
        self._backward(adjoints, 0, len(self.program.steps), out, tangents, rows)

    def jvp(self, rows: Tensor) -> Tensor:
        """Return the tangents of the outputs [K, *outputs]."""
        found: Tensor = self.tangents(rows, to_loss=False)[_known(self.program.outputs)]
        return found

    def vjp(self, cotangents: Tensor, out: Tensor) -> None:
        """Write the adjoints of the parameters to out [K, n], given those of the outputs."""
        self._backward({_known(self.program.outputs): cotangents}, 0, self.program.model_steps, out)

    def loss_hessian(self, tangents: Tensor, rows: Tensor) -> Tensor:
        """Return the products of the Hessian of the loss in the outputs with tangents [K, *outputs].

        The tangents may be written over, unless they lie in the memory of `rows`.
        """
        program = self.program
        self.hold_loss()
        found: dict[int, Any] = {_known(program.outputs): tangents}
        self._forward(found, program.model_steps, len(program.steps), keep=True)
        adjoints = {program.loss: self.loss.new_zeros((len(tangents), *self.loss.shape))}
        del tangents
        self._backward(adjoints, program.model_steps, len(program.steps), None, found, rows)
        result: Tensor = adjoints[_known(program.outputs)]
        return result


def _tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a rule, its lists, tuples and dicts, and the rules inside it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_of(item)
    elif isinstance(value, dict):
        yield from _tensors_of(list(value.values()))
    elif isinstance(value, Rule):
        yield from _tensors_of(vars(value))


def _known(slot: int | None) -> int:
    assert slot is not None
    return slot


def _filled(argument: Any, values: list[Any]) -> Any:
    if isinstance(argument, Slot):
        return values[argument.index]
    if isinstance(argument, (tuple, list)):
        return [_filled(item, values) for item in argument]
    return argument


def _tangent_arguments(step: Step, tangents: dict[int, Any]) -> list[Any]:
    found: list[Any] = []
    for argument, flag in zip(step.arguments, step.active, strict=True):
        if isinstance(flag, tuple):
            found.append([tangents.get(a.index) if f else None for a, f in zip(argument, flag, strict=True)])
        else:
            found.append(tangents.get(argument.index) if flag else None)
    return found


def _adjoint_results(step: Step, found: tuple[Any, ...]) -> Iterator[tuple[int, Tensor]]:
    for argument, flag, value in zip(step.arguments, step.active, found, strict=False):
        if isinstance(flag, tuple):
            for item, one, part in zip(argument, flag, value, strict=True):
                if one:
                    yield item.index, part
        elif flag:
            yield argument.index, value


def _last_reads(program: Program, start: int = 0, stop: int | None = None) -> dict[int, list[int]]:
    """Return for each step the slots that no later one reads (the ends are always read)."""
    stop = len(program.steps) if stop is None else stop
    ends = {program.loss, program.outputs}
    found: dict[int, list[int]] = {index: [] for index in range(start, stop)}
    seen = set(ends)
    for index in range(stop - 1, start - 1, -1):
        for slot in {read for read, _ in program.steps[index].read()} | set(program.steps[index].written()):
            if slot not in seen:
                seen.add(slot)
                found[index].append(slot)
    return found


def _single(adjoint: Any) -> Any:
    if isinstance(adjoint, tuple):
        return tuple(None if part is None else part[0] for part in adjoint)
    return adjoint[0]
