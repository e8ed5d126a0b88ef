"""The points operator and its derivatives."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from lsfast.landscape import reference
from lsfast.program.points import parameter_points

ops = torch.ops.lsfast
REAL = [torch.float32, torch.float64]


def arguments(n, d, g, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((n,), (d, n), (g, d))]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [1, 17, 1024, 5003])
def test_points_have_the_bits_of_the_sum_in_order(n, d, dtype):
    theta, directions, coordinates = arguments(n, d, 5, dtype)
    assert torch.equal(
        parameter_points(theta, directions, coordinates), reference.points(theta, directions, coordinates)
    )


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("n", [1 << 17, (1 << 17) + 5])
def test_points_stored_past_the_cache_have_the_same_bits(n, dtype):
    theta, directions, coordinates = arguments(n, 2, 9, dtype)
    offset = torch.empty(9 * n + 3, dtype=dtype)[3:].view(9, n)  # rows that start nowhere near a cache line
    assert offset.nbytes >= 1 << 22
    expected = reference.points(theta, directions, coordinates)
    assert torch.equal(parameter_points(theta, directions, coordinates), expected)
    assert torch.equal(parameter_points(theta, directions, coordinates, out=offset), expected)


@pytest.mark.parametrize("dtype", REAL)
def test_coordinate_zero_adds_exactly_nothing(dtype):
    theta, directions, coordinates = arguments(1000, 3, 4, dtype)
    coordinates[1] = 0
    coordinates[2, 1:] = 0
    points = parameter_points(theta, directions, coordinates)
    assert torch.equal(points[1], theta)
    assert torch.equal(points[2], parameter_points(theta, directions[:1], coordinates[2:3, :1])[0])


def test_direction_that_is_infinite_gives_nan_at_coordinate_zero():
    directions = torch.tensor([[1.0, float("inf"), float("nan")]])
    points = parameter_points(torch.zeros(3), directions, torch.zeros(1, 1))
    assert points.isnan().tolist() == [[False, True, True]]


def test_any_strides_and_no_points_are_taken():
    theta, directions, coordinates = arguments(20, 4, 6)
    views = theta[::2], directions[::2, 1::2], coordinates[:, :2].T.contiguous().T
    assert torch.equal(parameter_points(*views), reference.points(*views))
    assert parameter_points(theta, directions, coordinates[:0]).shape == (0, 20)


def test_first_derivatives_agree_with_finite_differences_in_both_modes():
    inputs = [x.requires_grad_() for x in arguments(7, 2, 3)]
    assert torch.autograd.gradcheck(
        parameter_points, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


def test_second_derivatives_agree_with_finite_differences():
    inputs = [x.requires_grad_() for x in arguments(7, 2, 3)]
    assert torch.autograd.gradgradcheck(parameter_points, inputs, check_fwd_over_rev=True)


def test_jvp_agrees_with_finite_differences():
    at, towards = arguments(7, 2, 3), arguments(7, 2, 3, seed=1)
    _, tangent = jvp(parameter_points, tuple(at), tuple(towards))
    step = 2.0**-20
    ahead = parameter_points(*(x + step * t for x, t in zip(at, towards, strict=True)))
    behind = parameter_points(*(x - step * t for x, t in zip(at, towards, strict=True)))
    # The function is a polynomial of degree 2, whose central difference is exact: rounding of values below 16 remains,
    # 2 * 16 * 8 roundings of 2^-53 over 2 * step.
    torch.testing.assert_close((ahead - behind) / (2 * step), tangent, rtol=0, atol=16 * 8 * 2.0**-53 / step)


AXES = [(0, None, None), (None, 1, None), (None, None, 0), (1, 0, None), (0, None, 2), (None, 0, 1), (0, 2, 1)]


@pytest.mark.parametrize("axes", AXES)
def test_vmap_over_any_argument_is_one_call_for_each(axes):
    batched = [
        x if axis is None else torch.stack([x * (i + 1) for i in range(4)], dim=axis)
        for x, axis in zip(arguments(5, 2, 3), axes, strict=True)
    ]
    one_by_one = [
        [x if axis is None else x.select(axis, i) for x, axis in zip(batched, axes, strict=True)] for i in range(4)
    ]
    expected = torch.stack([reference.points(*each) for each in one_by_one])
    assert torch.equal(vmap(parameter_points, axes)(*batched), expected)

    def second_derivative(points, *inputs):
        gradient = grad(lambda *at: points(*at).sin().sum(), (0, 1, 2))
        return jvp(gradient, inputs, inputs)[1]

    found = vmap(lambda *inputs: second_derivative(parameter_points, *inputs), axes)(*batched)
    each_found = [second_derivative(reference.points, *each) for each in one_by_one]
    for result, parts in zip(found, zip(*each_found, strict=True), strict=True):
        torch.testing.assert_close(result, torch.stack(parts), rtol=1e-12, atol=1e-11)


def test_vmap_of_vmap_is_every_pair():
    theta, directions, coordinates = arguments(5, 2, 3)
    thetas, sets = torch.stack([theta, 2 * theta]), torch.stack([coordinates, 3 * coordinates, -coordinates])
    pairs = vmap(lambda t: vmap(lambda c: parameter_points(t, directions, c))(sets))(thetas)
    expected = torch.stack([torch.stack([reference.points(t, directions, c) for c in sets]) for t in thetas])
    assert torch.equal(pairs, expected)


def test_compiled_as_one_graph_it_gives_the_same_bits_and_gradients():
    inputs = [x.requires_grad_() for x in arguments(7, 2, 3)]
    compiled = torch.compile(parameter_points, fullgraph=True, backend="aot_eager")
    plain, result = parameter_points(*inputs), compiled(*inputs)
    assert torch.equal(result, plain)
    weights = torch.randn_like(plain)
    for x, y in zip(
        torch.autograd.grad(result, inputs, weights), torch.autograd.grad(plain, inputs, weights), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_operators_keep_the_rules_of_torch_library(d, dtype):
    inputs = arguments(19, d, 3, dtype)
    torch.library.opcheck(ops.parameter_points, inputs)
    torch.library.opcheck(ops.parameter_points_out, (*inputs, torch.empty(3, 19, dtype=dtype)))


def test_bad_arguments_are_named():
    theta, directions, coordinates = arguments(5, 2, 3)
    for change, message in (
        ((theta.float(), directions, coordinates), "directions must have the dtype of theta"),
        ((theta, directions[:, :4], coordinates), r"directions must have shape \[d, 5\] with d >= 1, got \[2, 4\]"),
        ((theta, directions[:0], coordinates[:, :0]), "with d >= 1"),
        ((theta, directions, coordinates[:, :1]), r"coordinates must have shape \[g, 2\], got \[3, 1\]"),
        ((theta.long(), directions, coordinates), "theta must be float32, float64, bfloat16 or float16"),
        ((theta[None], directions, coordinates), r"theta must have shape \[n\]"),
    ):
        with pytest.raises(RuntimeError, match=f"parameter_points: .*{message}"):
            parameter_points(*change)
    with pytest.raises(ValueError, match="out must not share memory with directions"):
        parameter_points(theta, directions, coordinates[:2], out=directions)
    with pytest.raises(ValueError, match="out= has no derivative"):
        parameter_points(theta.requires_grad_(), directions, coordinates, out=torch.empty(3, 5, dtype=torch.float64))
