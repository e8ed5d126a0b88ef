"""Loss grids: values at the coordinates they claim, and nothing disturbed."""

import copy

import pytest
import torch
from torch import nn

import lsfast

from .problems import of_network, of_parameters

REAL = [torch.float32, torch.float64]


def plane(count, dtype=torch.float64):
    return lsfast.Directions(torch.eye(8, dtype=dtype)[[5, 0, 3][:count]])


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


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("steps", [9, (9, 5), (5, 9, 17)])
def test_quadratic_is_exact_where_arithmetic_is(steps, dtype):
    # Integers below 4 and coordinates that are multiples of 1/8: every product and sum has few bits and is exact.
    generator = torch.Generator().manual_seed(0)
    count = 1 if isinstance(steps, int) else len(steps)
    half = torch.randint(-3, 4, (6, 6), generator=generator).to(dtype)
    hessian = half + half.T
    theta = torch.randint(-3, 4, (6,), generator=generator).to(dtype)
    vectors = torch.randint(-3, 4, (count, 6), generator=generator).to(dtype)
    objective = of_parameters(lambda x: 0.5 * x @ hessian @ x, theta)
    grid = lsfast.loss_grid(objective, lsfast.Directions(vectors), steps)
    shape = grid.values.shape
    mesh = torch.stack(torch.meshgrid(*(axis.double() for axis in grid.coordinates), indexing="ij"), -1)
    exact = hessian.double()
    step = mesh.reshape(-1, count) @ vectors.double()
    at_theta, slope = 0.5 * theta.double() @ exact @ theta.double(), exact @ theta.double()
    expected = at_theta + step @ slope + 0.5 * ((step @ exact) * step).sum(1)
    assert torch.equal(grid.values, expected.view(shape))


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


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("steps", [2, 3, 10, 51, 100, 101])
@pytest.mark.parametrize("extent", [1.0, 0.1, 3.3])
def test_axes_include_their_ends_and_are_antisymmetric(steps, extent, dtype):
    (axis,) = lsfast.loss_grid(coordinate(0, dtype), plane(1, dtype), steps, extent).coordinates
    end = torch.tensor(extent, dtype=torch.float64).to(dtype)
    assert axis[0] == -end
    assert axis[-1] == end
    assert torch.equal(axis, -axis.flip(0))
    if steps % 2:
        assert axis[steps // 2] == 0
    gaps = axis.double().diff()
    # Each end of a gap is 3 roundings of float64 off (weight, product, sum), and rounded to dtype; of the extent all.
    bound = 2 * (3 * 2.0**-53 + torch.finfo(dtype).eps / 2) * extent
    assert (gaps - 2 * extent / (steps - 1)).abs().max() <= bound


def test_extents_may_differ_and_coordinates_may_be_given():
    grid = lsfast.loss_grid(coordinate(5), plane(2), (3, 2), extent=((-1, 1), (0.25, 0.5)))
    assert [axis.tolist() for axis in grid.coordinates] == [[-1.0, 0.0, 1.0], [0.25, 0.5]]
    given = lsfast.loss_grid(coordinate(5, torch.float32), plane(2, torch.float32), coordinates=[[3.0, 0.1], [7]])
    assert given.values.tolist() == [[3.0], [torch.tensor(0.1).item()]]
    assert given.coordinates[0].dtype == torch.float32


def test_nan_and_infinity_are_kept_as_values():
    objective = of_parameters(lambda theta: (1 + 4 * theta[0]).log() / (theta[0] + 0.5), torch.zeros(2))
    grid = lsfast.loss_grid(objective, lsfast.Directions(torch.eye(2)[:1]), coordinates=[[-0.5, -0.25, -0.3, 0.0]])
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


@pytest.mark.parametrize("dtype", REAL)
def test_saved_grid_is_read_back_whole(tmp_path, dtype):
    values = torch.tensor([[1.0, float("nan")], [float("inf"), -0.0], [2.0, 3.0]], dtype=torch.float64)
    axes = (torch.tensor([-1.0, 0.1, 1.0], dtype=dtype), torch.tensor([0.0, 0.5], dtype=dtype))
    grid = lsfast.LossGrid(values, axes, {"accuracy": values + 1}, ("über", "b"))
    path = tmp_path / "grid"
    grid.save(path)
    grid.save(str(path))  # over the one before
    assert [file.name for file in tmp_path.iterdir()] == ["grid"]
    found = lsfast.LossGrid.load(path)
    assert torch.equal(found.values.view(torch.int64), values.view(torch.int64))
    assert torch.equal(found.metrics["accuracy"].view(torch.int64), (values + 1).view(torch.int64))
    assert len(found.coordinates) == 2
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found.coordinates, axes, strict=True))
    assert found.labels == grid.labels


def test_torn_and_foreign_files_are_never_read(tmp_path):
    path = tmp_path / "grid.npz"
    lsfast.LossGrid(torch.ones(20, 20, dtype=torch.float64), (torch.arange(20.0), torch.arange(20.0))).save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (b"", b"hello", whole[:100], whole[:middle], whole[:-1], whole[:-30], flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"LossGrid.load: path must be a whole file .*grid\.npz"):
            lsfast.LossGrid.load(path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="LossGrid.load: path must be a whole file"):
        lsfast.LossGrid.load(path)
    with pytest.raises(FileNotFoundError):
        lsfast.LossGrid.load(tmp_path / "none")


def test_save_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "grid.npz"
    lsfast.LossGrid(torch.ones(2), (torch.arange(2.0),)).save(path)
    before = path.read_bytes()

    def fail(*arguments, **named):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        lsfast.LossGrid(torch.zeros(2), (torch.arange(2.0),)).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
