"""The three bilinear maps of a convolution, as torch's operations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Geometry:
    """What a convolution is besides its tensors, with a number for each spatial dimension; and its three maps."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def of_images(self) -> Geometry:
        """Return the geometry of sequences as that of images of height 1; any other as it is."""
        if len(self.stride) > 1:
            return self
        return Geometry(
            (1, *self.stride),
            (0, *self.padding),
            (1, *self.dilation),
            self.transposed,
            (0, *self.output_padding),
            self.groups,
        )

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return C(x, w) + b."""
        y: Tensor = aten.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        )
        return y

    def input_adjoint(self, y: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return X(y, w) of spatial size `size`: a convolution of the other kind."""
        extra = self.output_padding
        if not self.transposed:  # where the stride does not divide, the last of x reach no result
            extra = tuple(
                n - ((m - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
                for n, m, kernel, stride, padding, dilation in zip(
                    size, y.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
                )
            )
        return replace(self, transposed=not self.transposed, output_padding=extra).convolve(y, weight)

    def weight_adjoint(self, y: Tensor, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return W(y, x) for a kernel of that size."""
        ends = (x.shape[1], y.shape[1]) if self.transposed else (y.shape[1], x.shape[1])
        weight = x.new_empty(1).expand(ends[0], ends[1] // self.groups, *kernel)  # only its shape counts
        found: Tensor = aten.convolution_backward(
            y,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            [False, True, False],
        )[1]
        return found
