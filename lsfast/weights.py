"""Which weights of a model a low-precision scheme applies to, and the axis it shares scales along.

A weight is quantized along its contraction, the axis its matrix product sums over, because that is the axis along which
hardware shares a scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lsfast.data import batches, tensors_in

if TYPE_CHECKING:
    from lsfast.objective import Objective

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def quantizable_parameters(objective: Objective) -> tuple[str, ...]:
    """Return the names of the parameters a low-precision scheme applies to by default.

    These are the weights of ``Linear``, ``Conv`` and ``MultiheadAttention`` modules, as far as they are parameters of
    the objective. Left out are parameters with one dimension (biases, norms), embeddings and what is tied to one,
    parameters held by any other module, and the head. The head is the weighted module (one of the three kinds) that
    ran last among those whose output reaches the model's output through operations without weights, norms aside. It is
    found on the first batch: a forward hook marks each module's output in the autograd graph, and the graph is walked
    back from what the loss is given. A model whose last matrix product belongs to no such module (logits by the
    embedding's own weight) has no head to leave out.

    Raises
    ------
    ValueError
        If nothing is left.

    Examples
    --------
    >>> lsfast.studies.quantizable_parameters(objective)
    ('1.weight', '3.weight')
    """
    model = objective.model
    excluded = {id(p) for m in model.modules() if isinstance(m, _EMBEDDINGS) for p in m.parameters(recurse=False)}
    excluded |= {id(weight) for weight in _head_weights(objective)}
    chosen = {id(weight) for module in model.modules() for weight in _weights(module)} - excluded
    names = tuple(name for name, parameter in model.named_parameters() if id(parameter) in chosen)
    kept = tuple(name for name in names if name in set(objective.names))
    if not kept:
        raise ValueError(
            "quantizable_parameters: objective must have a Linear, Conv or MultiheadAttention weight other than its "
            f"head among its parameters, got {', '.join(objective.names[:4])}"
        )
    return kept


def transposed_groups(objective: Objective) -> dict[str, int]:
    """Return the names of the weights of transposed convolutions, each with its number of groups."""
    of = {id(m.weight): m.groups for m in objective.model.modules() if isinstance(m, _ConvTransposeNd)}
    return {name: of[id(p)] for name, p in objective.model.named_parameters() if id(p) in of}


def contraction_last(weight: Tensor, groups: int | None) -> Tensor:
    """View weights [.., *shape] as [.., out, contraction]; `groups` of a transposed convolution, else None.

    `weight` has one leading axis.
    """
    if groups is None:
        return weight.flatten(2)
    grouped = weight.unflatten(1, (groups, -1))  # [.., groups, in/groups, out/groups, ...]
    rows: Tensor = grouped.transpose(2, 3).flatten(3).flatten(1, 2)
    return rows


def contraction_first(rows: Tensor, shape: torch.Size, groups: int | None) -> Tensor:
    """Undo `contraction_last`: [.., out, contraction] -> [.., *shape]."""
    if groups is None:
        return rows.reshape(len(rows), *shape)
    apart = rows.reshape(len(rows), groups, shape[1], shape[0] // groups, *shape[2:])
    return apart.transpose(2, 3).reshape(len(rows), *shape)


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights a module multiplies by, its own and not those of its children."""
    held = module._parameters
    names: tuple[str, ...] = ()
    if isinstance(module, (nn.Linear, _ConvNd)):
        names = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = _ATTENTION_WEIGHTS
    for name in names:
        weight = held.get(name)
        if weight is not None and weight.dim() >= 2:
            yield weight


def _head_weights(objective: Objective) -> list[nn.Parameter]:
    """Return the weights of the head, found by walking the autograd graph of the first batch back from its outputs."""
    made: dict[Any, tuple[int, nn.Module]] = {}  # graph node -> (order of the call, module)

    def mark(module: nn.Module, arguments: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                made[tensor.grad_fn] = (len(made), module)

    weighted = [m for m in objective.model.modules() if next(_weights(m), None) is not None]
    hooks = [module.register_forward_hook(mark) for module in weighted]
    try:
        with objective.undisturbed(), torch.enable_grad():
            named = dict(objective.model.named_parameters())
            leaves = {name: parameter.detach().requires_grad_() for name, parameter in named.items()}
            inputs, _ = next(iter(batches(objective.data)))
            outputs = objective.outputs(leaves, inputs)
            reached = _reached(outputs, made)
    finally:
        for hook in hooks:
            hook.remove()
    if not reached:
        return []
    head = max(reached, key=lambda item: item[0])[1]
    children = [head.out_proj] if isinstance(head, nn.MultiheadAttention) else []
    return [weight for module in (head, *children) for weight in _weights(module)]


def _reached(outputs: Any, made: dict[Any, tuple[int, nn.Module]]) -> list[tuple[int, nn.Module]]:
    """Return the marked modules that the outputs depend on with no other weight in between."""
    pending = [tensor.grad_fn for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    seen = set(pending)
    found = []
    while pending:
        node = pending.pop()
        if node in made:
            found.append(made[node])
            continue
        inputs = [after for after, _ in node.next_functions if after is not None]
        if "Norm" not in node.name() and any(_is_weight(after) for after in inputs):
            continue
        for after in inputs:
            if after not in seen:
                seen.add(after)
                pending.append(after)
    return found


def _is_weight(node: Any) -> bool:
    """Whether a graph node is a parameter with two dimensions or more, itself or seen through views."""
    while len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    variable = getattr(node, "variable", None)
    return variable is not None and variable.dim() >= 2
