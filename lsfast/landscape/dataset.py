"""A loss grid as an xarray Dataset, which writes NetCDF and Zarr."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsfast.landscape.grid import LossGrid


def to_xarray(grid: LossGrid) -> Any:
    """Return the dataset, see `LossGrid.to_xarray`."""
    try:
        import xarray
    except ImportError as error:
        raise ImportError('LossGrid.to_xarray: needs xarray: pip install "lsfast[xarray]"') from error
    names: list[str] = []
    for label in grid.labels:
        names.append(_free(label, [*names, "loss", "stderr", "evaluated"]))
    variables = {"loss": grid.values, "stderr": grid.stderr, "evaluated": grid.evaluated}
    for name, metric in grid.metrics.items():
        variables[_free(name, [*names, *variables])] = metric
    coordinates = {
        name: (name, axis.numpy(), {"long_name": label})
        for name, axis, label in zip(names, grid.coordinates, grid.labels, strict=True)
    }
    # NetCDF 3 has no lists of strings.
    labels = json.dumps(list(grid.labels), ensure_ascii=False)
    attributes = {"labels": labels, "evaluations": grid.evaluations, "error": grid.error}
    return xarray.Dataset({name: (names, x.numpy()) for name, x in variables.items()}, coordinates, attributes)


def _free(label: str, taken: list[str]) -> str:
    """Return a label as a name without spaces and signs, and that is not taken."""
    name = re.sub(r"\W+", "_", label).strip("_") or "axis"
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique
