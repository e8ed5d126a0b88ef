"""Directions from what an optimizer remembers: momentum, second moments, the update it would make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.landscape.directions import Directions
from lsfast.landscape.span import inner_products
from lsfast.objective import Objective

_NAME = "optimizer_directions"
_USUAL = (("exp_avg", "exp_avg_sq"), ("momentum_buffer",))


def optimizer_directions(
    objective: Objective,
    optimizer: torch.optim.Optimizer | Mapping[str, Any],
    entries: Sequence[str] | None = None,
    normalize: str | None = "model",
    names: Sequence[str] | None = None,
) -> Directions:
    r"""Return directions from the state of an optimizer, such as Adam's m and v.

    .. math:: \text{update} = \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    objective
        Whose parameters the directions are of.
    optimizer
        An optimizer of the model's own parameters, or the ``state_dict()`` of one.
    entries
        One for each direction: a tensor that the optimizer keeps for every parameter, by its name in the state
        (``"exp_avg"``, ``"exp_avg_sq"``, ``"momentum_buffer"`` ...), or ``"update"``, of Adam and AdamW: what their
        last step subtracted, with each group's own learning rate as it is now (v the greatest so far for ``amsgrad``),
        without weight decay that is decoupled from the gradient. None: m and v (``"exp_avg"``, ``"exp_avg_sq"``) where
        there are, else ``"momentum_buffer"``.
    normalize
        ``"model"``: each direction gets the norm of the objective's parameters. None: as it is in the state; then the
        update leads back to where the last step began at 1, and one such step further at -1.
    names
        For a state dict: names of the parameters in the order the optimizer was given them. None: those it keeps
        (``param_names``), else all of the model, or all that require grad, whichever are as many.

    Returns
    -------
    Directions
        vectors [len(entries), n], origin None, labels the entries.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, a parameter of the objective has no state (before the first step), or not the
        one asked for, of its shape; or a direction is 0 or not finite. The message names the first parameter.

    References
    ----------
    Kingma, Ba: Adam: A Method for Stochastic Optimization. ICLR 2015 (m, v and t are theirs; eta is the learning rate).

    Examples
    --------
    >>> lsfast.optimizer_directions(objective, optimizer).labels
    ('exp_avg', 'exp_avg_sq')
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"{_NAME}: objective must be an Objective, got {type(objective).__name__}")
    if normalize is not None:
        checks.one_of(_NAME, "normalize", normalize, ("model",))
    states = _states(objective, optimizer, names)
    first_name, first_state = next(iter(states.items()))
    if entries is None:
        entries = next(
            (usual for usual in _USUAL if all(isinstance(first_state.get(entry), Tensor) for entry in usual)), None
        )
        if entries is None:
            raise ValueError(
                f"{_NAME}: entries must be given for an optimizer that keeps neither exp_avg nor momentum_buffer, got "
                f"{_kept(first_state)} for {first_name!r}"
            )
    if isinstance(entries, str) or not isinstance(entries, Sequence) or not entries:
        raise TypeError(f"{_NAME}: entries must be a sequence of names, got {entries!r}")

    vectors = torch.empty(len(entries), objective.n, dtype=objective.dtype, device=objective.device)
    for entry, vector in zip(entries, vectors, strict=True):
        for name, part in objective.unflatten(vector).items():
            value = _update(name, states[name]) if entry == "update" else _entry(name, states[name], entry)
            if value.shape != part.shape:
                raise ValueError(
                    f"{_NAME}: optimizer must keep {entry} of shape {list(part.shape)} for {name!r}, got "
                    f"{list(value.shape)}"
                )
            part.copy_(value)
        norm = float(inner_products(vector[None], vector[None]).sqrt())
        if not 0.0 < norm < math.inf:
            raise ValueError(f"{_NAME}: {entry} must have a norm that is finite and not 0, got {norm}")
        if normalize is not None:
            theta = objective.parameters[None]
            length = float(inner_products(theta, theta).sqrt())
            if length == 0.0:
                raise ValueError(f"{_NAME}: normalize must be None for parameters that are all 0, got {normalize!r}")
            vector.copy_((vector.double() * (length / norm)).to(vector.dtype))
    return Directions(vectors, None, tuple(entries))


def _states(objective: Objective, optimizer: Any, names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Return name -> what the optimizer keeps for a parameter, and the settings of its group beside it."""
    if isinstance(optimizer, torch.optim.Optimizer):
        if names is not None:
            raise ValueError(f"{_NAME}: names must be None for an optimizer, which knows its parameters, got names")
        own = dict(objective.model.named_parameters())
        key_of: dict[str, Any] = {name: own[name] for name in objective.names}
        groups, state = optimizer.param_groups, optimizer.state
        group_of = {id(parameter): group for group in groups for parameter in group["params"]}
        found = {name: (group_of.get(id(key)), state.get(key)) for name, key in key_of.items()}
    elif isinstance(optimizer, Mapping) and {"state", "param_groups"} <= set(optimizer):
        groups, state = optimizer["param_groups"], optimizer["state"]
        order = _order(objective, groups, names)
        group_by_index = {index: group for group in groups for index in group["params"]}
        found = {name: (group_by_index.get(order.get(name)), state.get(order.get(name))) for name in objective.names}
    else:
        got = type(optimizer).__name__
        raise TypeError(f"{_NAME}: optimizer must be a torch.optim.Optimizer or its state dict, got {got}")
    states = {}
    for name, (group, kept) in found.items():
        if group is None:
            raise ValueError(f"{_NAME}: optimizer must have every parameter of the objective, got none for {name!r}")
        if not kept:
            raise ValueError(
                f"{_NAME}: optimizer must have taken a step on every parameter of the objective, got no state for "
                f"{name!r}"
            )
        states[name] = {**kept, "group": group}
    return states


def _order(objective: Objective, groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> dict[str, Any]:
    """Return name -> index in the state dict."""
    indices = [index for group in groups for index in group["params"]]
    if names is None and all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    if names is None:
        named = dict(objective.model.named_parameters())
        names = list(named)
        if len(names) != len(indices):
            names = [name for name, parameter in named.items() if parameter.requires_grad]
        if len(names) != len(indices):
            raise ValueError(
                f"{_NAME}: names must be given for an optimizer of {len(indices)} parameters and a model of "
                f"{len(named)}, got None"
            )
    if isinstance(names, str) or len(names) != len(indices):
        raise ValueError(f"{_NAME}: names must be those of the optimizer's {len(indices)} parameters, got {names!r}")
    return dict(zip(names, indices, strict=True))


def _entry(name: str, state: Mapping[str, Any], entry: str) -> Tensor:
    value = state.get(entry)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{_NAME}: entries must be kept for every parameter, got {_kept(state)} and no {entry!r} for {name!r}"
        )
    return value


def _update(name: str, state: Mapping[str, Any]) -> Tensor:
    group = state["group"]
    if "amsgrad" not in group or "betas" not in group:  # NAdam and RAdam keep the same and step otherwise
        raise ValueError(
            f"{_NAME}: entries may name update for Adam and AdamW, got an optimizer that keeps {_kept(state)}"
        )
    first, second = (float(beta) for beta in group["betas"])
    steps = float(state["step"])
    moment = _entry(name, state, "exp_avg").double()
    square = _entry(name, state, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq").double()
    rate = float(group["lr"]) / (1.0 - first**steps)
    update: Tensor = rate * moment / ((square / (1.0 - second**steps)).sqrt() + float(group["eps"]))
    return update


def _kept(state: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key, value in state.items() if isinstance(value, Tensor)) or "no tensor"
