r"""Batch norm with running statistics folded into the convolution or linear layer before it.

.. math:: s = w / \sqrt{v + \epsilon}, \qquad W' = s W, \qquad b' = s (b - m) + c

As steps on parameters and buffers alone they run once for all points where no point moves them, and the pass over the
activations is gone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lsfast.program.graph import Program, Slot, Step
from lsfast.program.rules.generic import all_arguments

aten = torch.ops.aten

_LAYERS = (
    *(aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)


def folded(program: Program) -> Program:
    """Return the program with every batch norm that can be folded gone."""
    reads = [slot for step in program.steps for slot, _ in step.read()]
    made = {slot: step for step in program.steps for slot in step.written()}
    steps: list[Step] = list(program.steps)
    shapes = list(program.shapes)
    for norm in program.steps:
        layer = made.get(norm.arguments[0].index) if norm.operation is aten.batch_norm.default else None
        if layer is None or layer.operation not in _LAYERS or norm.arguments[5] or norm.arguments[3] is None:
            continue
        between = layer.written()[0]
        if reads.count(between) > 1 or between in (program.outputs, program.loss):
            continue
        new = _fold(layer, norm, shapes)
        steps[steps.index(layer) : steps.index(layer) + 1] = []
        place = steps.index(norm)
        steps[place : place + 1] = new
    moved = len(steps) - len(program.steps)
    return replace(
        program, steps=tuple(steps), slots=len(shapes), shapes=tuple(shapes), model_steps=program.model_steps + moved
    )


def _fold(layer: Step, norm: Step, shapes: list[tuple[int, ...]]) -> list[Step]:
    """Return the steps that take the place of a layer and its norm; their values get new slots."""
    x, weight, bias, *options = layer.arguments
    _, scale, shift, mean, variance, _, _, epsilon, _ = norm.arguments
    steps: list[Step] = []

    def add(operation: Any, like: Slot, *arguments: Any) -> Slot:
        given = all_arguments(operation, arguments, {})
        shapes.append(shapes[like.index])
        steps.append(Step(operation, given, len(shapes) - 1, (False,) * len(given), None, "constant", layer.where))
        return Slot(len(shapes) - 1)

    factor = add(aten.rsqrt.default, mean, add(aten.add.Scalar, mean, variance, epsilon))
    if scale is not None:
        factor = add(aten.mul.Tensor, mean, factor, scale)
    shape = [-1] + [1] * (1 if layer.operation is aten.linear.default else _kernel_dims(layer) + 1)
    new_weight = add(aten.mul.Tensor, weight, weight, add(aten.view.default, mean, factor, shape))
    centre = add(aten.neg.default, mean, mean) if bias is None else add(aten.sub.Tensor, mean, bias, mean)
    new_bias = add(aten.mul.Tensor, mean, centre, factor)
    if shift is not None:
        new_bias = add(aten.add.Tensor, mean, new_bias, shift)
    steps.append(replace(layer, arguments=(x, new_weight, new_bias, *options), results=norm.results))
    return steps


def _kernel_dims(layer: Step) -> int:
    return int(layer.operation.name().split("::conv")[1][0])
