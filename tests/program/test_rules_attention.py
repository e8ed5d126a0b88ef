"""The attention rule against ``torch.func`` on the formula of attention, in one tile and in many."""

import weakref

import pytest
import torch
from program.rule_cases import check_rule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from lsfast.program.rules import attention, find_rule
from lsfast.program.rules.generic import Generic

sdpa = torch.ops.aten.scaled_dot_product_attention.default


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """Tiles of everything, and of one head and 3 query rows."""
    if request.param == "many tiles":
        monkeypatch.setitem(attention.TILE_SCORES, "cpu", 16)
        monkeypatch.setattr(attention, "_FEWEST_ROWS", 3)


SHAPES = {
    "square": ((2, 3, 7, 4), (2, 3, 7, 4), (2, 3, 7, 4)),
    "three axes": ((3, 7, 4), (3, 7, 4), (3, 7, 4)),
    "two axes": ((7, 4), (7, 4), (7, 4)),
    "four leading axes": ((2, 1, 2, 2, 5, 4), (2, 1, 2, 2, 5, 4), (2, 1, 2, 2, 5, 4)),
    "fewer keys": ((2, 2, 8, 3), (2, 2, 5, 3), (2, 2, 5, 3)),
    "more keys": ((2, 2, 4, 3), (2, 2, 9, 3), (2, 2, 9, 3)),
    "one tile with keys that causality hides": ((2, 4), (9, 4), (9, 4)),
    "wider values": ((2, 2, 5, 3), (2, 2, 6, 3), (2, 2, 6, 8)),
    "broadcast": ((2, 3, 5, 4), (1, 3, 6, 4), (3, 6, 2)),
    "one of each": ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes(tiles, shapes, causal):
    q, k, v = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    check_rule(sdpa, q, k, v, is_causal=causal)


def test_scale_and_no_axis_of_heads(tiles):
    q, k, v = normal(6, 4), normal(5, 4, seed=1), normal(5, 2, seed=2)
    check_rule(sdpa, q, k, v, scale=-0.7)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (4, 1), (3, 3)])
def test_grouped_heads(tiles, heads, key_heads, causal):
    q, k, v = normal(2, heads, 5, 4), normal(2, key_heads, 6, 4, seed=1), normal(2, key_heads, 6, 3, seed=2)
    check_rule(sdpa, q, k, v, is_causal=causal, enable_gqa=True)


def test_grouped_heads_with_a_mask_for_each_head(tiles):
    q, k, v = normal(2, 4, 5, 3), normal(2, 2, 6, 3, seed=1), normal(2, 2, 6, 3, seed=2)
    for shape in ((2, 4, 5, 6), (4, 5, 6), (2, 1, 1, 6), (5, 6)):
        inactive(q, k, v, normal(*shape, seed=3) > -0.5, enable_gqa=True)


def inactive(q, k, v, mask, **keywords):
    """Check with a boolean mask, which is never active."""
    check_rule(sdpa, q, k, v, attn_mask=mask, **keywords)


MASKS = [(7, 6), (1, 6), (7, 1), (1, 1), (3, 7, 6), (1, 7, 6), (2, 1, 1, 6), (2, 3, 7, 6), (2, 1, 7, 1)]


@pytest.mark.parametrize("shape", MASKS)
def test_boolean_masks_of_every_shape_that_broadcasts(tiles, shape):
    q, k, v = normal(2, 3, 7, 4), normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 4, seed=2)
    mask = normal(*shape, seed=3) > -0.5
    mask[..., -1] = True  # no row is empty here
    inactive(q, k, v, mask)


def test_an_expanded_mask_is_kept_once(tiles):
    q, k, v = normal(2, 3, 7, 4), normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 4, seed=2)
    mask = (normal(2, 1, 1, 6, seed=3) > -0.5).expand(2, 3, 7, 6)
    inactive(q, k, v, mask)
    rule = attention_rule(True, True, True)
    rule.forward(q, k, v, mask, 0.0, False, None, False)
    assert rule.mask.numel() == 12


@pytest.mark.parametrize("shape", [(7, 6), (2, 1, 1, 6), (2, 3, 7, 6)])
def test_an_additive_mask_may_be_active(tiles, shape):
    q, k, v = normal(2, 3, 7, 4), normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 4, seed=2)
    check_rule(sdpa, q, k, v, attn_mask=normal(*shape, seed=3))


@pytest.mark.parametrize("additive", [False, True])
def test_rows_that_see_nothing_give_zeros_as_the_formula_of_torch_does(tiles, additive):
    q, k, v = normal(2, 3, 7, 4), normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 4, seed=2)
    mask = torch.ones(7, 6, dtype=torch.bool)
    mask[2] = False
    mask[6] = False
    if additive:
        mask = torch.zeros(7, 6).double().masked_fill(~mask, -torch.inf)
    for active in ((True, True, True), (True, False, False), (False, True, False)):
        rule, oracle = attention_rule(*active), Generic(sdpa, (*active, *(False,) * 5))
        with sdpa_kernel(SDPBackend.MATH):
            values = [rule.forward(q, k, v, mask, 0.0, False, None, False)]
            expected = [oracle.forward(q, k, v, mask, 0.0, False, None, False)]
        tangents = [normal(3, *x.shape, seed=4) if one else None for x, one in zip((q, k, v), active, strict=True)]
        adjoint, adjoints = normal(2, 3, 7, 4, seed=5), normal(3, 2, 3, 7, 4, seed=6)
        for one, found in ((rule, values), (oracle, expected)):
            found.append(one.jvp(*tangents, *(None,) * 5))
            found.extend(x for x in one.vjp(adjoints)[:3] if x is not None)
            one.hold(adjoint)
            derivatives = one.vjp_jvp(adjoints, *tangents, *(None,) * 5)
            found.extend(x for x, flag in zip(derivatives, active, strict=False) if flag)
        assert (values[0][:, :, [2, 6]] == 0).all()
        for a, b in zip(values, [x for x in expected if isinstance(x, torch.Tensor)], strict=False):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("shapes", [((0, 2, 3, 4),) * 3, ((2, 2, 0, 4), (2, 2, 3, 4), (2, 2, 3, 4))])
def test_empty(shapes):
    check_rule(sdpa, *(normal(*shape) for shape in shapes))


def test_no_keys_give_zeros():
    q, k, v = normal(2, 3, 4), normal(2, 0, 4), normal(2, 0, 5)
    rule = attention_rule(True, True, True)
    assert (rule.forward(q, k, v, None, 0.0, False, None, False) == torch.zeros(2, 3, 5)).all()
    rule.hold(normal(2, 3, 5))
    tangents = (normal(1, 2, 3, 4), normal(1, 2, 0, 4), normal(1, 2, 0, 5))
    assert (rule.jvp(*tangents) == 0).all()
    found = rule.vjp_jvp(normal(1, 2, 3, 5), *tangents)
    assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in tangents]
    assert (found[0] == 0).all()


@pytest.mark.parametrize("mask_active", [False, True])
def test_dropout_is_refused_with_the_reason(mask_active):
    q = normal(2, 3, 4)
    make = find_rule(sdpa)
    rule = make((True, True, True, mask_active, False, False, False, False))
    with pytest.raises(ValueError, match="dropout_p must be 0, got 0.5: random dropout"):
        rule.forward(q, q, q, normal(3, 3), 0.5, False, None, False)


def attention_rule(*active):
    return find_rule(sdpa)((*active, False, False, False, False, False))


def model_layout(k, b, h, length, width, seed=0):
    """Tangents as a model gives them: a row of parameters or [batch, length, heads, width], transposed."""
    return normal(k, b, length, h, width, seed=seed).transpose(2, 3)


def products(rule, k, dtype, b=2, h=3, rows=9, cols=9, width=4):
    q, key, v = (model_layout(1, b, h, n, width, seed=i)[0].to(dtype) for i, n in enumerate((rows, cols, cols)))
    tangents = [model_layout(k, b, h, n, width, seed=3 + i).to(dtype) for i, n in enumerate((rows, cols, cols))]
    adjoint, adjoints = (model_layout(n, b, h, rows, width, seed=6 + n).to(dtype) for n in (1, k))
    out = rule.forward(q, key, v, None, 0.0, True, None, False)
    rule.hold(adjoint[0])
    return out, rule.jvp(*tangents), *rule.vjp(adjoints), *rule.vjp_jvp(adjoints, *tangents)


def test_vectors_together_are_vectors_alone(tiles):
    """The products of many vectors are those of each: in one tile they go together, in many one at a time."""
    rule = attention_rule(True, True, True)
    q, k, v = (model_layout(1, 2, 3, 9, 4, seed=i)[0] for i in range(3))
    rule.forward(q, k, v, None, 0.0, True, None, False)
    tangents = [model_layout(5, 2, 3, 9, 4, seed=3 + i) for i in range(3)]
    adjoints = model_layout(5, 2, 3, 9, 4, seed=6)
    rule.hold(adjoints[0])
    together = rule.vjp_jvp(adjoints, *tangents)
    for i in range(5):
        alone = rule.vjp_jvp(adjoints[i : i + 1], *(t[i : i + 1] for t in tangents))
        for a, b in zip(together, alone, strict=True):
            assert (a[i] - b[0]).abs().max() <= 1e-13 * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_float32_arithmetic_rounded_once(tiles, dtype):
    found = products(attention_rule(True, True, True), 2, dtype)
    rule = attention_rule(True, True, True)
    # The same rounded inputs in float64.
    rounded = products(_Rounding(rule, dtype), 2, torch.float64)
    # The chain of at most 3 products and 2 softmax derivatives, each a sum of at most 9 terms of size up to a few
    # units: 100 roundings of float32. Then one rounding to the dtype.
    for a, b in zip(found, rounded, strict=True):
        assert a.dtype == dtype
        bound = 100 * 2.0**-24 * b.abs().max() + torch.finfo(dtype).eps * b.abs()
        assert ((a.double() - b).abs() <= bound).all()


class _Rounding:
    """A rule in float64 whose arguments are rounded to a dtype first."""

    def __init__(self, rule, dtype):
        self.rule, self.dtype = rule, dtype

    def __getattr__(self, name):
        def call(*arguments):
            return getattr(self.rule, name)(
                *(x.to(self.dtype).double() if isinstance(x, torch.Tensor) else x for x in arguments)
            )

        return call


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made while it is on that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key, size):
        self.seen.discard(key)
        self.live -= size


def peak_of_a_product(length, causal):
    q, k, v, a = (torch.randn(1, 1, length, 8) for _ in range(4))
    tangents = [torch.randn(1, 1, 1, length, 8) for _ in range(4)]
    with LiveBytes() as count:
        rule = attention_rule(True, True, True)
        rule.forward(q, k, v, None, 0.0, causal, None, False)
        rule.vjp(a[None])
        rule.hold(a)
        rule.jvp(*tangents[:3])
        rule.vjp_jvp(tangents[3], *tangents[:3])
    return count.peak


@pytest.mark.parametrize("causal", [False, True])
def test_memory_grows_with_the_length_and_not_with_its_square(causal):
    peaks = [peak_of_a_product(length, causal) for length in (2048, 4096)]
    assert peaks[0] >= 4 * 2048 * 64  # the count sees the tiles
    assert peaks[1] <= 2.2 * peaks[0]
