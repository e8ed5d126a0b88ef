"""The CUDA kernels of normalization, emulated, against the CPU kernels."""

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_bits, assert_same_under_schedules

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(result, expected, dtype, terms):
    """Check that results differ by what sums of `terms` terms in another order and a rounding to bfloat16 explain."""
    for a, b in zip(result, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.numel() == 0:
            continue
        # A sum is off by a rounding for each addition, of partial sums of order 10 (products of normal numbers); a
        # result takes at most five sums, each times factors of order 1.
        bound = 5 * terms * torch.finfo(wide(dtype)).eps * max(10.0, float(b.abs().max()))
        if a.dtype == torch.bfloat16:
            bound += 2.0**-7 * float(b.abs().max())
        assert (a.double() - b.double()).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("k", "rows", "columns"), [(3, 5, 40), (1, 1, 1), (2, 37, 9)])
def test_row_norms_are_the_cpus_to_rounding(emulated, dtype, rms, k, rows, columns):
    x, held = draw(rows, columns, dtype=dtype), draw(rows, columns, dtype=dtype, seed=1)
    mean = None if rms else draw(rows, dtype=wide(dtype))
    rstd, weight = draw(rows, dtype=wide(dtype), seed=1).abs() + 0.5, draw(columns, dtype=wide(dtype))
    rstd = rstd.clamp(max=1.0)
    adjoints, dx = draw(k, rows, columns, dtype=dtype, seed=2), draw(k, rows, columns, dtype=dtype, seed=3)
    dw, db = draw(k, columns, dtype=wide(dtype), seed=4), draw(k, columns, dtype=wide(dtype), seed=5)
    terms = columns + rows

    for tangents in ((dx, None, None), (None, dw, db), (dx, dw, db)):

        def jvp(library, tangents=tangents):
            return [library.row_norm_jvp(x, mean, rstd, weight, *tangents)]

        assert_close(assert_same_under_schedules(lambda jvp=jvp: jvp(emulated)), jvp(ops), dtype, terms)
    for extra in ((None, None, None), (held, dx, None), (held, dx, dw)):
        for wants in ((True, True), (True, False), (False, True)):

            def vjp(library, extra=extra, wants=wants):
                return library.row_norm_vjp(adjoints, x, mean, rstd, weight, *extra, *wants)

            assert_close(assert_same_under_schedules(lambda vjp=vjp: vjp(emulated)), vjp(ops), dtype, terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("samples", "channels", "size", "groups"),
    [(3, 4, 40, 1), (3, 4, 7, 3), (260, 5, 1, 1), (3, 40, 1, 1), (1, 1, 1, 1)],
)
def test_channel_norms_are_the_cpus(emulated, dtype, samples, channels, size, groups):
    k = 2
    x, y = draw(samples, channels, size, dtype=dtype), draw(samples, channels, size, dtype=dtype, seed=1)
    a, b = (draw(k, samples, channels, size, dtype=dtype, seed=seed) for seed in (2, 3))
    mean = draw(groups, channels, dtype=wide(dtype))
    coefficients = draw(5, k, groups, channels, dtype=wide(dtype))
    for other in (None, y):

        def sums(library, other=other):
            return library.channel_norm_sums(a, x, mean, other)

        result = assert_same_under_schedules(lambda sums=sums: sums(emulated))
        # A rounding for each addition in another order, of partial sums below that of the magnitudes.
        magnitude = ops.channel_norm_sums(a.abs(), x.abs(), -mean.abs(), None if other is None else y.abs())
        bound = torch.finfo(wide(dtype)).eps * (samples * size + 2) * float(magnitude.max())
        assert (result - sums(ops)).abs().max() <= bound
    for given in ((None, None, None), (a, None, None), (a, b, y)):

        def linear(library, given=given):
            return library.channel_norm_linear(coefficients, x, mean, *given)

        assert_same_bits(assert_same_under_schedules(lambda linear=linear: linear(emulated)), linear(ops))
