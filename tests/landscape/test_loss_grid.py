"""Loss grids: values at the coordinates they claim, and nothing disturbed."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn

import lsfast

from .problems import evaluated, of_network, of_parameters

REAL = [torch.float32, torch.float64]


def plane(count, dtype=torch.float64):
    return lsfast.Directions(torch.eye(8, dtype=dtype)[[5, 0, 3][:count]])


@functools.cache  # its capture serves all grids
def coordinate(index, dtype=torch.float64):
    """L(theta) = theta[index] at theta = 0, over parameters in two parts."""
    return of_parameters(lambda theta: theta[index], torch.zeros(2, 3, dtype=dtype), torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("steps", [(5,), (6,), (4, 7), (7, 4), (3, 3), (2, 3, 4), (1, 5), (3, 1, 2)])
def test_loss_that_is_a_coordinate_returns_the_coordinates_stored(steps, dtype):
    for k in range(len(steps)):
        objective = coordinate([5, 0, 3][k], dtype)
        grid = lsfast.loss_grid(objective, plane(len(steps), dtype), steps, extent=0.7)
        assert grid.values.shape == steps
        assert grid.values.dtype == torch.float64
        assert [len(axis) for axis in grid.coordinates] == list(steps)
        assert all(axis.dtype == dtype for axis in grid.coordinates)
        along = [1] * len(steps)
        along[k] = steps[k]
        assert torch.equal(grid.values, grid.coordinates[k].double().view(along).expand(steps))


def test_grid_starts_at_the_origin_of_its_directions():
    theta = torch.arange(8.0)
    objective = of_parameters(lambda theta: theta[0], torch.full((8,), 100.0))
    grid = lsfast.loss_grid(objective, lsfast.Directions(torch.eye(8)[:1], origin=theta + 2), 3)
    assert grid.values.tolist() == [1.0, 2.0, 3.0]
    moved = lsfast.loss_grid(objective.at(theta), lsfast.Directions(torch.eye(8)[:1]), 3)
    assert moved.values.tolist() == [-1.0, 0.0, 1.0]


def quadratic(dtype, count, seed=0):
    """L(theta) = theta H theta / 2 with small integers everywhere: (objective, H, theta, directions), these float64."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(-3, 4, (6, 6), generator=generator, dtype=dtype)
    theta = torch.randint(-3, 4, (6,), generator=generator, dtype=dtype)
    vectors = torch.randint(-3, 4, (count, 6), generator=generator, dtype=dtype)
    hessian = half + half.T
    objective = of_parameters(lambda x: 0.5 * x @ hessian @ x, theta)
    return objective, hessian.double(), theta.double(), vectors.double()


def mesh_of(grid):
    mesh = torch.meshgrid(*(axis.double() for axis in grid.coordinates), indexing="ij")
    return torch.stack(mesh, -1).reshape(-1, len(grid.coordinates))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("steps", [(9,), (9, 5), (5, 3, 9)])
def test_quadratic_is_exact_where_arithmetic_is(steps, dtype):
    # Integers below 4 and coordinates that are multiples of 1/8: every product and sum has few bits and is exact.
    objective, hessian, theta, vectors = quadratic(dtype, len(steps))
    grid = lsfast.loss_grid(objective, lsfast.Directions(vectors.to(dtype)), steps)
    x = theta + mesh_of(grid) @ vectors
    assert torch.equal(grid.values, (0.5 * ((x @ hessian) * x).sum(1)).view(steps))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("steps", [(8,), (7, 10), (4, 2, 7)])
def test_quadratic_at_any_coordinates_is_right_to_rounding(steps, dtype):
    objective, hessian, theta, vectors = quadratic(dtype, len(steps), seed=1)
    extent = [(-0.3 - k, 0.7) for k in range(len(steps))]
    grid = lsfast.loss_grid(objective, lsfast.Directions(vectors.to(dtype)), steps, extent)
    assert grid.evaluated.all()
    assert (grid.evaluations, grid.error, grid.nonfinite) == (grid.values.numel(), 0.0, 0)
    mesh = mesh_of(grid)
    x = theta + mesh @ vectors
    # With u = eps / 2: a point carries a product and a sum for each direction, at most 2 d u of |theta| + |c| |d|, and
    # enters twice; each of two products with a vector of 6 rounds a term at most 6 times, the factor 1/2 is exact.
    largest = theta.abs() + mesh.abs() @ vectors.abs()
    roundings = (2 * 2 * len(steps) + 2 * 6) * torch.finfo(dtype).eps / 2
    bound = 1.01 * roundings * 0.5 * ((largest @ hessian.abs()) * largest).sum(1)
    assert ((grid.values.flatten() - 0.5 * ((x @ hessian) * x).sum(1)).abs() <= bound).all()


def test_loss_of_a_network_is_that_of_the_network_moved_there():
    objective = of_network(torch.float64)
    directions = lsfast.random_directions(objective, 2, seed=3)
    grid = lsfast.loss_grid(objective, directions, (3, 4), metrics={"ones": lambda outputs, targets: 1.0})
    inputs, targets = objective.data
    for i, x in enumerate(grid.coordinates[0]):
        for j, y in enumerate(grid.coordinates[1]):
            model = copy.deepcopy(objective.model)
            point = objective.parameters + x * directions.vectors[0] + y * directions.vectors[1]
            nn.utils.vector_to_parameters(point, model.parameters())
            expected = nn.functional.cross_entropy(model(inputs), targets)
            torch.testing.assert_close(grid.values[i, j], expected.detach(), rtol=1e-13, atol=0)
    assert torch.equal(grid.metrics["ones"], torch.ones(3, 4, dtype=torch.float64))
    assert grid.labels == ("random 0", "random 1")


def test_extents_may_differ_and_coordinates_may_be_given():
    grid = lsfast.loss_grid(coordinate(5), plane(2), (3, 2), extent=((-1, 1), (0.25, 0.5)))
    assert [axis.tolist() for axis in grid.coordinates] == [[-1.0, 0.0, 1.0], [0.25, 0.5]]
    given = lsfast.loss_grid(coordinate(5, torch.float32), plane(2, torch.float32), coordinates=[[3.0, 0.1], [7]])
    assert given.values.tolist() == [[3.0], [torch.tensor(0.1).item()]]
    assert given.coordinates[0].dtype == torch.float32


def test_options_reach_the_evaluation_and_subset_is_that_of_the_objective():
    objective = of_network()
    directions = lsfast.random_directions(objective, 2, seed=3)
    options = {"batch_norm": "recompute", "scheme": "nvfp4"}
    grid = lsfast.loss_grid(objective, directions, (2, 3), subset=7, **options)
    expected = objective.subset(7).evaluate(None, directions.vectors, mesh_of(grid).float(), **options)
    assert torch.equal(grid.values.flatten(), expected.values)
    assert torch.equal(grid.stderr.flatten(), expected.stderr)
    assert not grid.stderr.isnan().any()
    plain = lsfast.loss_grid(objective, directions, (2, 3))
    assert not torch.isclose(grid.values, plain.values).any()


def test_buffers_of_directions_move_along():
    objective = evaluated(torch.float64)
    n = objective.n
    mean = torch.stack([torch.zeros(3), torch.ones(3)]).double()
    directions = lsfast.Directions(torch.ones(1, n).double() * 0.01, buffers={"1.running_mean": mean})
    grid = lsfast.loss_grid(objective, directions, 4)
    for value, x in zip(grid.values, grid.coordinates[0], strict=True):
        model = copy.deepcopy(objective.model)
        nn.utils.vector_to_parameters(objective.parameters + x * 0.01, model.parameters())
        model[1].running_mean.copy_(x * mean[1])
        expected = lsfast.Objective(model, nn.CrossEntropyLoss(), objective.data, engine="autograd")
        torch.testing.assert_close(value, expected.loss(), rtol=1e-12, atol=0)


def test_nan_and_infinity_are_kept_as_values():
    objective = of_parameters(lambda theta: (1 + 4 * theta[0]).log() / (theta[0] + 0.5), torch.zeros(2))
    directions = lsfast.Directions(torch.eye(2)[:1])
    with pytest.warns(RuntimeWarning, match="loss_grid: 3 of 4 values are NaN or Inf"):
        grid = lsfast.loss_grid(objective, directions, coordinates=[[-0.5, -0.25, -0.3, 0.0]])
    assert grid.nonfinite == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lsfast.loss_grid(objective, directions, coordinates=[[0.0, 0.1]]).nonfinite == 0
    assert grid.values.isnan().tolist() == [True, False, True, False]
    assert grid.values[1] == -float("inf")


def state(model):
    """Everything of a model that must stay: values, the tensors themselves, gradients, modes, and the generator."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(tensor), tensor.detach().clone()) for name, tensor in tensors],
        [parameter.grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
    )


def assert_same_state(model, before):
    tensors, gradients, modes, generator = before
    after = state(model)
    for (name, identity, value), (name_after, identity_after, value_after) in zip(tensors, after[0], strict=True):
        assert (name, identity) == (name_after, identity_after)
        assert torch.equal(value, value_after)
    assert all(a is b for a, b in zip(gradients, after[1], strict=True))
    assert modes == after[2]
    assert torch.equal(generator, after[3])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails_at", [None, 5])
def test_nothing_is_disturbed_even_by_an_exception(fails_at, training):
    calls = []

    def loss_fn(outputs, targets):
        calls.append(torch.rand(3))
        if fails_at is not None and len(calls) == fails_at:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(outputs, targets)

    objective = of_network(loss_fn=loss_fn)
    objective.model.train(training)
    objective.model[0].weight.grad = torch.ones_like(objective.model[0].weight)
    directions = lsfast.random_directions(objective, 2)
    before = state(objective.model)
    if fails_at is None:
        lsfast.loss_grid(objective, directions, (3, 3))
        lsfast.sharpness(objective)
    else:
        with pytest.raises(ZeroDivisionError):
            lsfast.loss_grid(objective, directions, (3, 3))
    assert len(calls) >= 5
    assert_same_state(objective.model, before)


def test_progress_is_shown_with_every_point(capsys):
    lsfast.loss_grid(coordinate(0), plane(2), (3, 4), progress=True)
    assert "12/12" in capsys.readouterr().err


def test_bad_arguments_are_named_before_any_work():
    evaluated = []
    objective = of_parameters(lambda theta: evaluated.append(1) or theta[0], torch.zeros(8, dtype=torch.float64))
    evaluated.clear()

    def grid(directions=None, **arguments):
        return lambda: lsfast.loss_grid(objective, plane(2) if directions is None else directions, **arguments)

    def moved(vectors):
        return grid(lsfast.Directions(vectors))

    eye = torch.eye(8, dtype=torch.float64)
    for call, error, message in (
        (lambda: lsfast.loss_grid(1, plane(2)), TypeError, "objective must be an Objective, got int"),
        (grid(eye), TypeError, "directions must be Directions, got Tensor"),
        (grid(steps=0), ValueError, "steps must be at least 1, got 0"),
        (grid(steps=(3, -2)), ValueError, "steps must be at least 1, got -2"),
        (grid(steps=(3, 2.0)), TypeError, "steps must be an integer, got 2.0"),
        (grid(steps=2.5), TypeError, "steps must be an integer or one for each direction, got 2.5"),
        (grid(steps=True), TypeError, "steps must be an integer, got True"),
        (grid(steps=(3, 3, 3)), ValueError, "steps must be one for each of 2 directions, got 3"),
        (grid(plane(3), steps=(3, 3)), ValueError, "steps must be one for each of 3 directions, got 2"),
        (grid(extent=0), ValueError, "extent must be a finite number > 0, got 0"),
        (grid(extent=float("nan")), ValueError, "extent must be a finite number > 0, got nan"),
        (grid(extent=(-1, 1)), TypeError, r"extent must be a number or a pair \(low, high\)"),
        (grid(extent=((-1, 1),)), ValueError, "extent must be one pair for each of 2 directions, got 1"),
        (grid(extent=((-1, 1), (1, 1))), ValueError, r"low < high, got \(1.0, 1.0\)"),
        (grid(extent=((-1, 1), (0, float("nan")))), ValueError, r"low < high, got \(0.0, nan\)"),
        (grid(extent=((-1, 1), (1, 1 + 1e-15))), ValueError, "must hold 51 different numbers of torch.float64"),
        (grid(coordinates=[[1.0]]), ValueError, "coordinates must be one vector for each of 2 directions, got 1"),
        (grid(coordinates=[[1.0], []]), ValueError, "coordinates must be vectors that are not empty"),
        (grid(coordinates=[[1.0], [float("inf")]]), ValueError, "coordinates must be finite in torch.float64, got inf"),
        (grid(batch_norm="train"), ValueError, "batch_norm must be one of 'eval', 'recompute', got 'train'"),
        (grid(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (grid(subset=0), ValueError, "subset must be at least 1, got 0"),
        (grid(tolerance=0), ValueError, "tolerance must be a finite number > 0, got 0"),
        (grid(tolerance=float("inf")), ValueError, "tolerance must be finite, got inf"),
        (grid(tolerance="1"), TypeError, "tolerance must be a number, got '1'"),
        (
            grid(tolerance=0.1, coordinates=[[0, 1], [1, 0]]),
            ValueError,
            "must increase for a tolerance, got 1.0 before 0.0",
        ),
        (grid(checkpoint="/nowhere/run.npz"), ValueError, "checkpoint must lie in a folder that exists"),
        (grid(metrics={"a": 3}), TypeError, "metrics must map names to callables, got int for 'a'"),
        (moved(eye[:2, :7]), ValueError, "directions must be of 8 parameters, got 7"),
        (moved(eye[:2].float()), ValueError, "directions must have dtype torch.float64, got torch.float32"),
        (moved(eye[:2].to("meta")), ValueError, "directions must be on cpu, got meta"),
        (moved(eye[:2] * torch.tensor([[1.0], [0.0]])), ValueError, "finite and not 0, got 0.0 for 1"),
        (moved(eye[:2] * float("nan")), ValueError, "finite and not 0, got nan for 0"),
    ):
        with pytest.raises(error, match=f"loss_grid: .*{message}"):
            call()
    assert not evaluated
