"""The orders of threads that an emulated kernel runs under, and the check that they make no difference.

An emulated test of a kernel is three lines: run it under every schedule, and compare with the CPU kernel's bits:

    def test_rows_are_scaled_as_on_the_cpu(emulated):
        result = assert_same_under_schedules(lambda: emulated.scale_rows(x, scale))
        assert_same_bits(result, torch.ops.lsfast.scale_rows(x, scale))

`emulated` is a fixture of conftest.py: the operators of `torch.ops.lsfast` with CPU tensors and CUDA kernels. An
operator that writes into an argument is called through a function that makes a new one and returns it.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result", torch.Tensor, tuple[torch.Tensor, ...], list[torch.Tensor])

SCHEDULES = {"ascending": (0, 0), "descending": (1, 0), "random-1": (2, 1), "random-2": (2, 2), "random-3": (2, 3)}

_libraries: list[ctypes.CDLL] = []


def load(path: Path) -> ctypes.CDLL:
    """Load a library built over the emulation, whose schedule is then set with those of the others."""
    library = ctypes.CDLL(str(path))
    library.lsfast_emulation_schedule.argtypes = [ctypes.c_int, ctypes.c_ulonglong]
    library.lsfast_emulation_schedule.restype = None
    _libraries.append(library)
    return library


def set_schedule(name: str) -> None:
    """Choose the order of threads in every emulated kernel from now on."""
    for library in _libraries:
        library.lsfast_emulation_schedule(*SCHEDULES[name])


def assert_same_under_schedules(call: Callable[[], Result]) -> Result:
    """Run `call` under every schedule and check that it gives the same bits each time; the result."""
    first = None
    try:
        for name in SCHEDULES:
            set_schedule(name)
            result = call()
            first = result if first is None else first
            assert_same_bits(result, first, f"{name} schedule against ascending")
    finally:
        set_schedule("ascending")
    return first


def assert_same_bits(result: Result, expected: Result, what: str = "result") -> None:
    """Check that tensors are of one type and shape and equal in every bit, NaN included."""
    if not isinstance(result, torch.Tensor):
        assert len(result) == len(expected), f"{what}: {len(result)} tensors, expected {len(expected)}"
        for i, (a, b) in enumerate(zip(result, expected, strict=True)):
            assert_same_bits(a, b, f"{what}, tensor {i}")
        return
    assert result.dtype == expected.dtype, f"{what}: {result.dtype}, expected {expected.dtype}"
    assert result.shape == expected.shape, f"{what}: shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
    differ = (bits(result) != bits(expected)).nonzero()
    if len(differ):
        at = int(differ[0])
        got, wanted = result.reshape(-1)[at].item(), expected.reshape(-1)[at].item()
        raise AssertionError(f"{what}: {len(differ)} elements differ, first at {at}: {got!r}, expected {wanted!r}")


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bits of each element, as an integer [n]."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().reshape(-1).view(integer)
