r"""Convolutions and transposed convolutions in one to three dimensions: ``y = x * w + b``, bilinear in x and w.

With the three maps of a convolution, y = C(x, w), its adjoint in x, X(y, w), and its adjoint in w, W(y, x):

.. math::
    \dot y &= C(\dot x, w) + C(x, \dot w) + \dot b \\
    \dot{\bar x} &= X(\dot{\bar y}, w) + X(\bar y, \dot w), \qquad
    \dot{\bar w} = W(\dot{\bar y}, x) + W(\bar y, \dot x), \qquad \dot{\bar b} = \textstyle\sum \dot{\bar y}

The first terms of the first two are one convolution of K B images. The others have a kernel of their own for each
vector: K convolutions, or where those are small one convolution with the K kernels side by side as channels.

Images lie in channels_last memory where that is faster: it halves a convolution on a CPU. A sequence is an image of
height 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lsfast.program.rules.geometry import Geometry
from lsfast.program.rules.rule import Activity, Rule, rule_for

aten = torch.ops.aten

# K kernels go side by side into one convolution where one of them takes at most so many multiply-adds.
# CPU: measured on one core with AVX-512, float32, K = 8, 2 to 32 images of 4x4 to 32x32, 4 to 64 channels, each of
# the four terms, as ratios of interleaved minima: side by side takes 1/6 of the time of K calls at 2e4 multiply-adds,
# 0.7 at 5e6, and 1 to 1.5 from 2e7 on, as the K results are then to be put in order. CUDA: what takes about as long as
# launching it, estimated from the arithmetic rate of an H100, not measured.
WIDE_BELOW = {"cpu": 2**23, "cuda": 2**28}


@rule_for(aten.convolution.default)
class Convolution(Rule):
    """The rule of ``aten.convolution``; those of other overloads only order the arguments after the bias otherwise.

    Attributes
    ----------
    x, weight, adjoint
        Primal images, kernels and adjoint [B, C, H, W], each only where a product needs it.
    """

    x: Tensor
    weight: Tensor
    adjoint: Tensor

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.of_input, self.of_weight, self.of_bias = (bool(flag) for flag in active[:3])
        self.curved = self.of_input and self.of_weight

    def geometry_of(self, kernel: tuple[int, ...], *options: Any) -> Geometry:
        """Return the geometry that the arguments after the bias describe, for a kernel of that size."""
        stride, padding, dilation, transposed, output_padding, groups = options
        n = len(kernel)
        return Geometry(
            _each(stride, n), _each(padding, n), _each(dilation, n), transposed, _each(output_padding, n), groups
        )

    def trailing_of(self, kernel: tuple[int, ...], *options: Any) -> tuple[int, ...]:
        """Return the zeros that are padded at the end alone, in each dimension."""
        return (0,) * len(kernel)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        kernel = tuple(weight.shape[2:])
        self.constants = (None,) * len(options)
        self.dims = len(kernel)
        self.batched = x.dim() == self.dims + 2
        self.trailing = self.trailing_of(kernel, *options)
        self.geometry = self.geometry_of(kernel, *options).of_images()
        self.format = memory_format(x, self.dims)
        images, kernels = self._padded_images(x[None])[0], self._kernels(weight[None])[0]
        y = self.geometry.convolve(images, kernels, bias)
        self.input_shape, self.kernel, self.result_shape = images.shape, kernels.shape[2:], y.shape
        if self.of_weight:
            self.x = images
        if self.of_input:
            self.weight = kernels.contiguous(memory_format=self.format)
        cost = kernels[0].numel() * (images if self.geometry.transposed else y).numel()
        self.wide = self.geometry.groups == 1 and cost <= WIDE_BELOW["cuda" if x.is_cuda else "cpu"]
        return self._plain(y[None])[0]

    def hold(self, adjoint: Tensor) -> None:
        if self.curved:
            self.adjoint = self._images(adjoint[None])[0]

    def jvp(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        total = None
        if x is not None:
            images = self._padded_images(x)
            total = self.geometry.convolve(images.flatten(0, 1), self.weight).unflatten(0, images.shape[:2])
        if weight is not None:
            rows = [(self._kernels(weight), self.result_axis)] + ([] if bias is None else [(bias, 0)])
            total = self._add(total, lambda *kernel: self.geometry.convolve(self.x, *kernel), rows, 1)
        elif bias is not None:
            added = bias.view(len(bias), 1, -1, *(1,) * (len(self.result_shape) - 2))
            total = added.expand(-1, *self.result_shape) if total is None else total.add_(added)
        assert total is not None
        return self._plain(total)

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        return self._adjoints(self._images(adjoints), None, None)

    def vjp_jvp(
        self, adjoints: Tensor, x: Tensor | None, weight: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if x is None or weight is None:
            return self.vjp(adjoints)
        return self._adjoints(self._images(adjoints), self._padded_images(x), self._kernels(weight))

    def _adjoints(self, y: Tensor, x: Tensor | None, weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the adjoints of all arguments: the first terms, and the second where tangents are given."""
        of_input = self._input_adjoint(y, weight) if self.of_input else None
        of_weight = self._weight_adjoint(y, x) if self.of_weight else None
        of_bias = y.sum((1, *range(3, y.dim()))) if self.of_bias else None
        return of_input, of_weight, of_bias, *self.constants

    def _input_adjoint(self, y: Tensor, weight: Tensor | None) -> Tensor:
        size = self.input_shape[2:]
        total = self.geometry.input_adjoint(y.flatten(0, 1), self.weight, size).unflatten(0, y.shape[:2])
        if weight is not None:
            rows = [(weight, 1 - self.result_axis)]
            total = self._add(total, lambda w: self.geometry.input_adjoint(self.adjoint, w, size), rows, 1)
        for axis, zeros in enumerate(self.trailing, start=total.dim() - len(self.trailing)):
            if zeros:
                total = total.narrow(axis, 0, total.shape[axis] - zeros)
        return self._plain(total)

    def _weight_adjoint(self, y: Tensor, x: Tensor | None) -> Tensor:
        axis = self.result_axis
        into = self.into.get(1)
        out = None if into is None else self._kernels(into)
        total = self._add(None, lambda v: self.geometry.weight_adjoint(v, self.x, self.kernel), [(y, 1)], axis, out)
        if x is not None:
            at = self.adjoint
            total = self._add(total, lambda u: self.geometry.weight_adjoint(at, u, self.kernel), [(x, 1)], 1 - axis)
        if into is not None:
            return into
        return total.squeeze(3) if self.dims == 1 else total

    def _add(
        self,
        total: Tensor | None,
        term: Callable[..., Tensor],
        operands: list[tuple[Tensor, int]],
        axis: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Add a term for each vector to the rows of `total`, or make the rows of it (in `out`, if given).

        `operands` are the arguments of the term, in rows, each with the axis of its channels; `axis` is that of the
        channels of the term.
        """
        k = len(operands[0][0])
        if k == 1 or self.wide:
            found = term(*[_side_by_side(rows, channels, self.format) for rows, channels in operands])
            apart = found.unflatten(axis, (k, found.shape[axis] // k)).movedim(axis, 0)
            return _rows_of(apart, k, self.format, out) if total is None else total.add_(apart)
        terms = (term(*[rows[index] for rows, _ in operands]) for index in range(k))
        if total is None:
            return _rows_of(terms, k, self.format, out)
        for row, found in zip(total, terms, strict=True):
            row.add_(found)
        return total

    @property
    def result_axis(self) -> int:
        """The axis of a kernel over the channels of y; the other one is over those of x."""
        return 1 if self.geometry.transposed else 0

    def _images(self, rows: Tensor) -> Tensor:
        """Return rows of x or y as rows of batches of images, one in memory after the other."""
        if not self.batched:
            rows = rows.unsqueeze(1)
        if self.dims == 1:
            rows = rows.unsqueeze(3)
        images = rows.flatten(0, 1).contiguous(memory_format=self.format)
        return images.view(*rows.shape[:2], *images.shape[1:])

    def _padded_images(self, rows: Tensor) -> Tensor:
        if any(self.trailing):
            rows = pad(rows, [n for zeros in reversed(self.trailing) for n in (0, zeros)])
        return self._images(rows)

    def _plain(self, rows: Tensor) -> Tensor:
        """Return rows of batches of images as what they stand for."""
        if self.dims == 1:
            rows = rows.squeeze(3)
        return rows if self.batched else rows.squeeze(1)

    def _kernels(self, rows: Tensor) -> Tensor:
        return rows.unsqueeze(3) if self.dims == 1 else rows


@rule_for(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
class PlainConvolution(Convolution):
    """Convolutions padded by numbers."""

    def geometry_of(self, kernel: tuple[int, ...], *options: Any) -> Geometry:
        stride, padding, dilation, groups = options
        return super().geometry_of(kernel, stride, padding, dilation, False, 0, groups)


@rule_for(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
class NamedPadding(Convolution):
    """Convolutions padded by name: "valid", or "same", which adds an odd zero at the end."""

    def geometry_of(self, kernel: tuple[int, ...], *options: Any) -> Geometry:
        stride, padding, dilation, groups = options
        zeros = [total // 2 for total in _zeros(kernel, padding, dilation)]
        return super().geometry_of(kernel, stride, zeros, dilation, False, 0, groups)

    def trailing_of(self, kernel: tuple[int, ...], *options: Any) -> tuple[int, ...]:
        return tuple(total % 2 for total in _zeros(kernel, options[1], options[2]))


@rule_for(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
class TransposedConvolution(Convolution):
    """Transposed convolutions, whose schema orders the arguments otherwise."""

    def geometry_of(self, kernel: tuple[int, ...], *options: Any) -> Geometry:
        stride, padding, output_padding, groups, dilation = options
        return super().geometry_of(kernel, stride, padding, dilation, True, output_padding, groups)


def _zeros(kernel: tuple[int, ...], padding: str, dilation: Any) -> list[int]:
    """Return how many zeros a padding by name adds in each dimension, at both ends together."""
    if padding == "valid":
        return [0] * len(kernel)
    return [d * (n - 1) for d, n in zip(_each(dilation, len(kernel)), kernel, strict=True)]


def _each(value: Any, n: int) -> tuple[int, ...]:
    """Return a number for each dimension, given one for all or a list of one or n."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return numbers * n if len(numbers) == 1 else numbers


def memory_format(x: Tensor, dims: int) -> torch.memory_format:
    """Return channels last, but for float32 and float64 on CUDA cores, where the kernels for it are slower."""
    exact = x.dtype in (torch.float32, torch.float64)
    if x.is_cuda and exact and torch.backends.cudnn.conv.fp32_precision != "tf32":  # type: ignore[attr-defined]
        return torch.contiguous_format
    return torch.channels_last_3d if dims == 3 else torch.channels_last


def _side_by_side(rows: Tensor, axis: int, memory_format: torch.memory_format) -> Tensor:
    """Join rows [k, ...] along `axis` of what is in a row."""
    k, *shape = rows.shape
    if k == 1:
        return rows[0]
    joined = [n * k if index == axis else n for index, n in enumerate(shape)]
    memory_format = memory_format if len(joined) > 1 else torch.contiguous_format
    together = torch.empty(joined, dtype=rows.dtype, device=rows.device, memory_format=memory_format)
    together.unflatten(axis, (k, shape[axis])).movedim(axis, 0).copy_(rows)
    return together


def _rows_of(terms: Iterable[Tensor], k: int, memory_format: torch.memory_format, out: Tensor | None) -> Tensor:
    """Return k terms as the rows [k, ...] of one tensor: `out`, or one with each row in the memory format."""
    for index, term in enumerate(terms):
        if out is None:
            if k == 1:
                return term[None]
            n, *shape = term.shape
            together = torch.empty((k * n, *shape), dtype=term.dtype, device=term.device, memory_format=memory_format)
            out = together.view(k, n, *shape)
        out[index].copy_(term)
    assert out is not None
    return out
