"""Files of results: text, JSON, or named arrays in one npz; written in one step, and read only if they are whole."""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

Result = TypeVar("Result")


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a file that takes the name `path` when all is written: a reader sees the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], kind: str, content: Mapping[str, Any]) -> None:
    """Write JSON as a file of this kind, whole or not at all."""
    write_text(path, json.dumps({"kind": kind, **content}, indent=1))


def finite(value: Any) -> Any:
    """Return nested mappings and sequences as JSON can hold them: NaN and Inf, which it does not have, are None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(
    function: str, path: str | os.PathLike[str], kind: str, described: str, read: Callable[[Any], Result]
) -> Result:
    """Return what `read` makes of what `write_json` wrote.

    Raises
    ------
    ValueError
        If the file is torn, foreign or of another kind: it must be what `described` says.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["kind"] != kind:
            raise ValueError(f"kind is {content['kind']!r}")
        return read(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{function}: path must be {described}, got {os.fspath(path)!r}: {error}") from None


def write_arrays(
    path: str | os.PathLike[str], kind: str, arrays: Mapping[str, Tensor], labels: Sequence[str] = ()
) -> None:
    """Write arrays and labels as a file of this kind, whole or not at all."""
    contents: dict[str, Any] = {name: array.detach().cpu().numpy() for name, array in arrays.items()}
    contents |= {"kind": np.array(kind), "labels": np.array(list(labels), dtype=np.str_)}
    with written_whole(path) as file:
        np.savez(file, **contents)


def read_arrays(function: str, path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read what `write_arrays` wrote, or raise ValueError if the file is torn, foreign or of another kind."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            contents = {name: archive[name] for name in archive.files}
        found, labels = str(contents.pop("kind")), tuple(str(label) for label in contents.pop("labels"))
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{function}: path must be a whole file of {kind!r}, got {os.fspath(path)!r}: {error}"
        ) from None
    if found != kind:
        raise ValueError(f"{function}: path must be a file of {kind!r}, got {found!r} in {os.fspath(path)!r}")
    return {name: torch.from_numpy(array) for name, array in contents.items()}, labels
