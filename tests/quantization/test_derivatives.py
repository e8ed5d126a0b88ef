"""The straight-through derivative: identity (or masked), zero second derivative, under every transform."""

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import lsfast
from lsfast.scheme_numbers import scheme_numbers

SCHEMES = ["e2m1", "fp8_e4m3", "nvfp4", "mxfp4", "int8", "nf4_g64"]


@pytest.fixture
def x():
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 3


@pytest.mark.parametrize("name", SCHEMES)
def test_gradient_and_tangent_are_the_identity(name, x):
    weight = torch.randn_like(x)

    def loss(x):
        return (lsfast.fake_quantize(x, name) * weight).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(leaf.grad, weight)
    assert torch.equal(grad(loss)(x), weight)
    value, tangent = jvp(lambda x: lsfast.fake_quantize(x, name), (x,), (weight,))
    assert torch.equal(tangent, weight)
    assert torch.equal(value, lsfast.fake_quantize(x, name))


def test_masked_gradient_is_zero_exactly_where_the_value_saturates(x):
    inside = (x.abs() <= 6).float()
    assert 0 < inside.sum() < inside.numel()

    def masked(x):
        return lsfast.fake_quantize(x, "e2m1", mask_saturated=True)

    assert torch.equal(grad(lambda x: masked(x).sum())(x), inside)
    assert torch.equal(jvp(masked, (x,), (x,))[1], x * inside)
    assert torch.equal(vmap(grad(lambda row: masked(row).sum()))(x), inside)


def test_nvfp4_saturates_where_its_block_scale_rounded_down(x):
    def masked(x):
        return lsfast.fake_quantize(x, "nvfp4", mask_saturated=True).sum()

    mask = grad(masked)(x)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # Only a block's largest lies above 6 of its scale, since E4M3 rounds by less than one part in 16.
    blocks = torch.nn.functional.pad(x, (0, 8)).reshape(-1, 16).abs()
    saturated = torch.nn.functional.pad(1 - mask, (0, 8)).reshape(-1, 16) > 0
    assert (blocks[saturated] > blocks.amax(1, keepdim=True).expand_as(blocks)[saturated] * (1 - 1 / 16)).all()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_second_derivative_is_zero(name, mask, x):
    def quantized(x):
        return lsfast.fake_quantize(x, name, mask_saturated=mask).sum()

    for outer in (jacfwd, jacrev):
        assert torch.count_nonzero(outer(grad(quantized))(x[0])) == 0


@pytest.mark.parametrize("name", SCHEMES)
def test_vmap_treats_each_example_as_its_own_tensor(name, x):
    scheme = lsfast.scheme(name).replace(rounding="stochastic")

    def one(row):
        return lsfast.fake_quantize(row, scheme, seed=5)

    expected = torch.stack([one(row) for row in x])
    assert torch.equal(vmap(one)(x), expected)
    assert torch.equal(vmap(one, in_dims=1)(x.T.contiguous()), expected)
    nested = vmap(vmap(one))(x.reshape(2, 3, 40))
    assert torch.equal(nested, expected.reshape(2, 3, 40))


@pytest.mark.parametrize("mask", [False, True])
def test_torch_compile_takes_it_whole(mask, x):
    def loss(x):
        return (lsfast.fake_quantize(x, "nvfp4", mask_saturated=mask) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    loss(leaves[0]).backward()
    compiled(leaves[1]).backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_the_derivative_goes_through_the_transform(x):
    scheme = lsfast.scheme("nvfp4").replace(hadamard=32)
    weight = torch.randn(6, 32)
    line = x[:, :32].contiguous()

    def quantized(x):
        return lsfast.fake_quantize(x, scheme)

    expected = lsfast.hadamard(weight, 32, inverse=True)
    assert torch.equal(grad(lambda x: (quantized(x) * weight).sum())(line), expected)
    assert torch.equal(jvp(quantized, (line,), (weight,))[1], lsfast.hadamard(weight, 32))
    masked = grad(lambda x: lsfast.fake_quantize(x, scheme, mask_saturated=True).sum())(line)
    inside = lsfast.hadamard(masked, 32)  # ones where nothing saturated
    assert set(inside.round().unique().tolist()) == {0.0, 1.0}


def test_a_given_amax_saturates_and_masks():
    x = torch.tensor([0.5, -3.0, 1.0, 0.25])
    assert torch.equal(lsfast.fake_quantize(x, "fp8_e4m3", amax=1.0), torch.tensor([0.5, -1.0, 1.0, 0.25]))
    gradient = grad(lambda x: lsfast.fake_quantize(x, "fp8_e4m3", amax=1.0, mask_saturated=True).sum())(x)
    assert gradient.tolist() == [1.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="amax= cannot be used under vmap"):
        vmap(lambda x: lsfast.fake_quantize(x, "fp8_e4m3", amax=1.0))(x[:, None])


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int8", "e4m3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operators_pass_opcheck(name, dtype, x):
    numbers = scheme_numbers(lsfast.scheme(name).replace(rounding="stochastic"))
    arguments = (numbers, 1, False, False, 3, 0)
    torch.library.opcheck(torch.ops.lsfast.fake_quantize.default, (x.to(dtype), None, *arguments))
    out = torch.empty_like(x, dtype=dtype)
    sums = torch.zeros(5, dtype=torch.float64)
    for statistics, granularity in ((None, 0), (sums, 1)):
        torch.library.opcheck(
            torch.ops.lsfast.fake_quantize_out.default, (x.to(dtype), None, out, statistics, granularity, *arguments)
        )
