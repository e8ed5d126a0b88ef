"""What the capture cannot take, and where in the user's code that is."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import fx

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class CaptureError(RuntimeError):
    """A model or loss that the program engine cannot capture; ``engine="autograd"`` may take it."""


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def line_of(error: BaseException) -> str:
    """Return `` at file:line (code)``: where in the user's code an error arose, or nothing."""
    frames = list(traceback.extract_tb(error.__traceback__))
    frames = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    frames = [frame for frame in frames if "/lib/python" not in frame.filename or "site-packages" in frame.filename]
    if not frames:
        return ""
    last = frames[-1]
    return f" at {last.filename}:{last.lineno} ({(last.line or '').strip()})"


def origin(node: fx.Node) -> str:
    """Return `` at file:line``, the innermost frame of the user's code that made a node, or nothing."""
    trace = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if "File " in line]
    for line in reversed(trace):
        if any(folder in line for folder in _NOT_THE_USERS):
            continue
        return f" at {line.split('File ')[1].split(', in ')[0].replace(', line ', ':').replace(chr(34), '')}"
    return ""
