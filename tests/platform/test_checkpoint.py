"""Checkpoints: whole or not at all, of one run only."""

import resource
import signal

import pytest
import torch

from lsfast.checkpoint import Checkpoint

DESCRIPTION = {"steps": 64, "dtype": "torch.float32", "operator": 3.25}


def test_arrays_come_back_as_they_were(tmp_path):
    checkpoint = Checkpoint("eigsh", tmp_path / "run.npz", DESCRIPTION)
    assert checkpoint.load() is None
    rows = torch.randn(3, 4)
    checkpoint.save({"rows": rows, "half": rows.bfloat16(), "count": torch.tensor(2)})
    found = checkpoint.load()
    assert torch.equal(found["rows"], rows)
    assert torch.equal(found["half"], rows.bfloat16())
    assert int(found["count"]) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 65}, "of one with steps 64, not 65"),
        ({"dtype": "torch.float64"}, "of one with dtype 'torch.float32', not 'torch.float64'"),
        ({"operator": 3.26}, "of one with operator 3.25, not 3.26"),
        ({"seed": 1}, "of one with seed None, not 1"),
    ],
)
def test_a_checkpoint_of_another_run_says_what_differs(tmp_path, changed, message):
    Checkpoint("eigsh", tmp_path / "run.npz", DESCRIPTION).save({})
    with pytest.raises(ValueError, match="eigsh: checkpoint must be of this run, got .*run.npz' " + message):
        Checkpoint("eigsh", tmp_path / "run.npz", DESCRIPTION | changed).load()


def test_rounding_of_a_measured_number_is_not_another_run(tmp_path):
    Checkpoint("eigsh", tmp_path / "run.npz", DESCRIPTION).save({})
    assert Checkpoint("eigsh", tmp_path / "run.npz", DESCRIPTION | {"operator": 3.250001}).load() == {}


def test_a_torn_file_and_one_of_another_function_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    Checkpoint("eigsh", path, DESCRIPTION).save({"rows": torch.randn(100)})
    with pytest.raises(ValueError, match="spectral_density: path must be a file of"):
        Checkpoint("spectral_density", path, DESCRIPTION).load()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="eigsh: path must be a whole file"):
        Checkpoint("eigsh", path, DESCRIPTION).load()


def test_a_folder_that_does_not_exist_is_named_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="eigsh: checkpoint must lie in a folder that exists"):
        Checkpoint("eigsh", tmp_path / "none" / "run.npz", DESCRIPTION)


def test_a_full_disk_keeps_the_checkpoint_of_before(tmp_path):
    checkpoint = Checkpoint("eigsh", tmp_path / "run.npz", DESCRIPTION)
    checkpoint.save({"count": torch.tensor(1)})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match="eigsh: checkpoint could not be written, the one of before is kept"):
            checkpoint.save({"count": torch.tensor(2), "rows": torch.randn(10000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert int(checkpoint.load()["count"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
