"""States of a model, from wherever they are kept: the parameters [n] of an objective, and the buffers beside them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lsfast import checks
from lsfast.objective import Objective
from lsfast.program.errors import first_line

State = Mapping[str, Any] | str | os.PathLike[str] | nn.Module | Tensor
Buffers = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep it beside the optimizer's


def read_state(function: str, objective: Objective, state: State, name: str = "state") -> tuple[Tensor, Buffers]:
    """Return the parameters [n] of a state in the dtype and on the device of an objective, and its buffers by name.

    Buffers are the floating ones that the model reads (statistics of batch norms in eval mode, not their counters), in
    its dtypes, or none where the state holds none. Parameters of the model that the objective does not vary are not
    read: they stay the model's. Tied weights may have any or all of their names. The prefixes of ``DataParallel`` and
    ``torch.compile`` do not matter.

    Parameters
    ----------
    function, name
        Of the public function and its argument, for messages.
    objective
        Whose model the state is of.
    state
        A state dict, also as ``"state_dict"``, ``"model_state_dict"`` or ``"model"`` in a dict; the path of a file of
        one (``.safetensors``, else what ``torch.save`` wrote); a module of the same architecture; or a vector [n].

    Raises
    ------
    TypeError, ValueError
        If the state has other names, shapes or kinds of numbers than the model, holds some of its floating buffers but
        not all, is not finite in the parameters, or is in a file that cannot be read. The message names the first.
    ImportError
        If a file needs safetensors, which is not installed.
    """
    if isinstance(state, Tensor):
        checks.like(function, name, state, objective.dtype, objective.device)
        if state.shape != (objective.n,):
            raise ValueError(f"{function}: {name} must have shape [{objective.n}], got {list(state.shape)}")
        return _finite(function, name, objective, state.detach().clone()), {}
    if isinstance(state, (str, os.PathLike)):
        name = f"{name} {os.fspath(state)!r}"
    error = f"{function}: {name} must"
    model = objective.model
    aliases: dict[int, list[str]] = {}
    for alias, tensor in _named(model):
        aliases.setdefault(id(tensor), []).append(alias)
    known = dict(_named(model))
    held = _by_known_name(error, _entries(error, state), known)

    def find(first: str) -> Tensor | None:
        names = [alias for alias in aliases[id(known[first])] if alias in held]
        for other in names[1:]:
            if not torch.equal(held[names[0]], held[other]):
                raise ValueError(f"{error} hold one value for the tied {names[0]!r} and {other!r}, got two")
        return held[names[0]] if names else None

    parts = []
    for first in objective.names:
        part = find(first)
        if part is None:
            first_held = f", among {len(held)} with {next(iter(held))!r} first" if held else " in an empty state"
            raise ValueError(f"{error} hold {first!r} of shape {list(known[first].shape)}, got none{first_held}")
        parts.append(part.detach().reshape(-1).to(objective.device, objective.dtype))
    unknown = [key for key, tensor in held.items() if key not in known and tensor.is_floating_point()]
    if unknown:
        raise ValueError(f"{error} hold tensors of the model only, got {unknown[0]!r}")
    vector = _finite(function, name, objective, torch.cat(parts))

    buffers = {}
    own = own_buffers(objective)
    for first, buffer in own.items():
        value = find(first)
        if value is not None:
            buffers[first] = value.detach().to(buffer.device, buffer.dtype, copy=True)
    saved = model.state_dict(keep_vars=True)
    missing = [first for first in own if first in saved and first not in buffers]
    if buffers and missing:
        raise ValueError(f"{error} hold every floating buffer or none, got {next(iter(buffers))!r}, not {missing[0]!r}")
    return vector, buffers


def own_buffers(objective: Objective) -> Buffers:
    """Return the floating buffers that the model reads, by name: its own, not copies.

    Batch norms in train mode normalize by the statistics of the batch: theirs are not among them.
    """
    unread = {
        id(buffer)
        for module in objective.model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for buffer in module.buffers(recurse=False)
    }
    return {
        name: buffer.detach()
        for name, buffer in objective.model.named_buffers()
        if buffer.is_floating_point() and id(buffer) not in unread
    }


def buffers_of(objective: Objective, states: Sequence[Buffers]) -> dict[str, list[Tensor]]:
    """Return, by name, each state's buffer, the model's own where the state holds none.

    Those that are the model's own in every state are left out: they do not vary.
    """
    found = {}
    for name, own in own_buffers(objective).items():
        values = [state.get(name, own) for state in states]
        if any(not torch.equal(value, own) for value in values):
            found[name] = values
    return found


def difference(one: Tensor, other: Tensor) -> Tensor:
    """Return `one` - `other`, 0 where they are equal, also if both are infinite (masks)."""
    return torch.where(one == other, torch.zeros_like(one), one - other)


def _finite(function: str, name: str, objective: Objective, vector: Tensor) -> Tensor:
    if not vector.isfinite().all():
        parts = objective.unflatten(vector).items()
        first = next(part for part, values in parts if not values.isfinite().all())
        raise ValueError(f"{function}: {name} must be finite, got NaN or Inf in {first!r}")
    return vector


def _named(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers of a model, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _entries(error: str, state: Any) -> Mapping[Any, Any]:
    if isinstance(state, nn.Module):
        return dict(_named(state))
    entries = _read_file(error, state) if isinstance(state, (str, os.PathLike)) else state
    if not isinstance(entries, Mapping):
        got = type(entries).__name__
        raise TypeError(f"{error} be a state dict, the path of one, a module or a vector [n], got {got}")
    for key in _WRAPPERS:
        if isinstance(entries.get(key), Mapping):
            inner: Mapping[Any, Any] = entries[key]
            return inner
    return entries


def _read_file(error: str, path: str | os.PathLike[str]) -> Any:
    if os.fspath(path).endswith(".safetensors"):
        safetensors = _safetensors()
        try:
            return safetensors.torch.load_file(os.fspath(path))
        except (OSError, safetensors.SafetensorError) as problem:
            raise ValueError(f"{error} be a whole safetensors file: {first_line(problem)}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as problem:
        raise ValueError(
            f"{error} be a whole file that torch.load reads with weights_only=True: {first_line(problem)}"
        ) from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as problem:
        raise ImportError("states in safetensors files need safetensors: pip install 'lsfast[files]'") from problem
    return safetensors


def _by_known_name(error: str, entries: Mapping[Any, Any], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state by the names the model has for them, checked against the model's."""
    held = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if any(key not in known for key in held):
        bare = {_bare(key): key for key in known}
        if len(bare) == len(known) and len({_bare(key) for key in held}) == len(held):
            held = {bare.get(_bare(key), key): value for key, value in held.items()}
    for key, value in held.items():
        if key not in known:
            continue
        ours = known[key]
        if value.shape != ours.shape:
            raise ValueError(f"{error} hold {key!r} of shape {list(ours.shape)}, got {list(value.shape)}")
        if ours.is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{error} hold floating-point numbers for {key!r}, got {value.dtype}")
    return held


def _bare(name: str) -> str:
    """Return a name without what ``torch.compile`` and ``DataParallel`` put before those of the module in them."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)
