"""Products of K rows with factors all rows share: exact roundings, any strides, any memory order."""

import pytest
import torch

from lsfast._native import ops
from lsfast.program.rows import combine_rows, scale_rows

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
K = 3
SHAPES = ((), (1,), (7,), (5, 9), (2, 3, 4, 5), (4099,), (0,), (3, 0, 2))


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + len(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def wide(x):
    """The dtype products are computed in: float32 for bfloat16."""
    return x.float() if x.dtype == torch.bfloat16 else x


def scaled(rows, factor):
    return (wide(rows) * wide(factor)).to(rows.dtype)


def combined(a, f, b, g):
    return (wide(a) * wide(f) + wide(b) * wide(g)).to(a.dtype)


def check(a, f, b, g, order=None):
    """Both products have the bits of plain torch, and the strides of `order` where given."""
    before = [x.clone() for x in (a, f, b, g)]
    for result, expected in (
        (scale_rows(a, f), scaled(a, f)),
        (combine_rows(a, f, b, g), combined(a, f, b, g)),
        (scale_rows(a, f, out=torch.full(a.shape, 7.0, dtype=a.dtype)), scaled(a, f)),
        (combine_rows(a, f, b, g, out=a.clone()), combined(a, f, b, g)),
    ):
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)
    for result in (scale_rows(a, f), combine_rows(a, f, b, g)):
        assert order is None or result.stride() == order
    assert all(torch.equal(x, y) for x, y in zip((a, f, b, g), before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_rounded_as_plain_torch_rounds_them(shape, dtype):
    a, b = draw(K, *shape, dtype=dtype, seed=1), draw(K, *shape, dtype=dtype, seed=2)
    f, g = draw(*shape, dtype=dtype, seed=3), draw(*shape, dtype=dtype, seed=4)
    check(a, f, b, g, a.stride())
    for empty in (a[:0], b[:0]):
        assert scale_rows(empty, f).shape == (0, *shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_factors_may_have_any_strides(dtype):
    shape = (4, 3, 5, 6)
    a, b = draw(K, *shape, dtype=dtype, seed=1), draw(K, *shape, dtype=dtype, seed=2)
    f, g = draw(*shape, dtype=dtype, seed=3), draw(*shape, dtype=dtype, seed=4)
    size = f.numel()

    def channels_last(x):
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)

    def spaced(x):  # views of the rows of the parameters [K, n]
        parameters = torch.zeros(K, size + 11, dtype=dtype)
        view = parameters[:, 5 : 5 + size].view(x.shape)
        return view.copy_(x)

    def expanded(x):
        return x[:1].expand(K, *shape)

    def innermost(x):  # K is the fastest axis
        return x.movedim(0, -1).contiguous().movedim(-1, 0)

    last = channels_last(a).stride()
    check(channels_last(a), channels_last(f), channels_last(b), channels_last(g), last)
    check(channels_last(a), f, b, channels_last(g), last)
    check(spaced(a), f, spaced(b), g, a.stride())
    check(expanded(a), f, expanded(b), g, a.stride())
    check(expanded(channels_last(a)), f, b, g, last)
    check(innermost(a), channels_last(f), b, g)
    check(innermost(a), channels_last(f), innermost(b), channels_last(g), last)
    check(a[..., ::2], f[..., ::2], b[..., ::2], g[..., ::2], torch.empty(K, 4, 3, 5, 3).stride())
    check(a, f[:1].expand(shape), b, g[:, :, :1].expand(shape), a.stride())
    check(a.transpose(-1, -2), f.transpose(-1, -2), b.transpose(-1, -2), g.transpose(-1, -2), a.mT.stride())


def test_out_is_written_in_place_whatever_its_order():
    a, f, b, g = draw(K, 6, 4, seed=1), draw(6, 4, seed=2), draw(K, 6, 4, seed=3), draw(6, 4, seed=4)
    for out in (
        a.clone(),
        torch.empty(K, 4, 6).mT,
        torch.empty(K, 6, 8)[..., ::2],
        torch.empty(6, 4, K).movedim(-1, 0),
    ):
        assert combine_rows(a, f, b, g, out=out) is out
        assert torch.equal(out, a * f + b * g)
        assert scale_rows(a, f, out=out) is out
        assert torch.equal(out, a * f)
    for place in (0, 1):
        fresh = [a.clone(), b.clone()]
        combine_rows(fresh[0], f, fresh[1], g, out=fresh[place])
        assert torch.equal(fresh[place], a * f + b * g)


def test_special_values_pass_through():
    a = torch.tensor([[float("nan"), float("inf"), 0.0, 3.4e38]])
    f = torch.tensor([1.0, -1.0, float("inf"), 2.0])
    for dtype in DTYPES:
        result = scale_rows(a.to(dtype), f.to(dtype))
        assert torch.equal(result.isnan(), torch.tensor([[True, False, True, False]]))
        assert result[0, 1] == -float("inf")


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_pass_opcheck(dtype):
    a, f = draw(K, 5, 4, dtype=dtype), draw(5, 4, dtype=dtype)
    torch.library.opcheck(ops.scale_rows.default, (a, f, torch.empty_like(a)))
    torch.library.opcheck(ops.combine_rows.default, (a, f, a * 2, f * 2, torch.empty_like(a)))


def test_operators_name_what_is_wrong():
    a, f = draw(K, 5, 4), draw(5, 4)
    cases = [
        (lambda: scale_rows(a.int(), f.int()), "out must be a floating-point tensor, got torch.Int"),
        (lambda: scale_rows(a, f.double()), "f must have the dtype of out"),
        (lambda: scale_rows(a, f[:4]), r"f must have the shape of a row of out, got \[4, 4\] and \[3, 5, 4\]"),
        (lambda: combine_rows(a, f, a[:2], f), "b must have the shape of out"),
        (lambda: combine_rows(a, f, a, f[0]), "g must have the shape of a row of out"),
        (lambda: ops.scale_rows(a, f.T.contiguous().T, torch.empty_like(a)), "f must have rows in the memory order"),
        (lambda: ops.scale_rows(a, f, a[:1].expand(K, 5, 4)), "out must have rows that do not overlap"),
        (lambda: ops.scale_rows(a[..., ::2], f[:, ::2], a[..., ::2]), "out must have dense rows"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


PROGRAM = """
from lsfast.program.rows import combine_rows, scale_rows

generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    a, b, f, g = (torch.randn(*s, 70001, generator=generator).to(dtype) for s in ((3,), (3,), (), ()))
    add(scale_rows(a, f), combine_rows(a, f, b, g))
"""


def test_bits_are_those_of_every_instruction_set_and_thread_count(assert_same_bits):
    assert_same_bits(PROGRAM)
