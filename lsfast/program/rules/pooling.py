r"""Pooling: linear in x, once the places of the maxima are known.

A maximum over windows selects one element of each, :math:`\dot y_i = \dot x_{s(i)}`; s is kept as offsets in memory
order of x, so that channels_last images stay so. An average over windows is the same operation on tangents. An adaptive
average is that where its sizes divide those of x, else a matrix for each dimension, :math:`y = P_1 x P_2^T`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from lsfast.program.rules.rule import Activity, Rule, register_rule
from lsfast.program.rules.selection import scatter, select

aten = torch.ops.aten


class MaximumPool(Rule):
    """Maxima over windows, as a selection of places.

    Parameters
    ----------
    dims
        The number of spatial dimensions.
    several
        Whether the operation returns the places too.
    """

    curved = False

    def __init__(self, active: Activity, dims: int, several: bool) -> None:
        super().__init__(active)
        self.dims = dims
        self.several = several

    def pooled(self, x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        """Return the maxima and their places within each plane of x."""
        raise TypeError(f"{type(self).__name__} does not define pooled")

    def overlap(self, x: Tensor, *options: Any) -> bool:
        """Return whether windows may overlap, so that two maxima may be at the same place."""
        raise TypeError(f"{type(self).__name__} does not define overlap")

    def forward(self, x: Tensor, *options: Any) -> Any:
        self.constants = (None,) * len(options)
        self.distinct = not self.overlap(x, *options)
        y, places = self.pooled(x, *options)
        leading, plane = x.shape[: -self.dims], x.shape[-self.dims :].numel()
        first = torch.arange(leading.numel(), device=x.device).view(*leading, *(1,) * self.dims)
        if self.dims == 2 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            self.axes, channels = [0, 2, 3, 1], leading[1]
            offsets = (places + first // channels * plane).mul_(channels).add_(first % channels)
        else:
            self.axes = list(range(x.dim()))
            offsets = places + first * plane
        self.index = offsets.permute(self.axes).flatten()
        self.input_shape, self.result_shape = ([t.shape[axis] for axis in self.axes] for t in (x, y))
        return (y, places) if self.several else y

    def jvp(self, x: Tensor, *_: None) -> Any:
        y = self._logical(select(self._in_memory(x), self.index), self.result_shape)
        return (y, None) if self.several else y

    def vjp(self, adjoints: Any) -> tuple[Tensor | None, ...]:
        y = self._in_memory(adjoints[0] if self.several else adjoints)
        x = scatter(y, self.index, torch.Size(self.input_shape).numel(), distinct=self.distinct)
        return self._logical(x, self.input_shape), *self.constants

    def _in_memory(self, rows: Tensor) -> Tensor:
        """Return rows of images as rows of numbers in the memory order of x."""
        return rows.permute(0, *(axis + 1 for axis in self.axes)).flatten(1)

    def _logical(self, rows: Tensor, shape: list[int]) -> Tensor:
        """Return rows of numbers in the memory order of x as rows of images."""
        inverse = (self.axes.index(axis) + 1 for axis in range(len(shape)))
        return rows.view(len(rows), *shape).permute(0, *inverse)


class WindowMaximum(MaximumPool):
    """Maxima over windows of a given size; the schemas of all dimensions are alike."""

    def pooled(self, x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        y, places = getattr(aten, f"max_pool{self.dims}d_with_indices")(x, *options)
        return y, places

    def overlap(self, x: Tensor, *options: Any) -> bool:
        kernel, stride, _, dilation, _ = options
        windows = (_each(kernel, self.dims), _each(stride or kernel, self.dims), _each(dilation, self.dims))
        return any(step < d * (size - 1) + 1 for size, step, d in zip(*windows, strict=True))


class AdaptiveMaximum(MaximumPool):
    """Maxima over as many windows as asked for."""

    def pooled(self, x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        y, places = getattr(aten, f"adaptive_max_pool{self.dims}d")(x, *options)
        return y, places

    def overlap(self, x: Tensor, *options: Any) -> bool:
        return any(n % m for n, m in zip(x.shape[-self.dims :], _each(options[0], self.dims), strict=True))


class AveragePool(Rule):
    """Averages over windows in `dims` dimensions: the operation and its adjoint on the rows as a longer batch."""

    curved = False

    def __init__(self, active: Activity, dims: int) -> None:
        super().__init__(active)
        self.dims = dims

    def forward(self, x: Tensor, *options: Any) -> Tensor:
        self.constants = (None,) * len(options)
        kernel, stride, padding, ceil_mode, count_padding, *divisor = options
        return self.over_windows(x, kernel, stride or kernel, padding, ceil_mode, count_padding, *divisor)

    def over_windows(
        self,
        x: Tensor,
        kernel: Any,
        stride: Any,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> Tensor:
        """Keep the windows and return the averages of x."""
        self.shape = x.shape
        windows = [_each(option, self.dims) for option in (kernel, stride, padding)]
        if self.dims == 1:  # a sequence is an image of height 1
            windows = [(one, *window) for one, window in zip((1, 1, 0), windows, strict=True)]
        self.options = (*windows, ceil_mode, count_padding, divisor)
        return self.jvp(x[None])[0]

    def jvp(self, x: Tensor, *_: None) -> Tensor:
        average = aten.avg_pool3d if self.dims == 3 else aten.avg_pool2d
        return self._apart(average(self._together(x), *self.options), x)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        y = self._together(adjoints)
        # Only the shape and the memory format of x count.
        memory_format = torch.channels_last if self.dims == 2 and _is_channels_last(y) else torch.contiguous_format
        shape = (len(y), *self._together(y.new_empty(1).expand(1, *self.shape)).shape[1:])
        x = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=memory_format)
        backward = aten.avg_pool3d_backward if self.dims == 3 else aten.avg_pool2d_backward
        return self._apart(backward(y, x, *self.options), adjoints), *self.constants

    def _together(self, rows: Tensor) -> Tensor:
        """Return rows of batches, or of one image, as one batch."""
        batch = rows.flatten(0, rows.dim() - self.dims - 2)
        return batch.unsqueeze(2) if self.dims == 1 else batch

    def _apart(self, batch: Tensor, rows: Tensor) -> Tensor:
        """Return one batch in rows as those it was made of."""
        if self.dims == 1:
            batch = batch.squeeze(2)
        result: Tensor = batch.unflatten(0, rows.shape[: rows.dim() - self.dims - 1])
        return result


class AdaptiveAverage(AveragePool):
    """Averages over as many windows as asked for, of equal size or not."""

    def forward(self, x: Tensor, *options: Any) -> Tensor:
        self.constants = (None,) * len(options)
        sizes, counts = x.shape[-self.dims :], _each(options[0], self.dims, x.shape[-self.dims :])
        self.matrices = None
        if all(m and n % m == 0 for n, m in zip(sizes, counts, strict=True)):
            kernel = [n // m for n, m in zip(sizes, counts, strict=True)]
            return self.over_windows(x, kernel, kernel)
        self.matrices = [_averages(n, m, x) for n, m in zip(sizes, counts, strict=True)]
        y: Tensor = getattr(aten, f"adaptive_avg_pool{self.dims}d")(x, counts)
        return y

    def jvp(self, x: Tensor, *_: None) -> Tensor:
        return super().jvp(x) if self.matrices is None else map_dimensions(x, self.matrices)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        if self.matrices is not None:
            return map_dimensions(adjoints, [matrix.T for matrix in self.matrices]), *self.constants
        if all(n == 1 for n in adjoints.shape[-self.dims :]):  # the mean over an image: no memory for its adjoint
            share: Tensor = adjoints / self.shape[-self.dims :].numel()
            return share.expand(len(adjoints), *self.shape), *self.constants
        return super().vjp(adjoints)


def _averages(n: int, m: int, like: Tensor) -> Tensor:
    """Return the matrix [m, n] of the averages over m windows of n numbers."""
    return adaptive_avg_pool1d(torch.eye(n, dtype=like.dtype, device=like.device)[None], m)[0].T


def map_dimensions(rows: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply the last dimensions of rows by a matrix each: [m, n] makes m numbers of n."""
    for axis, matrix in enumerate(matrices, start=-len(matrices)):
        rows = torch.tensordot(rows, matrix, dims=([axis], [1])).movedim(-1, axis)
    return rows


def _is_channels_last(batch: Tensor) -> bool:
    return batch.is_contiguous(memory_format=torch.channels_last)


def _each(value: Any, n: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return a number for each dimension, given one for all or a list of one or n; None is the default's."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    numbers = numbers * n if len(numbers) == 1 else numbers
    return tuple(default[i] if number is None else number for i, number in enumerate(numbers))


for _dims in (1, 2, 3):
    _maximum = partial(WindowMaximum, dims=_dims)
    register_rule(getattr(aten, f"max_pool{_dims}d").default, partial(_maximum, several=False))
    register_rule(getattr(aten, f"max_pool{_dims}d_with_indices").default, partial(_maximum, several=True))
    _adaptive = partial(AdaptiveMaximum, dims=_dims, several=True)
    register_rule(getattr(aten, f"adaptive_max_pool{_dims}d").default, _adaptive)
    register_rule(getattr(aten, f"avg_pool{_dims}d").default, partial(AveragePool, dims=_dims))
    register_rule(getattr(aten, f"adaptive_avg_pool{_dims}d").default, partial(AdaptiveAverage, dims=_dims))
register_rule(aten._adaptive_avg_pool2d.default, partial(AdaptiveAverage, dims=2))
register_rule(aten._adaptive_avg_pool3d.default, partial(AdaptiveAverage, dims=3))
