"""Operations that move elements, or sum over axes, at many parameter sets: the same with every axis one further on."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.batched.table import Many, aten, batched, one_by_one
from lsfast.program.rules.generic import call_operation
from lsfast.program.rules.linear_maps import permutation_of
from lsfast.program.rules.shapes import after_rows


@batched("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")
def _reshape(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, shape = arguments[:2]
    if -1 in shape and x.numel() == 0:
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    return x.reshape(len(x), *shape)  # type: ignore[no-any-return]


@batched("contiguous", "clone", "alias", "detach", "positive", "lift_fresh", "lift", "dropout", "feature_dropout")
@batched("alpha_dropout")
def _same(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    return arguments[0]  # type: ignore[no-any-return]  # nothing is written in place; dropout is in eval mode


@batched("_to_copy", "to.dtype", "to.dtype_layout", "to.device", "float", "double")
def _converted(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    return call_operation(operation, arguments)  # type: ignore[no-any-return]


@batched("flatten.using_ints")
def _flatten(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, start, end = arguments
    if x.dim() == 1:
        return x[:, None]  # type: ignore[no-any-return]
    return x.flatten(after_rows(start, x.dim() - 1), after_rows(end, x.dim() - 1))  # type: ignore[no-any-return]


@batched("unflatten.int", "select.int", "narrow", "slice.Tensor", "squeeze.dim", "unbind.int", "cumsum", "cumprod")
@batched("softmax.int", "log_softmax.int", "_softmax", "_log_softmax", "sort", "glu", "repeat_interleave.self_int")
@batched("split.Tensor", "split.sizes", "split_with_sizes", "chunk")
def _along(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Any:
    """Operations along one axis, their argument ``dim``."""
    names = [argument.name for argument in operation._schema.arguments]
    place = names.index("dim")
    x, dim = arguments[0], arguments[place]
    if x.dim() == 1 or dim is None or any(many[1:]):
        return one_by_one(operation, arguments, many)
    given = (*arguments[:place], after_rows(dim, x.dim() - 1), *arguments[place + 1 :])
    return call_operation(operation, given)


@batched("unsqueeze")
def _unsqueeze(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, dim = arguments
    return x.unsqueeze(dim % x.dim() + 1)  # type: ignore[no-any-return]  # of a result with x.dim() axes beside the sets'


@batched("transpose.int", "permute", "t", "movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
@batched("swapaxes", "swapdims", "mT", "numpy_T", "adjoint", "matrix_H")
def _permute(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x = arguments[0]
    order = permutation_of(operation, arguments, x.dim() - 1)
    assert order is not None
    return x.permute(0, *(axis + 1 for axis in order))  # type: ignore[no-any-return]


@batched("expand", "broadcast_to")
def _expand(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, shape = arguments[:2]
    missing = len(shape) - (x.dim() - 1)
    aligned = x.reshape(len(x), *(1,) * missing, *x.shape[1:])
    return aligned.expand(len(x), *shape)  # type: ignore[no-any-return]  # -1 keeps an axis here too


@batched("cat", "concat", "stack")
def _join(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    tensors, dim = arguments
    flags = many[0]
    assert isinstance(flags, tuple)
    g = next(len(x) for x, flag in zip(tensors, flags, strict=True) if flag)
    if any(x.dim() - flag == 1 and x.numel() == 0 for x, flag in zip(tensors, flags, strict=True)):
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    spread = [x if flag else x.expand(g, *x.shape) for x, flag in zip(tensors, flags, strict=True)]
    new = operation is aten.stack.default
    return call_operation(operation, (spread, dim % (spread[0].dim() - 1 + new) + 1))  # type: ignore[no-any-return]


@batched("sum", "mean")
def _over_all(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    x, dtype = arguments
    flat = x.reshape(len(x), -1)
    return flat.sum(1, dtype=dtype) if operation is aten.sum.default else flat.mean(1, dtype=dtype)  # type: ignore[no-any-return]


@batched("sum.dim_IntList", "mean.dim", "amax", "amin", "logsumexp", "var.correction", "std.correction", "squeeze.dims")
def _over_axes(operation: OpOverload, arguments: tuple[Any, ...], many: Many) -> Tensor:
    """Operations over the axes of ``dim``."""
    x = arguments[0]
    place = [argument.name for argument in operation._schema.arguments].index("dim")
    if x.dim() == 1 or not arguments[place]:
        return one_by_one(operation, arguments, many)  # type: ignore[no-any-return]
    axes = [after_rows(axis, x.dim() - 1) for axis in arguments[place]]
    return call_operation(operation, (*arguments[:place], axes, *arguments[place + 1 :]))  # type: ignore[no-any-return]
