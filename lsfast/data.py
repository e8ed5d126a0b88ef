"""The data of an objective: pairs of inputs and targets, how many targets a pair counts, and where it must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Count = Callable[[Any, Any], Any]

_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
_BY_ELEMENT_FUNCTIONS = (
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
)


def batches(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of `data`: one pair, or every pair of a re-iterable."""
    if _is_pair(data):
        yield data
        return
    for index, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"Objective: batch {index} of data must be a pair (inputs, targets), got {_kind(batch)}")
        yield batch[0], batch[1]


def batch_count(data: Any) -> int:
    """Return the number of pairs in `data`; walks over it where it does not know its length."""
    if _is_pair(data):
        return 1
    try:
        return len(data)
    except TypeError:  # also a DataLoader's, over a data set that has no length
        return sum(1 for _ in data)


def subsample(data: Any, rows: int, seed: int) -> list[tuple[Any, Any]]:
    """Return `rows` rows of the data, drawn at random without replacement, as a list of its batches."""
    counts = [_rows(targets) for _, targets in batches(data)]
    total = sum(counts)
    if rows > total:
        raise ValueError(f"subset: rows must be at most the {total} of the data, got {rows}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:rows].sort().values
    chosen, first = [], 0
    for (inputs, targets), count in zip(batches(data), counts, strict=True):
        mine = order[(order >= first) & (order < first + count)] - first
        first += count
        if len(mine):
            chosen.append((rows_of(inputs, mine, count), rows_of(targets, mine, count)))
    return chosen


def rows_of(value: Any, index: Tensor, count: int) -> Any:
    """Return some rows of every tensor of inputs or targets, each of `count` rows."""
    if isinstance(value, Tensor):
        if value.dim() == 0:
            return value
        if value.shape[0] != count:
            raise ValueError(f"subset: tensors of a batch must have {count} rows, got {list(value.shape)}")
        return value[index.to(value.device)]
    if isinstance(value, Mapping):
        return {key: rows_of(item, index, count) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(rows_of(item, index, count) for item in value)
    return value


def check_data(data: Any) -> None:
    """Raise unless `data` is a pair, or can be walked over more than once."""
    if _is_pair(data):
        return
    if not isinstance(data, Iterable):
        raise TypeError(f"Objective: data must be (inputs, targets) or an iterable of such pairs, got {_kind(data)}")
    if isinstance(data, Iterator):
        raise ValueError(
            f"Objective: data must be iterable more than once, got the one-pass iterator {type(data).__name__}; "
            "pass a list of its batches"
        )


def check_device(name: str, value: Any, device: torch.device) -> None:
    """Raise unless every tensor in `value` is on `device`."""
    for tensor in tensors_in(value):
        if tensor.device != device:
            raise ValueError(f"Objective: {name} must be on {device} like the parameters, got {tensor.device}")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tensor, tuple, list or mapping."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def plain(value: Any) -> Any:
    """Return inputs or targets with every mapping in them a dict and every sequence a tuple or list."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(plain(item) for item in value)
    return [plain(item) for item in value] if isinstance(value, list) else value


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (positional, keyword) arguments of the model for inputs given as a tensor, a tuple or a dict."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def denominator_of(loss_fn: Any) -> Count:
    """Return count(inputs, targets): by how much `loss_fn` divides its sum over a batch when it takes the mean.

    A loss of ``torch.nn`` (or its function of ``torch.nn.functional`` itself) is known: cross-entropy and NLL divide by
    the class weights of the targets that are not ignored, elementwise losses by their elements. Of any other callable
    only the rows of the targets are seen.
    """
    if isinstance(loss_fn, _BY_CLASS):
        weight, ignored = loss_fn.weight, loss_fn.ignore_index
        return lambda inputs, targets: _class_count(targets, weight, ignored)
    if loss_fn is functional.cross_entropy or loss_fn is functional.nll_loss:
        return lambda inputs, targets: _class_count(targets, None, -100)
    if is_elementwise(loss_fn):
        return lambda inputs, targets: targets.numel()
    return lambda inputs, targets: _rows(targets)


def is_elementwise(loss_fn: Any) -> bool:
    """Whether this is a loss of PyTorch over the elements of its outputs."""
    return isinstance(loss_fn, _BY_ELEMENT) or any(loss_fn is known for known in _BY_ELEMENT_FUNCTIONS)


def is_known_loss(loss_fn: Any) -> bool:
    """Whether this is a loss of PyTorch over classes or elements, which can be taken apart by rows."""
    by_class = isinstance(loss_fn, _BY_CLASS) or loss_fn is functional.cross_entropy or loss_fn is functional.nll_loss
    return by_class or is_elementwise(loss_fn)


def class_weights(targets: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """Return the weight of each row in a mean over classes [rows], float64: 0 for ignored ones, 1 for probabilities."""
    if targets.dtype.is_floating_point:
        rows = targets.numel() // targets.shape[1] if targets.dim() > 1 else 1
        return torch.ones(rows, dtype=torch.float64, device=targets.device)
    flat = targets.reshape(-1)
    kept = flat != ignored
    return kept.double() if weight is None else weight.double()[torch.where(kept, flat, 0)] * kept


def _class_count(targets: Tensor, weight: Tensor | None, ignored: int) -> float:
    if targets.dtype.is_floating_point:  # probabilities of classes along axis 1: every row counts one
        return targets.numel() / targets.shape[1] if targets.dim() > 1 else 1
    kept = targets[targets != ignored]
    return float(kept.numel() if weight is None else weight[kept].double().sum())


def _rows(targets: Any) -> int:
    for tensor in tensors_in(targets):
        return tensor.shape[0] if tensor.dim() > 0 else 1
    raise ValueError(f"Objective: targets must hold a tensor to be counted, got {_kind(targets)}; pass count=")


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and not _looks_like_batch(data[0], data[1])


def _looks_like_batch(first: Any, second: Any) -> bool:
    """Two (inputs, targets) pairs in a tuple are data of two batches, not one pair."""
    return all(isinstance(item, (tuple, list)) and len(item) == 2 for item in (first, second))


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of length {len(value)}" if hasattr(value, "__len__") else type(value).__name__
