"""Statistics of fake_quantize: what plain torch makes of the tensor, the result and the mask of what saturated."""

import pytest
import torch

import lsfast

SCHEMES = [
    "nvfp4",
    "nvfp4_2d",
    "mxfp4",
    "mxfp8_e4m3",
    "fp8_e4m3",
    "fp8_e4m3_row",
    "fp8_e4m3_128x128",
    "int8",
    "nf4_g64",
]
UNSCALED = ["e4m3", "e2m1", "e8m3", "bf16"]


def data(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    x.view(-1)[::17] = 0.0
    x.view(-1)[5::29] *= 1e-6
    return x.to(dtype)


def blocks_of(x: torch.Tensor, scheme: lsfast.QuantScheme, axis: int) -> list[torch.Tensor]:
    """The index sets of the blocks, in row-major order of the blocks."""
    height, length = scheme.block if isinstance(scheme.block, tuple) else (1, scheme.block)
    sides = [1] * x.dim()
    sides[axis] = x.shape[axis] if length == "row" else length
    if height > 1:
        sides[axis - 1] = height
    pieces = [x]
    for dim, side in enumerate(sides):
        pieces = [part for piece in pieces for part in piece.split(side, dim)]
    return pieces


def assert_sums(found: lsfast.QuantStatistics, xs: list, ys: list, masks: list) -> None:
    flat = [part.reshape(-1) for part in (found.count, found.saturated, found.flushed, found.squared_error)]
    flat += [found.squared_sum.reshape(-1), found.largest.reshape(-1)]
    assert all(len(part) == len(xs) for part in flat)
    for i, (x, y, mask) in enumerate(zip(xs, ys, masks, strict=True)):
        x, y = x.double(), y.double()
        assert flat[0][i] == x.numel()
        assert flat[1][i] == (mask == 0).sum()
        assert flat[2][i] == ((x != 0) & (y == 0)).sum()
        # A sum of n products, in float64, of a difference rounded to float32.
        assert float(flat[3][i]) == pytest.approx(float((y - x).square().sum()), rel=1e-6, abs=1e-300)
        assert float(flat[4][i]) == pytest.approx(float(x.square().sum()), rel=1e-12)
        assert flat[5][i] == x.abs().max()


def mask_of(x: torch.Tensor, scheme: str, axis: int) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    lsfast.fake_quantize(leaf, scheme, axis, mask_saturated=True).backward(torch.ones_like(x))
    return leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES + UNSCALED)
def test_of_a_tensor(name, dtype):
    x = data(37, 150, dtype=dtype)
    y, found = lsfast.fake_quantize(x, name, statistics=True)
    assert torch.equal(y, lsfast.fake_quantize(x, name))
    seen = x if dtype != torch.float64 or name in UNSCALED else x.float()
    assert_sums(found, [seen], [y], [mask_of(x, name, -1)])
    expected = 10 * torch.log10(found.squared_sum / found.squared_error)
    assert float(found.sqnr) == float(expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", SCHEMES + UNSCALED)
def test_of_rows_along_any_axis(name, axis):
    if axis == 0 and isinstance(lsfast.scheme(name).block, tuple):
        axis = 1
    x = data(20, 35, 18)
    y, found = lsfast.fake_quantize(x, name, axis, statistics="row")
    assert torch.equal(y, lsfast.fake_quantize(x, name, axis))
    assert found.saturated.shape == (*x.shape[:axis], *x.shape[axis + 1 :])
    lines = [t.movedim(axis, -1).reshape(-1, x.shape[axis]) for t in (x, y, mask_of(x, name, axis))]
    assert_sums(found, *(list(part) for part in lines))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "fp8_e4m3"])
def test_of_blocks_along_any_axis(name, axis):
    scheme = lsfast.scheme(name)
    if axis == 0 and isinstance(scheme.block, tuple):
        axis = 1
    x = data(20, 35, 18)
    y, found = lsfast.fake_quantize(x, name, axis, statistics="block")
    assert torch.equal(y, lsfast.fake_quantize(x, name, axis))
    assert_sums(found, *(blocks_of(t, scheme, axis) for t in (x, y, mask_of(x, name, axis))))
    assert float(found.count.sum()) == x.numel()


def test_with_a_transform_the_error_is_of_the_transformed():
    scheme = lsfast.scheme("nvfp4").replace(hadamard=16)
    x = data(8, 64)
    y, found = lsfast.fake_quantize(x, scheme, statistics=True)
    transformed = lsfast.hadamard(x)
    assert float(found.squared_error) == pytest.approx(float((y - transformed).double().square().sum()), rel=1e-6)
    assert float(found.squared_sum) == pytest.approx(float(x.double().square().sum()), rel=1e-6)


def test_the_sums_do_not_depend_on_threads():
    x = data(700, 1000)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([lsfast.fake_quantize(x, "mxfp4", statistics=kind)[1] for kind in ("tensor", "row", "block")])
    torch.set_num_threads(1)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one.squared_error, two.squared_error)
        assert torch.equal(one.squared_sum, two.squared_sum)


def test_into_x_itself():
    x = data(64, 64)
    expected, before = lsfast.fake_quantize(x, "nvfp4", statistics=True)
    result, found = lsfast.fake_quantize(x, "nvfp4", out=x, statistics=True)
    assert result is x
    assert torch.equal(x, expected)
    assert torch.equal(found.squared_error, before.squared_error)


def test_nan_and_infinity_are_seen():
    x = data(4, 64)
    x[1, 3], x[2, 40] = float("nan"), float("inf")
    _, found = lsfast.fake_quantize(x, "mxfp4", statistics="block")
    bad = torch.zeros(4, 2, dtype=torch.bool)
    bad[1, 0] = bad[2, 1] = True
    assert torch.equal(found.squared_error.isnan(), bad)
    assert found.largest.isfinite().all()
