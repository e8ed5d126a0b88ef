"""The kernels of normalization: against float64, the same bits for any threads and instruction set, bad arguments."""

import pytest
import torch

from lsfast._native import ops
from lsfast.program.rules import find_rule

aten = torch.ops.aten
K = 3


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


CASES = {
    "layer": (aten.layer_norm.default, (37, 40), lambda x, w, b: (x, [40], w, b, 1e-3, True), (0, 2, 3), 40),
    "rms": (aten.rms_norm.default, (37, 40), lambda x, w, b: (x, [40], w, 1e-3), (0, 2), 40),
    "group": (aten.group_norm.default, (3, 6, 5, 4), lambda x, w, b: (x, 2, w, b, 1e-3, True), (0, 2, 3), 6),
    "batch": (
        aten.batch_norm.default,
        (9, 6, 35),
        lambda x, w, b: (x, w, b, None, None, True, 0.1, 1e-3, False),
        (0, 1, 2),
        6,
    ),
}


def parts(case, dtype, layout=lambda x: x, stride=lambda rows: rows):
    """The results of all parts of a rule; inputs are the same numbers in every dtype."""
    operation, shape, arguments, places, channels = CASES[case]
    coarse = torch.bfloat16
    x, w, b = (layout(3 * draw(*shape) + 1), draw(channels, seed=1), draw(channels, seed=2))
    values = arguments(*(each.to(coarse).to(dtype) for each in (x, w, b)))
    active = tuple(place in places for place in range(len(operation._schema.arguments)))
    tangents = [None] * len(values)
    for place in places:
        tangents[place] = stride(draw(K, *values[place].shape, seed=place + 3).to(coarse).to(dtype))
    rule = find_rule(operation)(active)
    y = rule.forward(*values)
    adjoint = draw(*shape, seed=7).to(coarse).to(dtype)
    adjoints = stride(draw(K, *shape, seed=8).to(coarse).to(dtype))
    results = [y, rule.jvp(*tangents), *rule.vjp(adjoints)]
    rule.hold(adjoint)
    results += rule.vjp_jvp(adjoints, *tangents)
    return [result for result in results if result is not None]


@pytest.mark.parametrize("case", CASES)
def test_parts_are_those_of_float64_to_rounding(case):
    exact = parts(case, torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        for result, expected in zip(parts(case, dtype), exact, strict=True):
            assert result.dtype == dtype
            scale = float(expected.abs().max())
            # The arithmetic is float32: about ten roundings a term, statistics among them, and sums of at most 333
            # terms in 16 lanes, 25 additions deep; then one rounding to bfloat16, half a unit of 2^-7.
            bound = 64 * 2.0**-23 + (2.0**-8 if dtype == torch.bfloat16 else 0.0)
            assert (result.double() - expected).abs().max() <= bound * scale


def spaced(rows):
    """The same rows as views of parameter rows [K, n]."""
    view = torch.zeros(K, rows[0].numel() + 5, dtype=rows.dtype)[:, 3 : 3 + rows[0].numel()].view(rows.shape)
    return view.copy_(rows)


@pytest.mark.parametrize("case", CASES)
def test_strides_of_rows_do_not_change_a_bit(case):
    expected = parts(case, torch.float32)
    for stride in (spaced, lambda rows: rows.movedim(0, -1).contiguous().movedim(-1, 0)):
        for result, other in zip(parts(case, torch.float32, stride=stride), expected, strict=True):
            assert torch.equal(result, other)


def test_batch_norm_with_channels_last_is_that_of_planes_to_rounding():
    for result, expected in zip(
        parts("batch", torch.float64, layout=lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1)),
        parts("batch", torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_a_large_mean_costs_no_more_than_its_own_rounding():
    # x - mean is formed before any product: with x = 1000 + noise exactly representable, sums do not cancel.
    noise = torch.round(draw(64, 2, 50) * 64) / 64
    rules = []
    for dtype in (torch.float32, torch.float64):
        rule = find_rule(aten.batch_norm.default)((True, *[False] * 8))
        rule.forward((1000 + noise).to(dtype), None, None, None, None, True, 0.1, 1e-3, False)
        rules.append(rule.jvp(draw(K, 64, 2, 50, seed=1).to(dtype), *[None] * 8))
    # The mean itself is off by a few units of float32 at 1000, 1e-4 against a deviation of 1.
    assert (rules[0].double() - rules[1]).abs().max() <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operators_pass_opcheck(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, rows = draw(5, 6, dtype=dtype), draw(K, 5, 6, dtype=dtype)
    mean, rstd, weight, tangents = draw(5, dtype=wide), draw(5, dtype=wide), draw(6, dtype=wide), draw(K, 6, dtype=wide)
    torch.library.opcheck(ops.row_norm_jvp.default, (x, mean, rstd, weight, rows, tangents, tangents.clone()))
    torch.library.opcheck(ops.row_norm_jvp.default, (x, None, rstd, weight, rows, None, None))
    vjp = (rows, x, mean, rstd, weight)
    torch.library.opcheck(ops.row_norm_vjp.default, (*vjp, x.clone(), rows.clone(), tangents, True, True))
    torch.library.opcheck(ops.row_norm_vjp.default, (*vjp, None, None, None, False, True))
    planes, means = draw(5, 6, 4, dtype=dtype), draw(1, 6, dtype=wide)
    a = draw(K, 5, 6, 4, dtype=dtype)
    torch.library.opcheck(ops.channel_norm_sums.default, (a, planes, means, planes.clone()))
    torch.library.opcheck(ops.channel_norm_sums.default, (a, planes, draw(5, 6, dtype=wide), None))
    coefficients = draw(5, K, 1, 6, dtype=wide)
    linear = ops.channel_norm_linear.default
    torch.library.opcheck(linear, (coefficients, planes, means, a, a.clone(), planes.clone()))
    torch.library.opcheck(linear, (coefficients, planes, means, None, None, None))


def test_operators_name_what_is_wrong():
    x, rows = draw(5, 6), draw(K, 5, 6)
    mean, weight, tangents = draw(5), draw(6), draw(K, 6)
    planes, a, means, c = draw(5, 6, 4), draw(K, 5, 6, 4), draw(1, 6), draw(5, K, 1, 6)
    cases = [
        (lambda: ops.row_norm_jvp(x.int(), None, mean, weight, rows, None, None), "x must be a floating-point tensor"),
        (lambda: ops.row_norm_jvp(x, None, mean, weight, None, None, None), "x_tangents or weight_tangents must be"),
        (
            lambda: ops.row_norm_jvp(x, None, mean[1:], weight, rows, None, None),
            r"rstd must have shape \[5\], got \[4\]",
        ),
        (lambda: ops.row_norm_jvp(x, None, mean, weight.float(), rows, None, None), "weight must be contiguous and to"),
        (lambda: ops.row_norm_jvp(x, None, mean, weight, rows, tangents, None), "must be given together, got one"),
        (lambda: ops.row_norm_jvp(x.T, None, weight, mean, rows.mT, None, None), "x must be contiguous of shape"),
        (
            lambda: ops.row_norm_vjp(rows, x, None, mean, weight, None, rows, None, True, True),
            "held and x_tangents must be given together",
        ),
        (
            lambda: ops.row_norm_vjp(rows, x, None, mean, weight, None, None, tangents, True, True),
            "weight_tangents must be given with x_tangents",
        ),
        (
            lambda: ops.row_norm_vjp(rows.float(), x, None, mean, weight, None, None, None, True, True),
            "adjoints must ha",
        ),
        (
            lambda: ops.channel_norm_sums(a, planes, draw(2, 6), None),
            r"mean must have shape \[1 or 5, 6\], got \[2, 6\]",
        ),
        (
            lambda: ops.channel_norm_sums(a[:, 1:], planes, means, None),
            r"a must have shape \[3, 5, 6, 4\], got \[3, 4,",
        ),
        (
            lambda: ops.channel_norm_linear(c[:4], planes, means, a, None, None),
            r"coefficients must have shape \[5, 3, 1",
        ),
        (
            lambda: ops.channel_norm_linear(c, planes, means, None, a, planes),
            "b and y must be given together and with a",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


PROGRAM = """
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    draw = lambda *shape, to=dtype: torch.randn(*shape, generator=generator, dtype=torch.float64).to(to)
    small = lambda *shape: draw(*shape, to=wide)
    results = []
    for rows, columns in ((300, 129), (40, 16)):
        x, a, b = draw(rows, columns), draw(3, rows, columns), draw(3, rows, columns)
        mean, rstd, w, dw = small(rows), small(rows), small(columns), small(3, columns)
        results.append(ops.row_norm_jvp(x, mean, rstd, w, b, dw, dw))
        results += ops.row_norm_vjp(a, x, mean, rstd, w, x, b, dw, True, True)
        results += ops.row_norm_vjp(a, x, None, rstd, w, None, None, None, True, True)
    for samples, channels, size, groups in ((9, 17, 700, 1), (9, 17, 700, 9), (3000, 17, 1, 1), (300, 300, 1, 1)):
        x, a, b = (draw(*lead, samples, channels, size) for lead in ((), (3,), (3,)))
        mean, c = small(groups, channels), small(5, 3, groups, channels)
        results += [ops.channel_norm_sums(a, x, mean, x), ops.channel_norm_sums(a, x, mean, None)]
        results += [ops.channel_norm_linear(c, x, mean, a, *more) for more in ((b, x), (None, None))]
    add(*results)
"""


def test_bits_are_those_of_every_instruction_set_and_thread_count(assert_same_bits):
    assert_same_bits(PROGRAM)
