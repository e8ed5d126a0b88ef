"""A user's model by name, ``package.module:function``: what the commands that study one are given."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsfast.program.errors import first_line, line_of


@dataclass(frozen=True)
class UserModel:
    """A model, a loss and data, as `lsfast.Objective` takes them."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    data: Any


def load_model(name: str, device: str | None = None, dtype: torch.dtype | None = None) -> UserModel:
    """Call the function of a name and move what it returns.

    Parameters
    ----------
    name
        ``package.module:function``, of a function that takes nothing and returns ``(model, loss_fn, data)``.
    device, dtype
        Where the model, the loss (if it is a module) and the data go, and the dtype of their floating-point numbers;
        None: as they are.

    Raises
    ------
    ValueError
        If the name is not of that form, torch does not see the device, or the function fails: the message has its error
        and line.
    TypeError
        If it is not callable, or returns something else.
    ImportError
        If the module cannot be imported or has no such function.

    Examples
    --------
    >>> user = lsfast.studies.load_model("experiment:resnet", device="cuda")
    >>> objective = lsfast.Objective(user.model, user.loss_fn, user.data)
    """
    place = _device(device)
    function = _function(name)
    try:
        found = function()
    except Exception as error:
        raise ValueError(f"load_model: {name}() must return, got {first_line(error)}{line_of(error)}") from error
    if not isinstance(found, (tuple, list)) or len(found) != 3:
        got = f"{type(found).__name__} of length {len(found)}" if hasattr(found, "__len__") else type(found).__name__
        raise TypeError(f"load_model: {name}() must return (model, loss_fn, data), got {got}")
    model, loss_fn, data = found
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"load_model: {name}() must return (model, loss_fn, data) with a torch.nn.Module, got "
            f"{type(model).__name__}"
        )
    if not callable(loss_fn):
        raise TypeError(
            f"load_model: {name}() must return (model, loss_fn, data) with a callable loss_fn, got "
            f"{type(loss_fn).__name__}"
        )
    if place is None and dtype is None:
        return UserModel(model, loss_fn, data)
    for module in (model, loss_fn):
        if isinstance(module, nn.Module):
            module.to(device=place, dtype=dtype)
    return UserModel(model, loss_fn, _moved(data, place, dtype))


def _function(name: str) -> Callable[[], Any]:
    module_name, colon, path = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ValueError(f"load_model: name must be package.module:function, got {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ImportError(
                f"load_model: {module_name!r} must be a module that can be imported, got no module {missing!r} in "
                f"{os.getcwd()!r} nor where Python looks"
            ) from error
        raise ImportError(
            f"load_model: {module_name!r} must be a module that can be imported, got {first_line(error)}"
            f"{line_of(error)}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ImportError(
                f"load_model: {module_name!r} must have a function {path!r}, got a module without {part!r}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"load_model: {name} must be a function, got {type(found).__name__}")
    function: Callable[[], Any] = found
    return function


def _device(device: str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"load_model: device must be cpu or cuda, got {device!r}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"load_model: device must be one torch sees, got {place} of {torch.cuda.device_count()}")
    return place


class _Moved:
    """Data that is moved batch by batch as it is read, each time it is read."""

    def __init__(self, data: Iterable[Any], device: torch.device | None, dtype: torch.dtype | None) -> None:
        self._data, self._device, self._dtype = data, device, dtype

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            yield _moved(batch, self._device, self._dtype)


def _moved(value: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """Return what is held in memory with its tensors moved; other iterables as ones that move what they yield."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_moved(item, device, dtype) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Iterator)):
        return _Moved(value, device, dtype)
    return value
