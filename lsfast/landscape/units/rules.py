"""What each operation does to units: a table of rules that say what the axes of its result count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from lsfast.landscape.units.groups import Axis, Groups, Mark, Marks, NotFollowed, regrouped
from lsfast.program.graph import Slot, Step

Rule = Callable[["Call"], Marks]
_rules: dict[str, Rule] = {}


class Call:
    """One call of an operation, with the marks of its tensors.

    Parameters
    ----------
    step
        Of the program.
    groups
        Of all units.
    marks_of, shapes
        The marks and the shape of each slot.
    """

    def __init__(
        self, step: Step, groups: Groups, marks_of: Callable[[int], Marks], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        self.groups, self._marks_of, self._shapes = groups, marks_of, shapes
        self.name = step.operation._schema.name.split("::")[1]
        names = [argument.name for argument in step.operation._schema.arguments]
        self.arguments: dict[str, Any] = dict(zip(names, step.arguments, strict=True))
        self.result_shape = shapes[step.written()[0]]

    @property
    def slots(self) -> list[Slot]:
        """The tensors among the arguments, in order."""
        return [value for value in self.arguments.values() if isinstance(value, Slot)]

    def get(self, *names: str) -> Any:
        """Return the argument of one of these names, None if there is none."""
        return next((self.arguments[name] for name in names if name in self.arguments), None)

    def marks(self, slot: Slot) -> Marks:
        """Return the marks of a tensor as they are now."""
        return self._marks_of(slot.index)

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[slot.index]

    def fix(self, slot: Slot, axes: Sequence[int]) -> None:
        """Fix the order of these axes of a tensor."""
        for axis in axes:
            self.groups.fix(self.marks(slot)[axis])

    def broadcast(self, shapes: Sequence[tuple[int, ...]], marks: Sequence[Marks]) -> Marks:
        """Return the marks of a result whose axes meet, aligned at the last."""
        rank = max(map(len, shapes))
        result: list[Mark] = []
        for place in range(-rank, 0):
            here = [(s[place], m[place]) for s, m in zip(shapes, marks, strict=True) if len(s) >= -place]
            long = [mark for size, mark in here if size > 1]
            mark = long[0] if long else None
            for other in long[1:]:
                mark = self.groups.unite(mark, other)
            result.append(mark)
        return tuple(result)


def rule_of(operation: OpOverload) -> Rule:
    """Return the rule of an operation."""
    name = operation._schema.name.split("::")[1]
    if name in _rules:
        return _rules[name]
    return _elementwise if torch.Tag.pointwise in operation.tags else _unknown


def is_reduction(operation: OpOverload) -> bool:
    """Whether an operation sums axes up, so that their order is lost."""
    return rule_of(operation) is _reduction


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _rules.update(dict.fromkeys(names, rule))
        return rule

    return register


def _unknown(call: Call) -> Marks:
    raise NotFollowed("of which it is not known what it does to units")


def _elementwise(call: Call) -> Marks:
    return call.broadcast([call.shape(slot) for slot in call.slots], [call.marks(slot) for slot in call.slots])


@_rule("alias", "clone", "contiguous", "detach", "dropout", "feature_dropout", "alpha_dropout", "to", "_to_copy")
@_rule("softmax", "_softmax", "log_softmax", "_log_softmax", "type_as")
def _same(call: Call) -> Marks:
    return call.marks(call.slots[0])


@_rule("expand", "expand_as", "broadcast_to")
def _expand(call: Call) -> Marks:
    source = call.slots[0]
    new = len(call.result_shape) - len(call.shape(source))
    return call.broadcast([(1,) * new + call.shape(source)], [(None,) * new + call.marks(source)])


@_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def _reshape(call: Call) -> Marks:
    source = call.slots[0]
    return regrouped(call.marks(source), call.shape(source), call.result_shape)


@_rule("t", "transpose", "swapaxes", "permute")
def _permute(call: Call) -> Marks:
    marks = call.marks(call.slots[0])
    order = list(range(len(marks)))
    if call.name == "permute":
        order = [axis % len(marks) for axis in call.get("dims")]
    elif len(marks) > 1:
        i, j = (0, 1) if call.name == "t" else (call.get("dim0", "axis0"), call.get("dim1", "axis1"))
        order[i], order[j] = order[j], order[i]
    return tuple(marks[axis] for axis in order)


@_rule("linear")
def _linear(call: Call) -> Marks:
    x, weight, bias = (call.get(name) for name in ("input", "weight", "bias"))
    call.groups.unite(call.marks(x)[-1], call.marks(weight)[-1])
    outputs = call.marks(weight)[:-1]
    if bias is not None:
        outputs = call.broadcast([call.shape(weight)[:-1], call.shape(bias)], [outputs, call.marks(bias)])
    return (*call.marks(x)[:-1], *outputs)


@_rule("matmul", "mm", "bmm", "addmm", "baddbmm")
def _matmul(call: Call) -> Marks:
    *added, x, y = call.slots
    of_y = len(call.shape(y)) > 1
    call.groups.unite(call.marks(x)[-1], call.marks(y)[-2 if of_y else -1])
    batch = call.broadcast([call.shape(x)[:-2], call.shape(y)[:-2]], [call.marks(x)[:-2], call.marks(y)[:-2]])
    result = (*batch, *call.marks(x)[-2:-1], *(call.marks(y)[-1:] if of_y else ()))
    shapes = [call.result_shape, *(call.shape(slot) for slot in added)]
    return call.broadcast(shapes, [result, *(call.marks(slot) for slot in added)])


@_rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(call: Call) -> Marks:
    x, weight, bias = (call.get(name) for name in ("input", "weight", "bias"))
    shape = call.shape(weight)
    spatial = len(shape) - 2
    call.fix(x, range(-spatial, 0))
    call.fix(weight, range(-spatial, 0))
    channels, parts = call.marks(x)[-spatial - 1], call.get("groups")
    entering, leaving = (0, 1) if call.get("transposed") or "transpose" in call.name else (1, 0)
    if parts == 1:
        call.groups.unite(channels, call.marks(weight)[entering])
    elif leaving == 0 and shape[1] == 1:  # depthwise: each channel has filters of its own
        each = shape[0] // parts
        filters = (
            None if channels is None else Axis(channels.group, channels.units, channels.outer, channels.inner * each)
        )
        call.groups.unite(filters, call.marks(weight)[0])
    else:
        raise NotFollowed(f"with {parts} groups of channels")
    result = call.marks(weight)[leaving]
    if bias is not None:
        result = call.groups.unite(result, call.marks(bias)[0])
    return (*call.marks(x)[: -spatial - 1], result, *(None,) * spatial)


@_rule("batch_norm", "instance_norm", "group_norm", "prelu")
def _channels(call: Call) -> Marks:
    x, *vectors = call.slots
    parts = call.get("num_groups")
    if parts is not None and parts not in (1, call.shape(x)[1]):
        raise NotFollowed(f"with {parts} groups of channels")
    for vector in vectors:
        if call.shape(vector) != (1,):
            call.groups.unite(call.marks(x)[1], call.marks(vector)[0])
    return call.marks(x)


@_rule("layer_norm", "rms_norm")
def _last_axes(call: Call) -> Marks:
    x, *vectors = call.slots
    for vector in vectors:
        call.broadcast([call.shape(x), call.shape(vector)], [call.marks(x), call.marks(vector)])
    return call.marks(x)


def _spatial(call: Call) -> Marks:
    source = call.slots[0]
    count = next(int(letter) for letter in "123" if f"{letter}d" in call.name)
    call.fix(source, range(-count, 0))
    return (*call.marks(source)[:-count], *(None,) * count)


for _dimensions in "123":
    _rule(*(f"{kind}_pool{_dimensions}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")))(_spatial)
    _rule(f"max_pool{_dimensions}d_with_indices", f"upsample_nearest{_dimensions}d")(_spatial)
_rule("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d")(_spatial)


@_rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm")
def _reduction(call: Call) -> Marks:
    """No order matters to what sums an axis up."""
    marks = call.marks(call.slots[0])
    axes = call.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(len(marks)))
    gone = {axis % len(marks) for axis in axes}
    if call.get("keepdim"):
        return tuple(None if axis in gone else mark for axis, mark in enumerate(marks))
    return tuple(mark for axis, mark in enumerate(marks) if axis not in gone)


@_rule("embedding")
def _embedding(call: Call) -> Marks:
    weight, indices = call.get("weight"), call.get("indices")
    call.fix(weight, [0])
    return (*call.marks(indices), call.marks(weight)[1])


@_rule("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "index_select", "flip", "roll")
def _along_an_axis(call: Call) -> Marks:
    source = call.slots[0]
    marks = call.marks(source)
    if call.result_shape == call.shape(source) and call.name == "slice":
        return marks
    axes = call.get("dim", "dims")
    axes = [axis % len(marks) for axis in ([axes] if isinstance(axes, int) else axes)] or range(len(marks))
    if any(marks[axis] is not None for axis in axes):
        raise NotFollowed("along an axis of units")
    removed = axes if call.name in ("select", "unbind") else []
    return tuple(mark for axis, mark in enumerate(marks) if axis not in removed)


@_rule("pad", "constant_pad_nd")
def _pad(call: Call) -> Marks:
    marks, pad = call.marks(call.slots[0]), call.get("pad")
    if any(marks[-1 - place // 2] is not None for place, width in enumerate(pad) if width):
        raise NotFollowed("along an axis of units")
    return marks


@_rule("cat")
def _cat(call: Call) -> Marks:
    parts = call.get("tensors")
    shapes, marks = [call.shape(part) for part in parts], [list(call.marks(part)) for part in parts]
    axis = call.get("dim") % len(shapes[0])
    if any(mark[axis] is not None for mark in marks):
        raise NotFollowed("along an axis of units")
    return call.broadcast(shapes, [tuple(mark) for mark in marks])


@_rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d", "binary_cross_entropy", "kl_div")
@_rule("binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def _loss(call: Call) -> Marks:
    for slot in call.slots:
        call.fix(slot, range(len(call.shape(slot))))
    return (None,) * len(call.result_shape)
