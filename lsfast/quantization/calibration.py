"""Static scales of activations as a result: one number a layer, written and read as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lsfast import checks
from lsfast.formats import QuantScheme
from lsfast.results import write_text

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
            "kind": "lsfast.Calibration",
            "scheme": dataclasses.asdict(self.scheme),
            "method": self.method,
            "amax": {name: float(value) for name, value in self.amax.items()},
        }
        write_text(path, json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration that `save` wrote; its tensors are on the CPU.

        Raises
        ------
        ValueError
            If the file is torn or holds something else.
        """
        try:
            content = json.loads(Path(path).read_text())
            if content["kind"] != "lsfast.Calibration":
                raise ValueError(f"kind is {content['kind']!r}")
            described = dict(content["scheme"])
            if isinstance(described["block"], list):
                described["block"] = tuple(described["block"])
            amax = {str(name): torch.tensor(float(value)) for name, value in content["amax"].items()}
            return cls(QuantScheme(**described), checks.one_of("load", "method", content["method"], METHODS), amax)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Calibration.load: path must be a calibration, got {os.fspath(path)!r}: {error}"
            ) from None
