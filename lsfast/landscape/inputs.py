"""The loss as a function of the inputs: an objective whose parameters are what the model is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lsfast import checks
from lsfast.data import batches, plain, rows_of, tensors_in
from lsfast.objective import Objective

_NAME = "input_objective"


def input_objective(
    objective: Objective, rows: int | Sequence[int] | None = None, embedding: str | None = None
) -> Objective:
    r"""Return the same model and loss as a function of the inputs: what lies around single examples.

    .. math:: L(x) = \ell(f_\theta(x), y)

    for rows of the first batch, with the model's parameters fixed where the objective has them. Everything that takes
    an objective takes this one: directions, grids, sharpness, curvature. With ``normalize="filter"`` random directions
    have the norm of each row's own input.

    Parameters
    ----------
    objective
        The model, the loss and the data. Its weight decay, a constant here, is left out.
    rows
        One or more rows of the first batch, along the first axis of all inputs and targets; None: all of them. The loss
        is that over these rows alone, a mean or a sum as the objective's.
    embedding
        The name of a module, such as ``"transformer.wte"``, whose output is varied instead of the inputs: for models of
        tokens, which have no neighbourhood.

    Returns
    -------
    Objective
        Parameters ``"inputs.0"``, ``"inputs.1"`` ...: the floating-point tensors of the inputs in their order (other
        tensors stay as they are), or the one output of the embedding. The user's model is not changed; its parameters
        and buffers are shared, not copied.

    Raises
    ------
    TypeError, ValueError
        If rows are not rows of the first batch, no input is floating-point and no embedding is named, the model has no
        such module, or this does not run exactly once and return a floating-point tensor.

    Examples
    --------
    >>> around = lsfast.input_objective(objective, rows=3)
    >>> lsfast.loss_grid(around, lsfast.random_directions(around, normalize="model"), extent=0.1)
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"{_NAME}: objective must be an Objective, got {type(objective).__name__}")
    with objective.undisturbed():
        inputs, targets = plain(next(batches(objective.data)))
    if rows is not None:
        inputs, targets = _chosen(rows, inputs, targets)
    if embedding is None:
        values = [tensor for tensor in tensors_in(inputs) if tensor.is_floating_point()]
        if not values:
            raise ValueError(f"{_NAME}: embedding must name a module for inputs that are not floating-point, got None")
    else:
        values = [_output_of(objective, embedding, inputs)]
    whole = _OfInputs(_fixed(objective), values, embedding)
    return Objective(
        whole,
        objective.loss_fn,
        (inputs, targets),
        params="inputs.*",
        reduction=objective.reduction,
        count=objective._count,
        output=objective.output,
        engine=objective.engine,
        memory_limit=objective.memory_limit,
        matmul_precision=objective.matmul_precision,
    )


class _OfInputs(nn.Module):
    """A model that is given its own parameters, whatever the inputs or the embedding would have been."""

    def __init__(self, model: nn.Module, values: Sequence[Tensor], embedding: str | None) -> None:
        super().__init__()
        self.model = model
        self.inputs = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in values)
        self.training = model.training
        self._replaces_inputs = embedding is None
        if embedding is not None:
            model.get_submodule(embedding).forward = _Given(self.inputs)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        if self._replaces_inputs:
            given = iter(self.inputs)
            arguments, keywords = _over_tensors(
                (arguments, keywords), lambda tensor: next(given) if tensor.is_floating_point() else tensor
            )
        return self.model(*arguments, **keywords)


class _Given:
    """The forward of a module that returns a parameter, whatever it is given."""

    def __init__(self, inputs: nn.ParameterList) -> None:
        self._inputs = inputs

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        given: Tensor = self._inputs[0]
        return given


def _fixed(objective: Objective) -> nn.Module:
    """Return a copy of the model that shares its tensors, with the parameters the objective has."""
    model = objective.model
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    own = dict(model.named_parameters())
    for name, part in objective.unflatten(objective.parameters).items():
        if not torch.equal(part, own[name]):
            shared[id(own[name])] = nn.Parameter(part.clone(), requires_grad=False)
    return copy.deepcopy(model, shared)


def _output_of(objective: Objective, embedding: str, inputs: Any) -> Tensor:
    """Return the output of the embedding for these inputs."""
    modules = dict(objective.model.named_modules())
    if not isinstance(embedding, str) or embedding not in modules:
        raise ValueError(f"{_NAME}: embedding must be the name of a module of the model, got {embedding!r}")
    found: list[Any] = []
    hook = modules[embedding].register_forward_hook(lambda module, given, output: found.append(output))
    try:
        with objective.undisturbed(), torch.no_grad():
            objective.outputs(objective.unflatten(objective.parameters), inputs)
    finally:
        hook.remove()
    if len(found) != 1:
        raise ValueError(f"{_NAME}: embedding must run once in the model, got {len(found)} times for {embedding!r}")
    return checks.floating(_NAME, "the output of embedding", found[0])


def _chosen(rows: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
    sizes = {tensor.shape[0] for tensor in tensors_in((inputs, targets)) if tensor.dim() > 0}
    if len(sizes) != 1:
        raise ValueError(
            f"{_NAME}: rows must be None where inputs and targets do not share their first axis, got lengths "
            f"{', '.join(str(size) for size in sorted(sizes))}"
        )
    (size,) = sizes
    chosen = [rows] if isinstance(rows, int) else rows
    if not isinstance(chosen, Sequence) or not chosen:
        raise TypeError(f"{_NAME}: rows must be an integer or a sequence of integers, got {rows!r}")
    for row in chosen:
        if checks.positive_integer(_NAME, "rows", row, least=0) >= size:
            raise ValueError(f"{_NAME}: rows must be below the {size} of the first batch, got {row}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{_NAME}: rows must differ from each other, got {list(chosen)}")
    index = torch.tensor(list(chosen))
    return rows_of(inputs, index, size), rows_of(targets, index, size)


def _over_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return arguments with each tensor in them, in their order, replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _over_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_over_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
