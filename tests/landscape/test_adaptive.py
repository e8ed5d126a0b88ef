"""Adaptive grids: right where they interpolate, honest about it, and with fewer evaluations."""

import pytest
import torch
from torch import nn

import lsfast
from lsfast.landscape.adaptive import adapt

TOLERANCE = 1e-2


def sampled(function, steps=(51, 51), low=-1.0, high=1.0):
    axes = [torch.linspace(low, high, count, dtype=torch.float64) for count in steps]
    return function(*torch.meshgrid(*axes, indexing="ij")).clone(), axes


def adapted(truth, axes, tolerance=TOLERANCE):
    """Adapt to values that are known, and check what holds for any: (values, evaluated, error)."""
    asked = torch.zeros_like(truth, dtype=torch.int64).flatten()

    def evaluate(indices):
        asked[indices] += 1
        return truth.flatten()[indices]

    values, evaluated, error = adapt(evaluate, axes, tolerance)
    assert torch.equal(asked.view(truth.shape), evaluated.long())  # each once at most
    assert torch.equal(values[evaluated].nan_to_num(nan=7e77), truth[evaluated].nan_to_num(nan=7e77))
    assert 0.0 <= error <= tolerance
    return values, evaluated, error


def height(truth):
    """What the tolerance is relative to: the height above the minimum, a tenth of the range at least."""
    low, high = truth[truth.isfinite()].min(), truth[truth.isfinite()].max()
    return (truth - low).clamp_min(0.1 * (high - low))


@pytest.mark.parametrize("steps", [(51, 51), (50, 37), (17, 9), (101,), (12, 1, 31), (20, 21, 22), (2, 3), (1,)])
def test_polynomials_of_degree_5_are_exact_from_the_coarse_grid_and_one_centre_a_cell(steps):
    def polynomial(*x):
        return sum((x[k] - 0.3) ** 5 * ((1 + x[k - 1]) ** 3 if len(x) > 1 else 1) for k in range(len(x)))

    truth, axes = sampled(polynomial, steps)
    values, evaluated, _ = adapted(truth, axes)
    # Each level interpolates from six values along each axis, with weights whose absolute values sum to less than 4 (at
    # the end of an axis), and twenty roundings each; four levels build on another.
    assert (values - truth).abs().max() <= 4 * 20 * 4 ** len(steps) * 2.0**-53 * truth.abs().max()
    coarse = [min(count, 9) for count in steps]
    cells = [min(count - 1, 8) if count > 1 else 1 for count in steps]
    assert evaluated.sum() <= torch.tensor(coarse).prod() + torch.tensor(cells).prod()


SMOOTH = {
    "bowl": lambda x, y: torch.exp(1.5 * (x * x + 2 * y * y)),
    "ravine": lambda x, y: torch.log1p(50 * (x - y) ** 2 + (x + y) ** 2),
    "waves": lambda x, y: torch.sin(4 * x) * torch.cos(3 * y) + 2 * x,
    "cross-entropy": lambda x, y: torch.logaddexp(4 * x - y, torch.logaddexp(3 * y - x, -2 * x - 2 * y)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_surfaces_are_within_the_tolerance_with_a_third_of_the_evaluations(name):
    truth, axes = sampled(SMOOTH[name])
    values, evaluated, error = adapted(truth, axes)
    assert evaluated.sum() * 3 <= truth.numel()
    assert ((values - truth).abs() / height(truth)).max() <= TOLERANCE
    assert error > 0


def test_faces_are_corrected_by_the_centres_beside_them():
    # Equal in both axes, so that half of what a centre lacks is missing on each face; one level from 9 to 17 points.
    truth, axes = sampled(lambda x, y: x**6 + y**6, (17, 17))
    values, evaluated, error = adapted(truth, axes, 1.0)
    assert evaluated.sum() == 81 + 64
    assert error > 1e-4
    inner = (values - truth)[5:-5, 5:-5]  # where all stencils are symmetric, and their errors equal
    assert inner.abs().max() <= 1e-14


def test_smaller_tolerance_takes_more_points_and_leaves_less_error():
    truth, axes = sampled(SMOOTH["ravine"])
    found = [adapted(truth, axes, tolerance) for tolerance in (1e-1, 1e-2, 1e-3)]
    counts = [int(evaluated.sum()) for _, evaluated, _ in found]
    errors = [float(((values - truth).abs() / height(truth)).max()) for values, _, _ in found]
    assert counts == sorted(set(counts))
    assert errors == sorted(set(errors), reverse=True)


@pytest.mark.parametrize("steps", [(51, 51), (50, 37)])
def test_narrow_ridge_is_followed_along_its_length(steps):
    truth, axes = sampled(lambda x, y: x * x + y * y + torch.exp(-(((x - 0.31 * y - 0.1) / 0.03) ** 2)), steps)
    values, evaluated, _ = adapted(truth, axes)
    far = (values - truth).abs() > TOLERANCE * height(truth)
    assert far.double().mean() <= 0.005
    ridge = (truth - axes[0][:, None] ** 2 - axes[1] ** 2) > 0.5
    assert evaluated[ridge].double().mean() > 0.9
    assert evaluated.double().mean() < 0.5


def test_nothing_is_interpolated_across_nan_and_infinity():
    def holes(x, y):
        hole = torch.where((x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.1, torch.nan, 1 + x * x + x * y * y)
        return torch.where(x < -0.8, torch.inf, torch.where(y > 0.9, -torch.inf, hole))

    truth, axes = sampled(holes)
    values, evaluated, _ = adapted(truth, axes)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(values), kind(truth))
    finite = truth.isfinite()
    torch.testing.assert_close(values[finite], truth[finite], rtol=0, atol=1e-13)  # a cubic: see above
    assert evaluated.sum() * 2 <= truth.numel()  # the inside of a hole is not evaluated point by point


@pytest.mark.parametrize("seed", [25, 29])
def test_refinement_spreads_to_neighbours_and_to_points_no_stencil_of_finite_values_reaches(seed):
    # Seeds at which a bump reaches into a cell whose centre agrees (25), and discs leave straits between them (29).
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, 33, dtype=torch.float64)] * 2
    x, y = torch.meshgrid(*axes, indexing="ij")
    truth = x * x + x * y
    for kind in (torch.nan, torch.inf, torch.nan, 0.0, 0.0, 0.0):
        a, b, size = (torch.rand(3, generator=generator, dtype=torch.float64) * 2 - 1).tolist()
        squares = (x - a) ** 2 + (y - b) ** 2
        if kind == 0.0:
            truth = truth + 5 * torch.exp(-squares / (0.002 + 0.03 * abs(size)))
        else:
            truth = truth.masked_fill(squares < 0.05 + 0.15 * abs(size), kind)
    values, evaluated, _ = adapted(truth, axes)
    assert not evaluated.all()
    assert torch.equal(values.isfinite(), truth.isfinite())
    assert ((values - truth).abs() / height(truth))[truth.isfinite()].max() <= TOLERANCE


def test_grids_of_nothing_but_nan_constants_or_noise_end():
    for truth, most in (
        (torch.full((51, 51), torch.nan), 145),
        (torch.full((51, 51), 2.0), 145),
        (torch.full((51, 51), 0.0), 145),
        (2.0 + 1e-15 * torch.rand(51, 51, dtype=torch.float64), 145),  # rounding is no feature
        (torch.rand(51, 51, generator=torch.Generator().manual_seed(0)), 2601),
    ):
        values, evaluated, _ = adapted(truth.double(), sampled(lambda x, y: x)[1])
        assert evaluated.sum() <= most
        torch.testing.assert_close(values, truth.double(), rtol=1e-13, atol=0, equal_nan=True)


def of_smooth_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return lsfast.Objective(model, nn.CrossEntropyLoss(), (torch.randn(30, 4).double(), torch.arange(30) % 3))


def test_adaptive_grid_of_a_network_is_near_the_full_one():
    objective = of_smooth_network()
    directions = lsfast.random_directions(objective, 2, seed=3)
    metrics = {"accuracy": lambda outputs, targets: (outputs.argmax(1) == targets).double().mean()}
    full = lsfast.loss_grid(objective, directions, 41, 2.0, metrics=metrics)
    grid = lsfast.loss_grid(objective, directions, 41, 2.0, metrics=metrics, tolerance=TOLERANCE)
    assert grid.evaluations == grid.evaluated.sum() <= full.evaluations / 3
    assert 0 < grid.error <= TOLERANCE
    relative = (grid.values - full.values).abs() / height(full.values)
    assert (relative > TOLERANCE).double().mean() <= 0.005  # a centre stands for its cell, if not for every point of it
    assert relative.max() <= 2 * TOLERANCE
    for found, expected in ((grid.stderr, full.stderr), (grid.metrics["accuracy"], full.metrics["accuracy"])):
        torch.testing.assert_close(found[grid.evaluated], expected[grid.evaluated], rtol=1e-12, atol=0)
        assert expected.min() <= found.min()  # linear: never beyond its neighbours
        assert found.max() <= expected.max()


def test_one_direction_given_coordinates_and_progress_of_an_adaptive_grid(capsys):
    objective = of_smooth_network()
    directions = lsfast.random_directions(objective, 1, seed=3)
    axis = torch.linspace(0, 1, 61).double() ** 2
    full = lsfast.loss_grid(objective, directions, coordinates=[axis])
    grid = lsfast.loss_grid(objective, directions, coordinates=[axis], tolerance=TOLERANCE, progress=True)
    assert grid.evaluations < 61 / 2
    assert ((grid.values - full.values).abs() / height(full.values)).max() <= TOLERANCE
    assert "61/61" in capsys.readouterr().err
