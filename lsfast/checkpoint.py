"""Checkpoints of long runs: what a killed run resumes from, tied to the run that wrote it."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lsfast.results import read_arrays, write_arrays

_CLOSE = 1e-5  # relative: products of one operator agree so far, whatever the number of threads


class Checkpoint:
    """The file a run leaves its state in: whole or not at all, and read by the same run only.

    Parameters
    ----------
    function
        Name of the public function, for messages.
    path
        The file. It need not exist; its folder must.
    description
        What the state depends on, by name: integers, strings, and floats measured on the operator, which may differ by
        a relative 1e-5 (rounding). A file whose description differs belongs to another run.

    Raises
    ------
    ValueError
        If the folder of `path` does not exist.
    """

    def __init__(
        self, function: str, path: str | os.PathLike[str], description: Mapping[str, int | float | str]
    ) -> None:
        self._function, self._path, self._description = function, Path(path), dict(description)
        if not self._path.parent.is_dir():
            raise ValueError(f"{function}: checkpoint must lie in a folder that exists, got {os.fspath(path)!r}")

    def load(self) -> dict[str, Tensor] | None:
        """Return the arrays saved last, or None if there is no file yet.

        Raises
        ------
        ValueError
            If the file is torn, foreign, or of another run: the message names what differs.
        """
        if not self._path.exists():
            return None
        arrays, labels = read_arrays(self._function, self._path, self._kind)
        found = json.loads(labels[0])
        for name in sorted({*found, *self._description}):
            theirs, ours = found.get(name), self._description.get(name)
            if not _agree(theirs, ours):
                raise ValueError(
                    f"{self._function}: checkpoint must be of this run, got {os.fspath(self._path)!r} of one with "
                    f"{name} {theirs!r}, not {ours!r}"
                )
        return dict(_unpacked(name, array) for name, array in arrays.items())

    def save(self, arrays: Mapping[str, Tensor]) -> None:
        """Write the state. If that fails (a full disk), the file of before is kept, and a RuntimeWarning says so."""
        try:
            packed = dict(_packed(name, array) for name, array in arrays.items())
            write_arrays(self._path, self._kind, packed, [json.dumps(self._description)])
        except OSError as error:
            warnings.warn(
                f"{self._function}: checkpoint could not be written, the one of before is kept: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    @property
    def _kind(self) -> str:
        return f"lsfast.{self._function} checkpoint 1"


_BFLOAT16 = " as bfloat16"  # NumPy has no such type: an array of that name holds the bits as int16


def _packed(name: str, array: Tensor) -> tuple[str, Tensor]:
    if array.dtype == torch.bfloat16:
        return name + _BFLOAT16, array.contiguous().view(torch.int16)
    return name, array


def _unpacked(name: str, array: Tensor) -> tuple[str, Tensor]:
    if name.endswith(_BFLOAT16):
        return name.removesuffix(_BFLOAT16), array.view(torch.bfloat16)
    return name, array


def _agree(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=_CLOSE)
    return type(one) is type(other) and one == other
