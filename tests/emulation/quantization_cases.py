"""What the emulated tests of the quantization room share: numbers that are hard to round, schemes, comparisons."""

from typing import Any

import torch

import lsfast
from lsfast.formats import QuantScheme
from lsfast.quantization.statistics import GRANULARITIES, statistics_shape
from lsfast.scheme_numbers import scheme_numbers

from .schedules import assert_same_bits, assert_same_under_schedules

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUNDINGS = ["nearest", "stochastic", "toward_zero"]
SEED, STREAM = 1234, 5


def numbers(*shape, dtype=torch.float32, special=False, seed=0):
    """Magnitudes over many binades, both signs, zeros; with `special` also NaN, Inf and the smallest subnormal."""
    generator = torch.Generator().manual_seed(seed)
    spread = 2.0 ** torch.randint(-12, 11, shape, generator=generator)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)
    flat = x.view(-1)
    flat[::7] = 0.0
    flat[3::11] = -0.0
    if special:
        for start, value in enumerate([float("nan"), float("inf"), -float("inf"), 2.0**-149, -3e38]):
            flat[5 + 9 * start :: 61] = value
    return x


def variant(named: str, **changes: Any) -> QuantScheme:
    """A named scheme with some attributes changed."""
    return lsfast.scheme(named).replace(**changes)


def is_square(scheme: QuantScheme) -> bool:
    """Whether the blocks have two dimensions."""
    return isinstance(scheme.block, tuple)


def fake_quantize(library, x, scheme, axis=-1, amax=None, batched=False, derivative=False):
    """Call the operator of a library."""
    return library.fake_quantize(x, amax, scheme_numbers(scheme), axis % x.dim(), batched, derivative, SEED, STREAM)


def one_nan(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with every NaN alike: its sign and payload are the processor's business."""
    return torch.where(x.isnan(), torch.nan, x) if x.is_floating_point() else x


def assert_same_numbers(result: torch.Tensor, expected: torch.Tensor, what: str = "result") -> None:
    """Check that tensors are equal in every bit, but for the sign and payload of NaN."""
    assert_same_bits(one_nan(result), one_nan(expected), what)


def assert_as_on_the_cpu(emulated, x, scheme, axis=-1, **settings):
    """Run the CUDA kernels under every schedule and compare with the CPU's; the result."""
    result = assert_same_under_schedules(lambda: fake_quantize(emulated, x, scheme, axis, **settings))
    expected = fake_quantize(torch.ops.lsfast, x, scheme, axis, **settings)
    assert_same_numbers(result, expected, f"{scheme.name} {scheme.rounding} {x.dtype} {tuple(x.shape)} axis {axis}")
    return result


def with_statistics(library, x, scheme, axis, granularity):
    """The values and the rows of sums [..., 5] of an operator."""
    shape, _ = statistics_shape(x.shape, scheme, axis % x.dim(), granularity)
    out, sums = torch.empty_like(x), torch.zeros(*shape, 5, dtype=torch.float64)
    library.fake_quantize_out(
        x, None, out, sums, GRANULARITIES.index(granularity), scheme_numbers(scheme), axis % x.dim(), False, False,
        SEED, STREAM,
    )  # fmt: skip
    return out, sums
