"""Trained Bezier curves between two states."""

import importlib
import math

import pytest
import torch

import lsfast

from .problems import evaluated, of_parameters
from .test_connectivity import two_ends


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_training_reaches_the_best_control_point_of_a_quadratic():
    # With s = 2t(1-t) the mean over t of s H (gamma(t) - c) is 0: H drops out, and from the means of s, s^2, s(1-t)^2
    # and s t^2, which are 1/3, 2/15, 1/10 and 1/10, phi = 5/2 c - 3/4 (a + b).
    hessian, c = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64), vector(0.5, -1.0)
    objective = of_parameters(lambda x: 0.5 * (x - c) @ hessian @ (x - c), vector(0, 0))
    a, b = vector(1.0, 0.0), vector(-1.0, 2.0)
    curve = lsfast.bezier(objective, a, b, steps=300, learning_rate=0.3)
    best = 2.5 * c - 0.75 * (a + b)
    start = (a + b) / 2
    assert (curve.control - best).norm() < 1e-2 * (start - best).norm()
    assert torch.equal(curve.point(0.0), a)
    assert torch.equal(curve.point(1.0), b)
    torch.testing.assert_close(curve.point(0.25), 0.5625 * a + 0.375 * curve.control + 0.0625 * b)
    for t, value in zip(curve.grid.coordinates[0].tolist(), curve.grid.values, strict=True):
        torch.testing.assert_close(value, objective.at(curve.point(t)).loss(), rtol=1e-13, atol=1e-15)


def test_curve_goes_round_a_hill_that_the_straight_line_climbs():
    # The loss is 0 on the unit circle; the chord over 150 degrees comes within cos(75) = 0.26 of the centre.
    objective = of_parameters(lambda x: (x.norm() - 1) ** 2, vector(1, 1))
    a, b = vector(1.0, 0.0), vector(math.cos(math.radians(150)), math.sin(math.radians(150)))
    curve = lsfast.bezier(objective, a, b, steps=150, learning_rate=0.1, points=33)
    straight = lsfast.barrier(objective, a, b, steps=33)
    assert straight.above_mean > 0.5
    assert curve.grid.values.max() < 0.01 * straight.above_mean
    # The best parabola through both ends: no closer fit is possible, so a barrier is left and mc below 0.
    assert curve.mode_connectivity == -curve.grid.values.max()
    assert curve.grid.values[curve.grid.coordinates[0].tolist().index(curve.position)] == curve.grid.values.max()


def test_each_end_has_its_own_statistics_and_training_reads_them_between():
    objective, a, b = two_ends()
    moved = lsfast.bezier(objective, a, b, steps=2, points=5)
    ends = lsfast.interpolate(objective, a, b, steps=2).values
    torch.testing.assert_close(moved.grid.values[[0, -1]], ends, rtol=1e-13, atol=0)
    # In the middle of a curve: the mean of both statistics. A batch norm that normalizes by them has a gradient that
    # differs where they do, and with it the control point.
    names = {name for name, _ in objective.model.named_buffers()}
    middle = objective.model.state_dict()
    middle |= {name: (a[name] + b[name]) / 2 for name in names if a[name].is_floating_point()}
    middle |= objective.unflatten(moved.point(0.5))
    at_middle = lsfast.interpolate(objective, middle, middle, steps=2).values[0]
    torch.testing.assert_close(moved.grid.values[2], at_middle, rtol=1e-13, atol=0)
    still = lsfast.bezier(objective, moved.start, moved.end, steps=2, points=5)
    assert not torch.equal(still.control, moved.control)


def test_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    objective = evaluated()
    a, b = objective.parameters, 0.5 * objective.parameters
    monkeypatch.setattr(importlib.import_module("lsfast.landscape.bezier"), "_SECONDS", 0.0)
    whole = lsfast.bezier(objective, a, b, steps=6, seed=3)
    saves = []
    save = lsfast.checkpoint.Checkpoint.save

    def killed(self, arrays):
        save(self, arrays)
        saves.append(1)
        if len(saves) == 4:
            raise KeyboardInterrupt

    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        patch.setattr("lsfast.checkpoint.Checkpoint.save", killed)
        with pytest.raises(KeyboardInterrupt):
            lsfast.bezier(objective, a, b, steps=6, seed=3, checkpoint=path)
    for _ in range(2):  # in the middle, and when all is done
        resumed = lsfast.bezier(objective, a, b, steps=6, seed=3, checkpoint=path)
        assert torch.equal(resumed.control, whole.control)
    with pytest.raises(ValueError, match="bezier: checkpoint must be of this run, got .* with seed 3, not 4"):
        lsfast.bezier(objective, a, b, steps=6, seed=4, checkpoint=path)
    whole.save(tmp_path / "curve.npz")
    read = lsfast.BezierCurve.load(tmp_path / "curve.npz")
    assert torch.equal(read.control, whole.control)
    assert torch.equal(read.grid.values, whole.grid.values)
    assert read.mode_connectivity == whole.mode_connectivity


def test_bad_arguments_are_named():
    objective = of_parameters(lambda x: x[0].sqrt() + x[1] ** 2, vector(1, 1))
    a, b = vector(1, 0), vector(2, 0)
    for arguments, error, message in (
        ((b, {"steps": 0}), ValueError, "bezier: steps must be at least 1, got 0"),
        ((b, {"learning_rate": 0.0}), ValueError, "bezier: learning_rate must be above 0, got 0.0"),
        ((b, {"learning_rate": "1"}), TypeError, "bezier: learning_rate must be a number, got '1'"),
        ((b, {"points": 2}), ValueError, "bezier: points must be at least 3, got 2"),
        ((b, {"seed": -1}), ValueError, "bezier: seed must be at least 0, got -1"),
        ((b[:1], {}), ValueError, r"bezier: b must have shape \[2\], got \[1\]"),
        ((b, {"checkpoint": "no/such/folder"}), ValueError, "bezier: checkpoint must lie in a folder that exists"),
        ((vector(-9, 0), {}), ValueError, "bezier: the gradient must be finite, got NaN or Inf at t = .* in step"),
    ):
        with pytest.raises(error, match=message):
            lsfast.bezier(objective, a, arguments[0], **arguments[1])
    with pytest.raises(ValueError, match="point: t must lie in 0..1, got 1.5"):
        lsfast.bezier(objective, a, b, steps=1).point(1.5)
