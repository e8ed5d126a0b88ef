"""Files of packed tensors: safetensors, whose metadata say what each packed tensor is and what its bytes add up to."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, uint8

from lsfast.results import written_whole

_FORMAT, _VERSION = "lsfast.quantized", "1"


class Entry(NamedTuple):
    """A packed tensor: its parts (codes, scales ...), and what they mean, as JSON can hold it."""

    parts: dict[str, Tensor]
    description: dict[str, Any]


def write_entries(path: str | os.PathLike[str], entries: Mapping[str, Entry]) -> None:
    """Write packed tensors by name, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    written: set[int] = set()
    for name, (parts, description) in entries.items():
        described[name] = {**description, "checksums": {}}
        for part, tensor in parts.items():
            whole = tensor.detach().cpu().contiguous()
            # The format has no shared memory: what appears twice (tied weights) is written twice.
            whole = whole.clone() if whole.data_ptr() in written else whole
            written.add(whole.data_ptr())
            tensors[f"{name}.{part}"] = whole
            described[name]["checksums"][part] = _checksum(whole)
    text = json.dumps(described)
    metadata = {"format": _FORMAT, "version": _VERSION, "tensors": text, "checksum": str(zlib.crc32(text.encode()))}
    contents = _safetensors().torch.save(tensors, metadata)
    with written_whole(path) as file:
        file.write(contents)


def read_entries(function: str, path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Read what `write_entries` wrote, or raise ValueError if the file is torn, damaged, foreign or newer."""
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError("another program's safetensors file")
            if metadata.get("version") != _VERSION:
                raise ValueError(f"its version is {metadata.get('version')!r}, and {_VERSION!r} can be read")
            if metadata["checksum"] != str(zlib.crc32(metadata["tensors"].encode())):
                raise ValueError("its description is not the one that was written")
            entries = {}
            for name, description in json.loads(metadata["tensors"]).items():
                checksums = description.pop("checksums")
                parts = {part: file.get_tensor(f"{name}.{part}") for part in checksums}
                for part, tensor in parts.items():
                    if _checksum(tensor) != checksums[part]:
                        raise ValueError(f"the bytes of {name}.{part} are not those that were written")
                entries[name] = Entry(parts, description)
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise unreadable(function, path, error) from None
    return entries


def unreadable(function: str, path: str | os.PathLike[str], why: object) -> ValueError:
    """Return the error of a file that is not a whole one of packed tensors."""
    return ValueError(f"{function}: path must be a whole file of quantized tensors, got {os.fspath(path)!r}: {why}")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("files of quantized tensors need safetensors: pip install 'lsfast[files]'") from error
    return safetensors


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(uint8).numpy().data)
