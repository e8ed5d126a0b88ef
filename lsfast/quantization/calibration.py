"""Static scales of activations as a result: one number a layer, written and read as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.formats import QuantScheme
from lsfast.results import read_json, write_json

METHODS = ("max", "percentile", "mse")


@dataclass(frozen=True, eq=False)
class Calibration:
    """The largest magnitude that the input of each layer is quantized with.

    Attributes
    ----------
    scheme, method
        What was calibrated, and how: see `lsfast.calibrate`.
    amax
        Name of a module -> 0-dim float32.

    Examples
    --------
    >>> lsfast.fake_quantize(x, calibration.scheme, amax=calibration["0"])
    """

    scheme: QuantScheme
    method: str
    amax: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """Return the largest magnitude of a module's input, 0-dim float32."""
        if name not in self.amax:
            near = difflib.get_close_matches(str(name), self.amax, n=1, cutoff=0.0)
            raise KeyError(f"Calibration: name must be of a calibrated module, got {name!r}; nearest is {near[0]!r}")
        return self.amax[name]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration as JSON, whole or not at all."""
        content = {
            "scheme": dataclasses.asdict(self.scheme),
            "method": self.method,
            "amax": {name: float(value) for name, value in self.amax.items()},
        }
        write_json(path, "lsfast.Calibration", content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration that `save` wrote; its tensors are on the CPU.

        Raises
        ------
        ValueError
            If the file is torn or holds something else.
        """

        def read(content: Any) -> Calibration:
            amax = {str(name): torch.tensor(float(value)) for name, value in content["amax"].items()}
            method = checks.one_of("load", "method", content["method"], METHODS)
            return cls(QuantScheme.from_fields(content["scheme"]), method, amax)

        return read_json("Calibration.load", path, "lsfast.Calibration", "a calibration", read)
