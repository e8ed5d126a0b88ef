"""Loss grids that are kept: files that are whole or refused, and datasets."""

import json
import sys

import pytest
import torch
import xarray

import lsfast
from lsfast.results import write_arrays

REAL = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", REAL)
def test_saved_grid_is_read_back_whole(tmp_path, dtype):
    values = torch.tensor([[1.0, float("nan")], [float("inf"), -0.0], [2.0, 3.0]], dtype=torch.float64)
    axes = (torch.tensor([-1.0, 0.1, 1.0], dtype=dtype), torch.tensor([0.0, 0.5], dtype=dtype))
    evaluated = torch.tensor([[True, False], [True, True], [False, True]])
    grid = lsfast.LossGrid(values, axes, {"accuracy": values + 1}, ("über", "b"), values / 3, evaluated, 0.25)
    path = tmp_path / "grid"
    grid.save(path)
    grid.save(str(path))  # over the one before
    assert [file.name for file in tmp_path.iterdir()] == ["grid"]
    found = lsfast.LossGrid.load(path)
    assert torch.equal(found.values.view(torch.int64), values.view(torch.int64))
    assert torch.equal(found.metrics["accuracy"].view(torch.int64), (values + 1).view(torch.int64))
    assert len(found.coordinates) == 2
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found.coordinates, axes, strict=True))
    assert torch.equal(found.stderr.view(torch.int64), grid.stderr.view(torch.int64))
    assert torch.equal(found.evaluated, evaluated)
    assert (found.labels, found.error, found.evaluations, found.nonfinite) == (("über", "b"), 0.25, 4, 2)


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
    write_arrays(path, "lsfast.LossGrid 1", {"values": torch.ones(2), "coordinates 0": torch.arange(2.0)})
    with pytest.raises(
        ValueError, match=r"must be a file of 'lsfast.LossGrid 2', got 'lsfast.LossGrid 1' in .*grid\.npz"
    ):
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


def test_what_is_left_out_of_a_grid_is_every_point_evaluated_with_error_unknown():
    grid = lsfast.LossGrid(torch.zeros(2, 3), (torch.arange(2.0), torch.arange(3.0)))
    assert grid.stderr.isnan().all()
    assert grid.evaluated.all()
    assert grid.labels == ("direction 0", "direction 1")
    with pytest.raises(ValueError, match=r"LossGrid: accuracy must have shape \[2, 3\], got \[2\]"):
        lsfast.LossGrid(grid.values, grid.coordinates, {"accuracy": torch.zeros(2)})
    with pytest.raises(ValueError, match="LossGrid: labels must be one for each of 2 directions, got 1"):
        lsfast.LossGrid(grid.values, grid.coordinates, labels=("a",))


def test_dataset_is_read_back_from_netcdf(tmp_path):
    values = torch.tensor([[1.0, float("nan")], [float("inf"), -0.5], [2.0, 3.0]], dtype=torch.float64)
    axes = (torch.tensor([-1.0, 0.1, 1.0]), torch.tensor([0.0, 0.5]))
    evaluated = values > 1.5
    labels = ("räumlich 0", "loss")  # a name that is taken
    grid = lsfast.LossGrid(values, axes, {"top-1": values + 1}, labels, values * 0.1, evaluated, 0.125)
    dataset = grid.to_xarray()
    assert dataset.loss.dims == ("räumlich_0", "loss_2")
    assert dataset.loss.sel(räumlich_0=-0.9, loss_2=0.1, method="nearest") == 1.0
    dataset.to_netcdf(tmp_path / "grid.nc", engine="scipy")
    with xarray.open_dataset(tmp_path / "grid.nc", engine="scipy") as found:
        xarray.testing.assert_identical(found.load().drop_attrs(), dataset.drop_attrs())
        assert (found.evaluations, found.error) == (3, 0.125)
        assert json.loads(found.labels) == list(labels)
        for name, tensor in (
            ("loss", values),
            ("top_1", values + 1),
            ("stderr", grid.stderr),
            ("evaluated", evaluated),
        ):
            assert torch.equal(torch.tensor(found[name].values).nan_to_num(7.0), tensor.nan_to_num(7.0))
        for name, axis, label in zip(found.loss.dims, axes, labels, strict=True):
            assert torch.equal(torch.tensor(found[name].values), axis)
            assert found[name].long_name == label


def test_dataset_without_xarray_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r'to_xarray: needs xarray: pip install "lsfast\[xarray\]"'):
        lsfast.LossGrid(torch.zeros(2), (torch.arange(2.0),)).to_xarray()
