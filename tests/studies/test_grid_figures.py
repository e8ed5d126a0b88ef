"""Figures of loss grids: what is drawn is what was found, and all of it can be read."""

import builtins
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects
import pytest
import torch
from matplotlib.colors import LogNorm

import lsfast
from lsfast import plotting
from lsfast.plotting.interactive import surface_description

LONG = ("component 0 (0.979 of variance)", "component 1 (0.0201 of variance)")


def grid_of(values, axes=None, labels=(), **more):
    values = torch.as_tensor(values, dtype=torch.float64)
    axes = axes or tuple(torch.linspace(-1, 1, length, dtype=torch.float64) for length in values.shape)
    return lsfast.LossGrid(values, axes, labels=labels, **more)


def bowl(rows=9, columns=7):
    x, y = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    return 0.01 + x**2 + 3 * y**2


def trajectory_of(coordinates, values, variance=(0.979, 0.0201)):
    tensors = {"coordinates": coordinates, "values": values, "variance": variance}
    return SimpleNamespace(**{name: torch.tensor(found, dtype=torch.float64) for name, found in tensors.items()})


def labels_of(figure):
    found = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return found + [text.get_text() for text in figure.texts]


def line_of(axes, label):
    (line,) = (line for line in axes.lines if str(line.get_label()).startswith(label))
    return np.column_stack(line.get_data())


RUN = trajectory_of([[0.9, 0.4], [0.5, -0.2], [1.4, 0.1], [0.0, 0.0]], [2.0, 0.7, 0.5, 0.01])


def test_a_heat_map_has_each_value_in_a_cell_around_its_point():
    x, y = torch.tensor([4.0, 0.0, 1.0]), torch.tensor([0.5, -0.5])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    (mesh,) = plotting.loss_heatmap(grid_of(values, (x, y))).axes[0].collections
    corners = mesh.get_coordinates()  # [rows of y, columns of x, 2]
    assert corners[0, :, 0].tolist() == [-0.5, 0.5, 2.5, 5.5]  # half-way between 0, 1, 4; the ends symmetric
    assert corners[:, 0, 1].tolist() == [-1.0, 0.0, 1.0]
    assert mesh.get_array().tolist() == [[4.0, 6.0, 2.0], [3.0, 5.0, 1.0]]  # in the order of the coordinates
    assert isinstance(mesh.norm, LogNorm)  # a factor of six
    (linear,) = plotting.loss_heatmap(grid_of(values.clamp(max=5.0), (x, y))).axes[0].collections
    assert not isinstance(linear.norm, LogNorm)
    assert plotting.loss_heatmap(grid_of(values[:1], (x[:1], y))).axes[0].get_xlim() == (3.5, 4.5)


@pytest.mark.parametrize("kind", ["contour", "heatmap", "surface", "profile"])
def test_points_that_are_not_finite_are_counted(kind):
    values = bowl(5, 4) if kind != "profile" else bowl(5, 4)[:, 0]
    values[0], values[2, ...].view(-1)[:1] = float("nan"), float("inf")
    count = 5 if kind != "profile" else 2
    (text,) = (text for text in labels_of(grid_of(values).plot(kind=kind)) if "not finite" in text)
    assert text.startswith(f"{count} points not finite")
    assert not [text for text in labels_of(grid_of(bowl(5, 4)).plot()) if "not finite" in text]


@pytest.mark.parametrize("kind", ["contour", "heatmap"])
def test_a_trajectory_is_a_path_in_the_colours_of_its_losses(kind):
    figure = grid_of(bowl()).plot(kind=kind, trajectory=RUN)
    axes = figure.axes[0]
    assert np.array_equal(axes.lines[-3].get_xydata(), RUN.coordinates)
    assert axes.get_xlabel() == "component 0 (97.9 % of variance)"
    assert axes.get_ylabel() == "component 1\n(2.01 % of variance)"
    middle, start, end = (found for found in axes.collections[-3:])
    assert middle.get_array().tolist() == [0.7, 0.5]
    assert (start.get_offsets().tolist(), start.get_array().tolist()) == ([[0.9, 0.4]], [2.0])
    assert (end.get_offsets().tolist(), end.get_array().tolist()) == ([[0.0, 0.0]], [0.01])
    assert (start.norm.vmin, start.norm.vmax) == pytest.approx((0.01, 4.01))  # as what is behind them
    labels = labels_of(figure)
    assert {"start", "end", "4 checkpoints, in the colour of their loss (1 outside)"} <= set(labels)
    assert "origin" not in labels  # the last checkpoint lies there


def test_the_states_of_a_plane_are_marked():
    plane = SimpleNamespace(coordinates=torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.25, 0.5]]))
    axes = plotting.loss_grid(grid_of(bowl()), trajectory=plane).axes[0]
    assert {text.get_text(): text.xy for text in axes.texts if text.get_text() in "abc"} == {
        "a": (0.0, 0.0), "b": (1.0, 0.0), "c": (0.25, 0.5)
    }  # fmt: skip
    assert np.array_equal(line_of(axes, "a, b and c"), plane.coordinates)


def test_evaluated_points_of_an_adaptive_grid_are_dots():
    evaluated = torch.zeros(9, 7, dtype=torch.bool)
    evaluated[::4, ::3] = True
    figure = grid_of(bowl(), evaluated=evaluated).plot()
    dots = line_of(figure.axes[0], "9 of 63 points evaluated")
    assert sorted(map(tuple, dots.round(6).tolist())) == [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    assert "9 of 63 points evaluated" in labels_of(figure)


def test_a_profile_has_a_band_of_one_standard_error_and_a_metric_on_its_own_axis():
    x = torch.linspace(-1, 1, 5)
    values, stderr = 1 + x.double() ** 2, torch.linspace(0.1, 0.2, 5).double()
    grid = grid_of(values, (x,), stderr=stderr, metrics={"accuracy": 1 - values / 4})
    left, right = plotting.loss_profile(grid, metric="accuracy").axes
    (band,) = left.collections
    vertices = {(float(a), float(b)) for a, b in band.get_paths()[0].vertices}
    for a, value, error in zip(x.tolist(), values.tolist(), stderr.tolist(), strict=True):
        assert {(a, value - error), (a, value + error)} <= vertices
    assert right.get_ylabel() == "accuracy"
    assert right.lines[0].get_ydata().tolist() == (1 - values / 4).tolist()
    assert not plotting.loss_profile(grid_of(values, (x,))).axes[0].collections  # not known: no band
    single = plotting.loss_profile(grid_of(values[:1], (x[:1],))).axes[0]
    assert single.lines[1].get_xydata().tolist() == [[-1.0, 2.0]]  # without neighbours it is a point, not a line
    with pytest.raises(ValueError, match="metric must be one of 'accuracy', got 'recall'"):
        plotting.loss_profile(grid, metric="recall")


def test_the_ends_of_a_line_between_two_states_are_joined_by_a_straight_line():
    x = torch.linspace(0, 1, 5).double()
    figure = plotting.loss_profile(grid_of([1.0, 2.0, 4.0, 3.5, 2.0], (x,), ("a to b",)))
    axes = figure.axes[0]
    assert axes.get_xlabel() == "a to b"
    assert line_of(axes, "straight line, barrier 2.5").tolist() == [[0.0, 1.0], [1.0, 2.0]]  # 4 - (1 + 2) / 2
    assert line_of(axes, "ends 1, 2").tolist() == [[0.0, 1.0], [1.0, 2.0]]
    assert not [line for line in axes.lines if line.get_label() == "origin"]


def test_checkpoints_are_marked_on_the_profile_of_their_direction():
    run = trajectory_of([[0.5], [0.0]], [3.0, 0.01], [0.9])
    axes = grid_of(bowl()[:, 3]).plot(trajectory=run).axes[0]
    assert line_of(axes, "2 checkpoints").tolist() == [[0.5, 3.0], [0.0, 0.01]]
    assert axes.get_xlabel() == "component 0 (90 % of variance)"


@pytest.mark.parametrize(
    ("shape", "extents", "kind"),
    [((9, 7), (5.0, 2.5), "contour"), ((9, 7), (1.0, 1.0), "heatmap"), ((9, 7), (0.01, 300.0), "contour"),
     ((9, 7), (1.0, 1.0), "surface"), ((9,), (1.0,), "profile")],
)  # fmt: skip
def test_all_that_is_written_lies_within_the_figure(shape, extents, kind):
    axes = tuple(extent * torch.linspace(-1, 1, count) for extent, count in zip(extents, shape, strict=True))
    values = bowl() if len(shape) == 2 else bowl()[:, 0]
    values.view(-1)[0] = float("nan")
    run = None if kind == "surface" else trajectory_of([[0.0] * len(shape)] * 3, [1.0, 1.0, 1.0])
    figure = grid_of(values, axes, LONG[: len(shape)]).plot(kind=kind, trajectory=run)
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    pixel = 0.01
    assert drawn.x0 >= -pixel
    assert drawn.y0 >= -pixel
    assert drawn.x1 <= page.x1 + pixel
    assert drawn.y1 <= page.y1 + pixel


def test_labels_of_contours_do_not_overlap():
    x, y = torch.linspace(-4, 4, 81), torch.linspace(-0.2, 0.2, 9)
    figure = grid_of((0.05 + x**2)[:, None] + 3 * y**2, (x, y)).plot()
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in figure.axes[0].texts}
    assert len(boxes) > 4
    for one, box in boxes.items():
        overlapping = [other for other in boxes if other.get_text() != one.get_text() and box.overlaps(boxes[other])]
        assert not overlapping, (one, overlapping)


def test_the_interactive_surface_has_the_values_at_their_coordinates():
    values = bowl(3, 4)
    values[0, 1] = float("nan")
    grid = grid_of(values, (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0, 4.0])), ("a<b", "</script>"))
    described = surface_description(grid, RUN)
    plotly.graph_objects.Figure(described)  # raises for what plotly does not know
    surface, minimum, path = described["data"]
    assert (surface["x"], surface["y"]) == ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 4.0])
    assert surface["z"][1] == [None, *values[1:, 1].tolist()]  # rows along y
    assert [minimum[name][0] for name in "xyz"] == [1.0, 1.0, float(values[1, 1])]
    assert [path["x"], path["z"]] == [RUN.coordinates[:, 0].tolist(), RUN.values.tolist()]
    assert described["layout"]["scene"]["zaxis"]["type"] == "log"
    page = plotting.interactive_surface(grid)
    assert "</script>" not in page.split("const surface = ")[1].split(";\nPlotly.newPlot")[0]
    assert " src=" not in page.split("<script>")[0]
    assert len(page) > 1e6  # plotly's script is inside


def test_a_missing_plotly_is_said_with_what_installs_it(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "plotly":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "lsfast\[interactive\]"'):
        plotting.interactive_surface(grid_of(bowl()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grid_of(bowl()).plot(kind="bars"), ValueError, r"LossGrid\.plot: kind must be one of 'contour', "),
        (lambda: grid_of(bowl()).plot(kind="profile"), ValueError, "grid must have one direction, got 2"),
        (lambda: grid_of(bowl()[0]).plot(kind="heatmap"), ValueError, "grid must have two directions, got 1"),
        (lambda: grid_of(torch.zeros(2, 2, 2)).plot(), ValueError, "grid must have two directions, got 3"),
        (lambda: grid_of(bowl()[:1]).plot(), ValueError, "2 points or more along each direction, got 1 x 7"),
        (lambda: grid_of(bowl()).plot(kind="surface", trajectory=RUN), ValueError, "trajectory must be drawn as a"),
        (lambda: grid_of(bowl()[0]).plot(trajectory=RUN), ValueError, "must have the 1 directions of the grid, got 2"),
        (lambda: grid_of(bowl()).plot(trajectory=[1]), TypeError, "must be what trajectory_directions or plane"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
