"""Figures: written whole, readable with NaN and Inf in them, and without a trace in matplotlib's settings."""

import builtins

import matplotlib
import numpy as np
import pytest
import torch

import lsfast
from lsfast import plotting
from lsfast.plotting.grid_scale import levels_and_norm

MATRIX = torch.diag(torch.cat([torch.linspace(-0.5, 0.5, 60), torch.tensor([5.0, 40.0])]).double())


@pytest.fixture
def density():
    return lsfast.spectral_density(MATRIX, probes=3, steps=20, seed=0)


def grid_of(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return lsfast.LossGrid(values, tuple(torch.linspace(-1, 1, length) for length in values.shape))


def bowl(rows=9, columns=7):
    x, y = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    return 0.01 + x**2 + 3 * y**2


def table_of(values):
    return lsfast.PrecisionTable(("fp32", "bf16"), ("loss", "sharpness"), torch.tensor(values, dtype=torch.float64))


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("scale", ["linear", "symlog"])
@pytest.mark.parametrize("eigenvalues", [None, torch.tensor([40.0, 5.0])])
def test_a_density_is_drawn_at_its_values(density, tmp_path, scale, eigenvalues):
    figure = plotting.spectral_density(density, tmp_path / "s.png", eigenvalues=eigenvalues, scale=scale, title="t")
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    curve, marks = axes.lines
    expected = [40.0, 5.0] if eigenvalues is not None else [float(density.nodes.min()), float(density.nodes.max())]
    assert sorted(marks.get_xdata()) == sorted(expected)
    x, y = (np.asarray(data) for data in curve.get_data())
    if scale == "linear":
        value = density.density(torch.as_tensor(x)).value.numpy()
        shown = value > y.min() * 1.01
        assert np.allclose(y[shown], value[shown], rtol=1e-12)
    # The outlier at 40 is a peak of its own: higher than the valley beside it.
    assert y[np.abs(x - 40).argmin()] > 3 * y[np.abs(x - 20).argmin()]
    assert pixels(tmp_path / "s.png").size > 0


def test_the_density_of_a_symmetric_log_axis_integrates_to_one(density):
    figure = plotting.spectral_density(density, scale="symlog")
    x, y = (np.asarray(data) for data in figure.axes[0].lines[0].get_data())
    threshold = 0.01 * float(density.nodes.abs().max())
    above = np.where(y > 1.01 * y.min(), y, 0.0)  # not the floor of the axis
    # Four bandwidths of margin hold all but 1e-4 of each Gaussian; what lies under the floor is below 1e-2.
    assert np.trapezoid(above, np.arcsinh(x / threshold)) == pytest.approx(1.0, abs=1e-2)


POSITIVE = torch.diag(torch.logspace(-6, 2, 90).double())


def test_a_logarithmic_axis_shows_the_density_per_decade():
    density = lsfast.spectral_density(POSITIVE, probes=3, steps=60, seed=0)
    figure = plotting.spectral_density(density, scale="log", eigenvalues=torch.tensor([100.0, 50.0, 1e-9, -1.0]))
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == r"eigenvalue $\lambda$"
    assert axes.get_ylabel() == "density per decade"
    curve, marks = axes.lines
    assert sorted(marks.get_xdata()) == [50.0, 100.0]  # what is off the axis is not marked
    x, y = (np.asarray(data) for data in curve.get_data())
    shown = np.where(y > 1.01 * y.min(), y, 0.0)
    # As on the symmetric axis, margins and floor hold less than 1e-2; a density per e would integrate to 0.43.
    assert np.trapezoid(shown, np.log10(x)) == pytest.approx(1.0, abs=1e-2)
    # 90 eigenvalues evenly over 8 decades, well away from the ends, where the quadrature resolves them.
    middle = (x > 1e-3) & (x < 10)
    assert np.median(y[middle]) == pytest.approx(1 / 8, rel=0.5)


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
def test_the_legend_does_not_cover_the_curve(scale):
    values = torch.linspace(1, 2, 300).double() if scale == "linear" else torch.logspace(-4, 1, 300).double()
    figure = plotting.spectral_density(lsfast.spectral_density(torch.diag(values), 8, 40), scale=scale)
    (axes,) = figure.axes
    figure.canvas.draw()
    box = axes.get_legend().get_window_extent()
    places = axes.transData.transform(np.column_stack(axes.lines[0].get_data()))
    assert not any(box.contains(*place) for place in places)


def test_the_share_of_zeros_is_named_on_a_logarithmic_axis():
    values = torch.cat([torch.zeros(80), torch.linspace(1, 2, 20)]).double()
    density = lsfast.spectral_density(torch.diag(values), probes=50, steps=30)
    figure = plotting.spectral_density(density, scale="log")
    assert "(80% at or below 2.8e-14 not shown)" in figure.axes[0].get_xlabel()
    assert figure.axes[0].get_xlim()[0] > 0.9
    with pytest.raises(ValueError, match="'log' must be given a positive eigenvalue, got 0 as the largest"):
        plotting.spectral_density(lsfast.spectral_density(torch.zeros(4, 4), 2, 4), scale="log")
    with pytest.raises(ValueError, match="must have no negative eigenvalues"):
        plotting.spectral_density(lsfast.spectral_density(MATRIX, 2, 20), scale="log")


def pairs_of(values, residuals):
    values, residuals = (torch.tensor(x, dtype=torch.float64) for x in (values, residuals))
    return lsfast.Eigenpairs(values, torch.eye(len(values), dtype=torch.float64), residuals)


def test_eigenvalues_are_drawn_by_rank_with_bars_of_their_residuals(tmp_path):
    pairs = pairs_of([-2.0, 5.0, 1.0], [0.5, 0.1, 0.0])
    figure = plotting.eigenvalues(pairs, tmp_path / "e.png", title="t")
    upper, lower = figure.axes
    (container,) = upper.containers
    points, _, (bars,) = container.lines
    assert list(points.get_xdata()) == [1, 2, 3]
    assert list(points.get_ydata()) == [5.0, 1.0, -2.0]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [(4.9, 5.1), (1.0, 1.0), (-2.5, -1.5)]
    relative = lower.lines[0].get_ydata()
    assert list(relative[[0, 2]]) == [0.02, 0.1]
    assert np.isnan(relative[1])  # no logarithm of zero
    assert upper.get_yscale() == "linear"
    assert pixels(tmp_path / "e.png").size > 0


@pytest.mark.parametrize("values", [[100.0, 3.0, 1.0], [0.0], [0.0, 0.0], list(range(1, 26))])
def test_eigenvalues_are_drawn_whatever_they_are(values, tmp_path):
    figure = plotting.eigenvalues(pairs_of(values, [0.0] * len(values)), tmp_path / "e.png")
    assert figure.axes[0].get_yscale() == ("log" if values[0] == 100.0 else "linear")
    assert len(figure.axes[1].get_xticks()) <= 10
    assert pixels(tmp_path / "e.png").size > 0


def test_a_grid_is_drawn_with_its_first_axis_horizontal(tmp_path):
    figure = plotting.loss_grid(grid_of(bowl(61, 81)), tmp_path / "g.png", title="t")
    axes = figure.axes[0]
    assert axes.get_aspect() == 1.0
    (lowest,) = (line for line in axes.lines if line.get_label().startswith("minimum"))
    assert (lowest.get_xdata()[0], lowest.get_ydata()[0]) == pytest.approx((0.0, 0.0), abs=1e-6)
    (lines,) = [c for c in axes.collections if c.get_facecolor().size == 0]
    # x^2 + 3 y^2: a closed contour is wider along x by the root of 3, up to the width of a cell.
    inner = [path.vertices for path in lines.get_paths() if len(path.vertices) and np.abs(path.vertices).max() < 0.5]
    width, height = np.ptp(inner[-1], axis=0)
    assert width == pytest.approx(3**0.5 * height, rel=0.1)
    assert pixels(tmp_path / "g.png").size > 0


@pytest.mark.parametrize("draw", [plotting.loss_grid, plotting.loss_surface])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_points_that_are_not_finite_are_left_out(tmp_path, draw, bad):
    values = bowl()
    values[:3] = bad
    draw(grid_of(values), tmp_path / "bad.png")
    draw(grid_of(bowl()), tmp_path / "good.png")
    assert not np.array_equal(pixels(tmp_path / "bad.png"), pixels(tmp_path / "good.png"))


@pytest.mark.parametrize(
    "values", [torch.full((4, 5), 2.0), bowl() - 5.0, 1.0 + 1e-9 * bowl(), 1e-8 * bowl(), bowl(2, 2)]
)
def test_grids_that_are_flat_negative_or_tiny_are_drawn(values, tmp_path):
    plotting.loss_grid(grid_of(values), tmp_path / "g.png")
    plotting.loss_surface(grid_of(values), tmp_path / "s.png")
    assert len(list(tmp_path.iterdir())) == 2


def test_one_direction_is_a_profile(tmp_path):
    values = bowl()[:, 3]
    values[-1] = float("inf")
    figure = plotting.loss_grid(grid_of(values), tmp_path / "p.png")
    x, y = figure.axes[0].lines[0].get_data()
    assert list(y[:-1]) == values[:-1].tolist()
    assert np.isnan(y[-1])


@pytest.mark.parametrize("span", [1.5, 4.0, 30.0, 1e3, 1e6, 1e12])
def test_contour_levels_are_round_within_the_values_and_few(span):
    levels, _ = levels_and_norm(np.ma.masked_invalid(np.linspace(0.013, 0.013 * span, 100)))
    assert 3 <= len(levels) <= 13
    assert (levels > 0.013).all()
    assert (levels < 0.013 * span).all()
    for level in levels:
        assert float(f"{level:.3g}") == pytest.approx(level, rel=1e-9)


def test_a_table_is_drawn_with_a_panel_for_each_measure(tmp_path):
    figure = plotting.precision(table_of([[1.0, 2.0], [1.5, float("nan")]]), tmp_path / "t.png", title="t")
    assert [axes.get_xlabel() for axes in figure.axes] == ["loss", "sharpness"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["nan"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["fp32", "bf16"]
    assert table_of([[1.0, 1.0], [100.0, 1.0]]).plot().axes[0].get_xscale() == "log"


def test_global_settings_and_figures_of_others_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plotting.loss_grid(grid_of(bowl()), tmp_path / "g.png")
    plotting.precision(table_of([[1.0, 2.0], [1.5, 3.0]]), tmp_path / "t.pdf")
    assert dict(matplotlib.rcParams) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.png", "t.pdf"]


def test_a_figure_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="unknown"):
        plotting.loss_grid(grid_of(bowl()), tmp_path / "g.unknown")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.loss_grid(grid_of(torch.zeros(2, 2, 2))), "grid must have one or two directions, got 3"),
        (lambda: plotting.loss_surface(grid_of(torch.zeros(3))), "grid must have two directions, got 1"),
        (lambda: plotting.loss_grid(grid_of(torch.full((2, 2), torch.nan))), "grid must have a finite value, got none"),
        (
            lambda: plotting.spectral_density(lsfast.spectral_density(MATRIX, 1, 4), scale="ln"),
            "scale must be one of 'linear', 'symlog', 'log', got 'ln'",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_probe_has_no_band():
    figure = plotting.spectral_density(lsfast.spectral_density(MATRIX, probes=1, steps=20))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["one probe", "extreme Ritz values"]


def test_a_missing_matplotlib_is_said_with_what_installs_it(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "lsfast\[demo\]"'):
        plotting.precision(table_of([[1.0, 2.0], [1.5, 3.0]]))
