"""The kernels of softmax in float32, bfloat16 and float16 against float64, and the exponential they are made of."""

import lsfast._numerics as numerics
import numpy as np
import pytest
import torch

from lsfast._native import ops
from lsfast.program.rules.softmax import LOG_SOFTMAX, LOG_SOFTMAX_ADJOINT, LOG_SUM_EXP, SOFTMAX

K = 3
SHAPES = [(5, 7), (1, 1), (4, 16), (3, 64), (2, 1000), (9, 33)]
STORED = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arithmetic(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def first_derivative(p, t, output):
    mean = (p * t).sum(-1, keepdim=True)
    return {
        SOFTMAX: p * (t - mean),
        LOG_SOFTMAX: t - mean,
        LOG_SUM_EXP: mean[..., 0],
        LOG_SOFTMAX_ADJOINT: t - p * t.sum(-1, keepdim=True),
    }[output]


def second_derivative(p, c, t, a, output):
    less = t - (p * t).sum(-1, keepdim=True)
    if output == SOFTMAX:
        u = c * less + a
        return p * (u - (p * u).sum(-1, keepdim=True))
    if output == LOG_SOFTMAX:
        return a - p * (a.sum(-1, keepdim=True) + c[:, None] * less)
    return p * (a[..., None] + c[:, None] * less)


def bound(expected, dtype, cols, size):
    """What the arithmetic may be off by: two sums of `cols` terms of at most `size`, in `cols` / 16 + 4 additions each,
    and ten more operations, in units of the arithmetic; then one rounding to the dtype."""
    return (2 * (cols / 16 + 4) + 10) * torch.finfo(arithmetic(dtype)).eps * size + torch.finfo(dtype).eps * expected


@pytest.mark.parametrize("output", [SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP, LOG_SOFTMAX_ADJOINT])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", STORED)
def test_tangents_are_those_of_float64_to_rounding(dtype, shape, output):
    p = torch.softmax(normal(*shape), -1).to(arithmetic(dtype))
    t = normal(K, *shape, dtype=dtype, seed=1)
    found = ops.softmax_tangent(p, t, output)
    expected = first_derivative(p.double(), t.double(), output)
    assert found.dtype == dtype
    size = t.double().abs().max() * (shape[1] if output == LOG_SOFTMAX_ADJOINT else 1)
    assert ((found.double() - expected).abs() <= bound(expected.abs(), dtype, shape[1], size)).all()
    if output in (SOFTMAX, LOG_SOFTMAX):
        again = t.clone()
        ops.softmax_tangent_(p, again, output)
        assert torch.equal(again, found)


@pytest.mark.parametrize("output", [SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", STORED)
def test_tangents_of_adjoints_are_those_of_float64_to_rounding(dtype, shape, output):
    p = torch.softmax(normal(*shape), -1).to(arithmetic(dtype))
    c = normal(*(shape if output == SOFTMAX else shape[:1]), dtype=arithmetic(dtype), seed=1)
    t = normal(K, *shape, dtype=dtype, seed=2)
    a = normal(K, *(shape[:1] if output == LOG_SUM_EXP else shape), dtype=dtype, seed=3)
    found = ops.softmax_adjoint_tangent(p, c, t, a, output)
    expected = second_derivative(p.double(), c.double(), t.double(), a.double(), output)
    size = a.double().abs().max() * (shape[1] if output == LOG_SOFTMAX else 1)
    size = size + 2 * c.double().abs().max() * t.double().abs().max()
    assert ((found.double() - expected).abs() <= bound(expected.abs(), dtype, shape[1], size)).all()
    if output == SOFTMAX:
        tangents, adjoints = t.clone(), a.clone()
        ops.softmax_adjoint_tangent_(p, c, tangents, adjoints)
        assert torch.equal(adjoints, found)
        assert torch.equal(tangents, ops.softmax_tangent(p, t, SOFTMAX))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (3, 4, 64), (2, 3, 1000)])
@pytest.mark.parametrize("causal", [-1, 0, 2])
def test_probabilities_are_the_softmax_of_what_a_row_sees(dtype, shape, causal):
    scores = 5 * normal(*shape, dtype=dtype)
    found = scores.clone()
    ops.attention_probabilities_(found, causal)
    if causal >= 0:
        hidden = torch.ones(shape[1:], dtype=torch.bool).triu(causal + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
    expected = torch.softmax(scores.double(), -1)
    # s - max is rounded once, so exp is off by |s - max| eps / 2; exp itself by 1.5 eps; the sum by cols / 16 + 4
    # additions; the reciprocal and the product by one.
    finite = scores.double().nan_to_num(neginf=0)
    spread = float(finite.max() - finite.min())
    relative = (spread + 1.5 + shape[2] / 16 + 4 + 3) * torch.finfo(dtype).eps
    assert ((found.double() - expected).abs() <= relative * expected).all()


def test_a_row_that_sees_nothing_has_no_probability_and_nan_and_inf_are_not_hidden():
    inf, nan = torch.inf, torch.nan
    scores = torch.tensor(
        [[[-inf, -inf, -inf], [0, -inf, 0], [nan, 0, 0], [inf, 0, 0], [-inf, nan, -inf], [-3e38, -3e38, -inf]]]
    )
    ops.attention_probabilities_(scores, -1)
    assert scores[0, 0].tolist() == [0, 0, 0]
    assert scores[0, 1].tolist() == [0.5, 0, 0.5]
    assert scores[0, 2:5].isnan().all()
    assert scores[0, 5].tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_on_vectors_worked_on_together(dtype):
    p = torch.softmax(normal(300, 130, dtype=torch.float32), -1)
    c = normal(300, 130, dtype=torch.float32, seed=1)
    t, a = normal(K, 300, 130, dtype=dtype, seed=2), normal(K, 300, 130, dtype=dtype, seed=3)
    scores = normal(3, 100, 130, dtype=torch.float32, seed=4)

    def products():
        probabilities = scores.clone()
        ops.attention_probabilities_(probabilities, 7)
        return probabilities, ops.softmax_tangent(p, t, 0), ops.softmax_adjoint_tangent(p, c, t, a, 0)

    first = products()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        second = products()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    for j in range(K):
        assert torch.equal(ops.softmax_tangent(p, t[j : j + 1], 0)[0], first[1][j])
        assert torch.equal(ops.softmax_adjoint_tangent(p, c, t[j : j + 1], a[j : j + 1], 0)[0], first[2][j])


def test_bits_do_not_depend_on_the_instruction_set(assert_same_bits):
    # The probabilities are rounded: torch's own softmax may differ between instruction sets.
    assert_same_bits("""
g = torch.Generator().manual_seed(0)
p = torch.softmax(torch.randn(40, 77, generator=g), -1)
p = (p * 2**20).round() / 2**20
c, t, a = (torch.randn(*s, 40, 77, generator=g) for s in ((), (2,), (2,)))
scores = torch.randn(2, 40, 77, generator=g) * 20
ops.attention_probabilities_(scores, 3)
wide = torch.randn(2, 40, 77, generator=g, dtype=torch.float64) * 20
ops.attention_probabilities_(wide, -1)
add(scores, wide, ops.softmax_adjoint_tangent(p, c, t, a, 0), ops.softmax_adjoint_tangent(p, c[:, 0], t, a, 1))
add(*(ops.softmax_tangent(p, t, i) for i in range(4)), ops.softmax_tangent(p, t.bfloat16(), 0))
""")


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.float32, -87.3, 88.7), (np.float64, -708.3, 709.7)])
def test_exponential_is_within_two_units_in_the_last_place(dtype, low, high):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(low, high, 100_000), rng.uniform(-1, 1, 100_000), rng.uniform(-1e-8, 1e-8, 100)])
    x = x.astype(dtype)
    expected = np.exp(x.astype(np.longdouble))  # 64 bits of mantissa: 2^-11 units of float64
    unit = np.spacing(expected.astype(dtype)).astype(np.longdouble)
    assert np.abs(numerics.exponential(x).astype(np.longdouble) - expected).max() > 0
    assert (np.abs(numerics.exponential(x).astype(np.longdouble) - expected) / unit).max() <= 1.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_at_the_ends_of_the_range(dtype):
    limits = np.finfo(dtype)
    x = np.array([-np.inf, -1e30, 0.0, -0.0, 1e30, np.inf, np.nan], dtype=dtype)
    expected = np.array([0, 0, 1, 1, np.inf, np.inf, np.nan], dtype=dtype)
    np.testing.assert_array_equal(numerics.exponential(x), expected)
    lowest = np.log(np.longdouble(limits.smallest_subnormal))
    x = np.linspace(float(lowest), float(np.log(np.longdouble(limits.tiny))), 2001).astype(dtype)
    found = numerics.exponential(x).astype(np.longdouble)
    # Below the normal range: rounded twice, to half a unit each, of the smallest subnormal.
    error = np.abs(found - np.exp(x.astype(np.longdouble)))
    assert (error <= 1.5 * np.longdouble(limits.smallest_subnormal)).all()
    top = np.log(np.longdouble(limits.max))
    x = np.array([top * (1 - 1e-6), top * (1 + 1e-6)]).astype(dtype)
    assert np.isfinite(numerics.exponential(x)).tolist() == [True, False]


def test_operators_meet_torchs_contract():
    p, t, a = torch.softmax(normal(4, 5), -1), normal(K, 4, 5), normal(K, 4, 5, seed=1)
    c, few = normal(4, 5, seed=2), normal(K, 4, seed=3)
    check = torch.library.opcheck
    for output in range(4):
        check(ops.softmax_tangent.default, (p, t, output))
    check(ops.softmax_tangent_.default, (p, t.clone(), SOFTMAX))
    check(ops.softmax_adjoint_tangent.default, (p, c, t, a, SOFTMAX))
    check(ops.softmax_adjoint_tangent.default, (p, c[:, 0], t, a, LOG_SOFTMAX))
    check(ops.softmax_adjoint_tangent.default, (p, c[:, 0], t, few, LOG_SUM_EXP))
    check(ops.softmax_adjoint_tangent_.default, (p, c, t.clone(), a.clone()))
    check(ops.attention_probabilities_.default, (t.clone(), -1))


def test_bad_arguments_are_named():
    p, t = torch.softmax(normal(4, 5), -1), normal(K, 4, 5)
    cases = [
        (ops.softmax_tangent, (p, t[0], 0), "softmax_tangent: tangents must have shape .k, rows, cols., got .4, 5."),
        (ops.softmax_tangent, (p[:3], t, 0), "softmax_tangent: probability must have the shape of a row of tangents"),
        (ops.softmax_tangent, (p.float(), t, 0), "probability must be torch.Double, got torch.Float"),
        (ops.softmax_tangent, (p, t.long(), 0), "tangents must be float32, float64, bfloat16 or float16"),
        (ops.softmax_tangent, (p, t, 4), "output must lie in 0..3, got 4"),
        (ops.softmax_tangent_, (p, t, 2), "output must lie in 0..1, got 2"),
        (ops.softmax_tangent_, (p.T, t.mT, 0), "tangents must be contiguous: it is written in place"),
        (ops.softmax_adjoint_tangent, (p, p[0], t, t, 0), "centered must have the shape of a row of tangents"),
        (ops.softmax_adjoint_tangent, (p, p, t, t[:2], 0), "adjoints must have the shape of tangents"),
        (ops.softmax_adjoint_tangent, (p, p, t, t.float(), 0), "adjoints must have the dtype of tangents"),
        (ops.softmax_adjoint_tangent, (p, p, t, t, 3), "output must lie in 0..2, got 3"),
        (ops.attention_probabilities_, (p, -1), "scores must have shape .matrices, rows, cols., got .4, 5."),
        (ops.attention_probabilities_, (t.bfloat16(), -1), "scores must be float32 or float64"),
    ]
    for operator, arguments, message in cases:
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)


def test_empty_rows_and_vectors():
    for k, rows, cols in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        p, t = torch.zeros(rows, cols), torch.zeros(k, rows, cols)
        assert ops.softmax_tangent(p, t, SOFTMAX).shape == (k, rows, cols)
        assert (ops.softmax_tangent(p, t, LOG_SUM_EXP) == torch.zeros(k, rows)).all()
        assert ops.softmax_adjoint_tangent(p, p, t, t, SOFTMAX).shape == (k, rows, cols)
