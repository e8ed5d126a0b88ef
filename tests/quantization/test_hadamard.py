"""The random Hadamard transform: a product with an orthogonal matrix, made in additions, under every derivative."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.func import grad, jvp, vmap

import lsfast
from lsfast import _numerics
from lsfast.scheme_numbers import sign_words

SIZES = [16, 32, 64, 128]
FIXED = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def matrix(size, signs):
    """The transform of a row vector as a float64 matrix, by another library."""
    return torch.diag(signs.double()) @ torch.from_numpy(scipy.linalg.hadamard(size).astype(np.float64)) / size**0.5


def bound(x, size):
    """Rounding errors: one of log2(size) additions on every way through, the factor and its product, the last one.

    What is added up is at most the sum of magnitudes of a group, over sqrt(size).
    """
    carrier = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = x.double().unflatten(-1, (-1, size)).abs().sum(-1, keepdim=True).expand(-1, -1, size).flatten(-2)
    result = sums / size**0.5
    return result * ((math.log2(size) + 3) * UNIT[carrier] + (UNIT[x.dtype] if x.dtype != carrier else 0)) + 2.0**-24


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("dtype", list(UNIT))
def test_it_is_the_product_with_signs_and_sylvesters_matrix(size, seed, dtype):
    x = draw(3, 2 * size, dtype=dtype)
    signs = lsfast.hadamard_signs(size, seed)
    expected = (x.double().unflatten(-1, (-1, size)) @ matrix(size, signs)).flatten(-2)
    y = lsfast.hadamard(x, size, signs)
    assert y.dtype == dtype
    limit = bound(x, size) if dtype != torch.float64 else bound(x, size) - 2.0**-24
    assert ((y.double() - expected).abs() <= limit).all()
    if seed is None:
        assert torch.equal(lsfast.hadamard(x, size), y)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_inverse_undoes_it_to_rounding(size, dtype):
    x = draw(4, 2 * size, dtype=dtype)
    signs = lsfast.hadamard_signs(size, 7)
    there = lsfast.hadamard(x, size, signs)
    back = lsfast.hadamard(there, size, signs, inverse=True)
    # Each way adds errors of at most the bound; those of the first are carried back with weights 1/sqrt(size), size
    # of them, so by at most sqrt(size).
    limit = (bound(there, size) + size**0.5 * bound(x, size).amax()) if dtype == torch.float32 else 1e-13
    assert ((back - x).abs() <= limit).all()


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_undoes_it_exactly_for_integers_with_sizes_16_and_64(size, dtype):
    x = torch.randint(-1000, 1000, (5, 4 * size), generator=torch.Generator().manual_seed(0)).to(dtype)
    y = lsfast.hadamard(x, size)
    exact = (x.double().unflatten(-1, (-1, size)) @ matrix(size, lsfast.hadamard_signs(size))).flatten(-2)
    assert torch.equal(y.double(), exact)
    assert torch.equal(lsfast.hadamard(y, size, inverse=True), x)


@pytest.mark.parametrize("size", SIZES)
def test_norms_and_inner_products_stay(size):
    x, z = draw(6, size, dtype=torch.float64), draw(6, size, dtype=torch.float64, seed=1)
    before, after = x @ z.T, lsfast.hadamard(x, size) @ lsfast.hadamard(z, size).T
    # Relative to the norms, some rounding errors for each of the size terms.
    scale = x.norm(dim=1)[:, None] * z.norm(dim=1)
    assert ((after - before).abs() <= 4 * size * 2.0**-53 * scale).all()


def test_half_precision_is_added_up_in_float32_and_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        x = draw(4, 256, dtype=dtype)
        assert torch.equal(lsfast.hadamard(x, 128), lsfast.hadamard(x.float(), 128).to(dtype))


@pytest.mark.parametrize("inverse", [False, True])
def test_any_axis_and_any_strides(inverse):
    x = draw(5, 64, 7).permute(2, 1, 0)
    expected = lsfast.hadamard(x.movedim(1, -1).contiguous(), 32, inverse=inverse).movedim(-1, 1)
    for axis in (1, -2):
        y = lsfast.hadamard(x, 32, axis=axis, inverse=inverse)
        assert y.is_contiguous()
        assert torch.equal(y, expected)
    assert torch.equal(lsfast.hadamard(draw(32), 32), lsfast.hadamard(draw(32)[None], 32)[0])


def test_bits_do_not_depend_on_the_number_of_threads():
    x = draw(300, 512)
    one = lsfast.hadamard(x, 64)
    torch.set_num_threads(2)
    assert torch.equal(lsfast.hadamard(x, 64), one)


@pytest.mark.parametrize("size", SIZES)
def test_the_fixed_signs_are_those_of_numerics_repeated(size):
    assert lsfast.hadamard_signs(size).tolist() == FIXED * (size // 16)


def test_signs_from_a_seed_are_the_top_bits_of_philox_and_balanced():
    signs = torch.stack([lsfast.hadamard_signs(128, seed) for seed in range(500)])
    words = np.stack([_numerics.philox(np.arange(128, dtype=np.uint64), seed) for seed in range(500)])
    assert np.array_equal(signs.numpy() < 0, words >= 2**31)
    assert torch.equal(lsfast.hadamard_signs(128, 41), signs[41])
    assert torch.equal(lsfast.hadamard_signs(16, 41), signs[41, :16])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # A sum of n fair signs has standard deviation sqrt(n): all of them, each element's, and each seed's.
    assert signs.sum().abs() < 5 * signs.numel() ** 0.5
    assert (signs.sum(0).abs() < 5 * 500**0.5).all()
    assert (signs.sum(1).abs() < 5 * 128**0.5).all()


@pytest.mark.parametrize("size", SIZES)
def test_bit_i_of_the_sign_words_is_set_for_a_negative_sign(size):
    signs = lsfast.hadamard_signs(size, 11)
    words = sign_words(signs)
    assert len(words) == 4
    assert [(words[i // 32] >> (i % 32)) & 1 for i in range(128)] == (signs < 0).int().tolist() + [0] * (128 - size)


@pytest.mark.parametrize(("size", "seed"), [(16, None), (32, 5), (128, 6)])
def test_a_scheme_with_a_transform_quantizes_the_transformed_tensor(size, seed):
    x = draw(6, 256)
    scheme = lsfast.scheme("nvfp4").replace(hadamard=size, hadamard_seed=seed)
    transformed = lsfast.hadamard(x, size, lsfast.hadamard_signs(size, seed))
    assert torch.equal(lsfast.fake_quantize(x, scheme), lsfast.fake_quantize(transformed, "nvfp4"))


@pytest.mark.parametrize("inverse", [False, True])
def test_derivatives_of_every_order_and_mode(inverse):
    signs = lsfast.hadamard_signs(16, 2)
    x = draw(2, 16, 3, dtype=torch.float64).requires_grad_()

    def function(x):
        return lsfast.hadamard(x, 16, signs, axis=1, inverse=inverse)

    assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x) ** 3, x)
    tangent = draw(2, 16, 3, dtype=torch.float64, seed=1)
    assert torch.equal(jvp(function, (x.detach(),), (tangent,))[1], function(tangent))
    pulled = grad(lambda x: (function(x) * tangent).sum())(x.detach())
    assert torch.equal(pulled, lsfast.hadamard(tangent, 16, signs, axis=1, inverse=not inverse))


def test_vmap_transforms_each_example():
    x = draw(4, 3, 64)
    expected = lsfast.hadamard(x, 32)
    assert torch.equal(vmap(lambda row: lsfast.hadamard(row, 32))(x), expected)
    assert torch.equal(vmap(vmap(lambda row: lsfast.hadamard(row, 32)))(x), expected)
    assert torch.equal(vmap(lambda row: lsfast.hadamard(row, 32), in_dims=1, out_dims=1)(x), expected)
    assert torch.equal(vmap(lambda row: lsfast.hadamard(row, 32, axis=0))(x.mT.contiguous()), expected.mT)
    gradients = vmap(grad(lambda row: (lsfast.hadamard(row, 32) ** 4).sum()))(x)
    leaf = x.clone().requires_grad_()
    (lsfast.hadamard(leaf, 32) ** 4).sum().backward()
    assert torch.equal(gradients, leaf.grad)


@pytest.mark.parametrize("signs", [None, lsfast.hadamard_signs(32, 9)])
@pytest.mark.parametrize("inverse", [False, True])
def test_torch_compile_takes_it_whole(signs, inverse):
    def loss(x):
        return (lsfast.hadamard(x, 32, signs, axis=0, inverse=inverse) ** 2 * torch.arange(3.0)).sum()

    leaves = [draw(64, 3).requires_grad_() for _ in range(2)]
    loss(leaves[0]).backward()
    torch.compile(loss, fullgraph=True)(leaves[1]).backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("dtype", list(UNIT))
def test_the_operator_passes_opcheck(dtype):
    words = sign_words(lsfast.hadamard_signs(16, 1))
    for x in (draw(3, 32, 2, dtype=dtype), draw(2, 32, 3, dtype=dtype).permute(2, 1, 0)):
        torch.library.opcheck(torch.ops.lsfast.hadamard.default, (x, 1, 16, words, False))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: lsfast.hadamard(x.tolist()), TypeError, "x must be a tensor, got list"),
        (lambda x: lsfast.hadamard(x.long()), ValueError, "x must be a floating-point tensor"),
        (lambda x: lsfast.hadamard(x.to(torch.complex64)), ValueError, "x must be a floating-point tensor"),
        (lambda x: lsfast.hadamard(x.to(torch.float8_e4m3fn)), ValueError, "x must be float32, float64"),
        (lambda x: lsfast.hadamard(x, 8), ValueError, "size must be one of 16, 32, 64, 128, got 8"),
        (lambda x: lsfast.hadamard(x, 16.0), TypeError, "size must be an integer"),
        (lambda x: lsfast.hadamard(x, 32), ValueError, "x must have a multiple of 32 elements along axis -1, got 48"),
        (lambda x: lsfast.hadamard(x[0, 0]), ValueError, "multiple of 16 elements along axis -1, got 1"),
        (lambda x: lsfast.hadamard(x, axis=2), ValueError, r"axis must lie in -2..1, got 2"),
        (lambda x: lsfast.hadamard(x, axis=1.0), TypeError, "axis must be an integer"),
        (lambda x: lsfast.hadamard(x, signs=[1] * 16), TypeError, "signs must be a tensor or None, got list"),
        (lambda x: lsfast.hadamard(x, signs=torch.ones(32)), ValueError, r"signs must be \[16\] real numbers"),
        (lambda x: lsfast.hadamard(x, signs=torch.zeros(16)), ValueError, "signs must be 1 or -1"),
        (lambda x: lsfast.hadamard(x, signs=torch.full((16,), torch.nan)), ValueError, "signs must be 1 or -1"),
        (lambda x: lsfast.hadamard(x, inverse=1), TypeError, "inverse must be True or False"),
        (lambda x: lsfast.hadamard_signs(8), ValueError, "hadamard_signs: size must be one of"),
        (lambda x: lsfast.hadamard_signs(16, -1), ValueError, "seed must be at least 0"),
        (lambda x: lsfast.hadamard_signs(16, 1.5), TypeError, "seed must be an integer"),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    x = draw(3, 48)
    before = x.clone()
    with pytest.raises(error, match=message) as raised:
        call(x)
    assert "\n" not in str(raised.value)
    assert torch.equal(x, before)
