"""Loss grids that are interrupted: resumed with the same bits, and never into another grid."""

import pytest
import torch
from killed import assert_survives_kills
from torch import nn

import lsfast
from lsfast.landscape import mesh

from .problems import evaluated


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a small grid with a checkpoint, `changes` of its arguments; it may be interrupted after some evaluations."""
    monkeypatch.setattr(mesh, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr("lsfast.program.evaluation._MOST", 5)  # points together: what a group holds a multiple of
    objective = evaluated()
    directions = lsfast.random_directions(objective, 2, seed=1)
    evaluate = lsfast.Objective.evaluate

    def run(
        stop=None, log=None, checkpoint=tmp_path / "run.npz", objective=objective, directions=directions, **changes
    ):
        calls = []

        def counted(self, *arguments, **named):
            calls.append(len(arguments[2]))
            if stop is not None and len(calls) > stop:
                raise KeyboardInterrupt
            return evaluate(self, *arguments, **named)

        monkeypatch.setattr(lsfast.Objective, "evaluate", counted)
        try:
            return lsfast.loss_grid(objective, directions, **{"steps": (9, 12), "checkpoint": checkpoint, **changes})
        finally:
            monkeypatch.setattr(lsfast.Objective, "evaluate", evaluate)
            if log is not None:
                log.extend(calls)

    run.objective, run.directions = objective, directions
    return run


def assert_same(a, b):
    for one, other in (
        (a.values, b.values),
        (a.stderr, b.stderr),
        *((a.metrics[key], b.metrics[key]) for key in a.metrics),
    ):
        assert torch.equal(one, other)
    assert a.metrics.keys() == b.metrics.keys()
    assert torch.equal(a.evaluated, b.evaluated)
    assert a.error == b.error


@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_interrupted_run_evaluates_the_rest_and_has_the_bits_of_one_that_was_not(run, monkeypatch, tolerance):
    options = {"steps": (19, 12), "tolerance": tolerance, "metrics": {"first": lambda outputs, targets: outputs[0, 0]}}
    first, second, third = [], [], []
    expected = run(checkpoint=None, **options)
    with pytest.raises(KeyboardInterrupt):
        run(stop=3, log=first, **options)
    monkeypatch.setattr("lsfast.program.evaluation._MOST", 7)  # as on a machine with other memory
    assert_same(run(log=second, **options), expected)
    assert_same(run(log=third, **options), expected)
    assert len(third) == 1  # what the grid is known by
    assert sum(first[1:3]) + sum(second[1:]) == expected.evaluations


def test_state_is_saved_no_more_often_than_once_a_second(run, monkeypatch, tmp_path):
    monkeypatch.setattr(mesh, "_SAVE_EVERY", 1e6)
    with pytest.raises(KeyboardInterrupt):
        run(stop=3)
    assert not list(tmp_path.iterdir())
    run()
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


def test_checkpoint_of_another_grid_is_refused_with_what_differs(run):
    run()
    objective, vectors = run.objective, run.directions.vectors
    inputs, targets = objective.data
    other = lsfast.Objective(objective.model, nn.CrossEntropyLoss(), (inputs, targets.flip(0)))
    swapped = vectors.clone()
    swapped[1, 0], swapped[1, 1] = vectors[1, 1], vectors[1, 0]
    rows = {"1.running_mean": torch.zeros(3, 3)}
    for changes, difference in (
        ({"steps": (12, 9)}, "coordinates 0"),
        ({"steps": (9, 13)}, "coordinates 1"),
        ({"extent": 0.5}, "coordinates 0"),
        ({"directions": lsfast.Directions(vectors.flip(0))}, "direction 0"),
        ({"directions": lsfast.Directions(torch.stack([vectors[0], -vectors[1]]))}, "direction 1"),
        ({"directions": lsfast.Directions(swapped)}, "direction 1"),
        ({"directions": lsfast.Directions(vectors, 1.01 * objective.parameters)}, "loss at the origin|origin"),
        ({"directions": lsfast.Directions(vectors, buffers=rows)}, "buffer 1.running_mean 0"),
        ({"objective": other}, "loss at the origin"),
        ({"scheme": "nvfp4"}, "loss at the origin|scheme"),
        ({"seed": 1}, "seed"),
        ({"metrics": {"a": lambda outputs, targets: 1.0}}, "metrics"),
        ({"batch_norm": "recompute"}, "batch norm"),
        ({"subset": 5}, "loss at the origin|subset"),
        ({"tolerance": 0.1}, "tolerance"),
    ):
        calls = []
        with pytest.raises(ValueError, match=rf"loss_grid: checkpoint must be of this run, got .* with ({difference})"):
            run(log=calls, **changes)
        assert len(calls) == 1


def test_torn_checkpoint_is_refused(run, tmp_path):
    path = tmp_path / "run.npz"
    run()
    whole = path.read_bytes()
    middle = len(whole) // 2
    for content in (b"", whole[:middle], whole[:-1], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="loss_grid: path must be a whole file"):
            run()
        assert path.read_bytes() == content


def test_loss_that_is_nan_at_the_origin_does_not_stop_a_resumed_run(run):
    objective = run.objective
    nowhere = lsfast.Directions(run.directions.vectors, torch.full_like(objective.parameters, torch.nan))
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="108 of 108 values"):
            run(directions=nowhere)


def test_grids_killed_at_random_moments_have_the_bits_of_uninterrupted_ones(tmp_path):
    setup = """
    import torch.nn as nn
    from lsfast.landscape import mesh
    from lsfast.program import evaluation
    mesh._SAVE_EVERY, evaluation._MOST = 0.005, 8
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    objective = lsfast.Objective(model, nn.CrossEntropyLoss(), (torch.randn(40, 5), torch.arange(40) % 3))
    directions = lsfast.random_directions(objective, 2)
    lsfast.loss_grid(objective, directions, 2)  # the capture is done before the runs are timed

    def slow_metric(outputs, targets):
        time.sleep(0.0004)
        return outputs[0, 0]

    def grid(tolerance, checkpoint):
        options = {"metrics": {"m": slow_metric}, "tolerance": tolerance, "checkpoint": checkpoint}
        found = lsfast.loss_grid(objective, directions, (17, 19), 3.0, **options)
        return found.values, found.stderr, found.metrics["m"], found.evaluated
    """
    run = """
    second = checkpoint and checkpoint + ".adaptive"
    found = grid(None, checkpoint) + grid(0.003, second)
    if second:
        os.remove(second)
    return found
    """
    assert_survives_kills(tmp_path, setup, run, kills=20)
