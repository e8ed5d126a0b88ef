"""The emulation runs right kernels right, and every planted fault of faults.cu makes a check fail."""

import ctypes
import os
import re
import subprocess

import pytest
import torch

from . import build
from .schedules import assert_same_bits, assert_same_under_schedules, load

THREADS = 256


class Launcher:
    """Calls `launch_<name>(...)` of faults.cu with tensors and integers; an error string becomes a RuntimeError."""

    def __init__(self, library):
        self.library = library

    def __call__(self, name, *arguments):
        function = getattr(self.library, f"launch_{name}")
        function.restype = ctypes.c_char_p
        error = function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments))
        if error is not None:
            raise RuntimeError(error.decode())


@pytest.fixture(scope="session")
def launch():
    return Launcher(load(build.faults()))


def under_schedules(launch, name, *inputs, outputs, integers=()):
    """The outputs of a kernel, zeroed before it runs, once they were found the same under every schedule."""

    def call():
        fresh = [torch.zeros_like(output) for output in outputs]
        launch(name, *inputs, *fresh, *integers)
        return fresh

    return assert_same_under_schedules(call)


# ---- right kernels -------------------------------------------------------------------------------------------------


def test_barriers_and_static_shared_memory(launch):
    x = torch.arange(64 * THREADS).remainder(17).float()
    (sums,) = under_schedules(launch, "sum", x, outputs=[torch.zeros(64)], integers=[64])
    assert_same_bits(sums, x.view(64, THREADS).sum(1))


@pytest.mark.parametrize("shape", [(32, 48), (37, 21), (1, 1)])
def test_dynamic_shared_memory_and_blocks_of_two_dimensions(launch, shape):
    x = torch.randn(shape)
    (y,) = under_schedules(launch, "transpose", x, outputs=[torch.zeros(shape).t().contiguous()], integers=shape)
    assert_same_bits(y, x.t().contiguous())


def test_shuffles_of_every_kind(launch):
    x = torch.arange(2 * THREADS).remainder(37).double()
    (out,) = under_schedules(launch, "shuffle", x, outputs=[torch.zeros(16, 5, dtype=torch.float64)], integers=[2])
    warps = x.view(16, 32)
    expected = [warps.sum(1), warps.amax(1), warps[:, 0], warps[:, :16].sum(1), warps[:, 16:].sum(1)]
    assert_same_bits(out, torch.stack(expected, 1))


def test_votes(launch):
    x = torch.arange(THREADS, dtype=torch.int32).remainder(5) - 2
    x[32:64] = 0
    x[64:96] = 1
    empty = [torch.zeros(8, 32, dtype=torch.int32), torch.zeros(8, 3, dtype=torch.int32)]
    out, counts = under_schedules(launch, "compact", x, outputs=empty, integers=[1])
    for warp, values in enumerate(x.view(8, 32)):
        kept = values[values > 0]
        assert counts[warp].tolist() == [len(kept), int(len(kept) > 0), int(len(kept) == 32)]
        assert out[warp, : len(kept)].tolist() == kept.tolist()
        assert out[warp, len(kept) :].eq(0).all()


def test_integer_atomics(launch):
    x = torch.randint(1, 1000, [5000], dtype=torch.int32, generator=torch.Generator().manual_seed(0))

    def call():
        counts, extremes = torch.zeros(8, dtype=torch.int32), torch.tensor([0, 2**31 - 1, 0], dtype=torch.int32)
        launch("histogram", x, len(x), counts, extremes)
        return counts, extremes

    counts, extremes = assert_same_under_schedules(call)
    assert_same_bits(counts, x.remainder(8).bincount(minlength=8).int())
    every_bit = 0
    for value in x.tolist():
        every_bit |= value
    assert extremes.tolist() == [x.max(), x.min(), every_bit]


# ---- faults that make schedules differ -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing_barrier", "float_atomic"])
def test_missing_order_makes_schedules_differ(launch, name):
    x = torch.randn(2 * THREADS, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="schedule against ascending"):
        under_schedules(launch, name, x, outputs=[torch.zeros_like(x)], integers=[2])


@pytest.mark.parametrize("name", ["shared_race", "global_race"])
def test_race_makes_schedules_differ(launch, name):
    with pytest.raises(AssertionError, match="schedule against ascending"):
        under_schedules(launch, name, outputs=[torch.zeros(4)], integers=[4])


def test_shared_memory_read_before_it_is_written_makes_schedules_differ(launch):
    with pytest.raises(AssertionError, match="schedule against ascending"):
        under_schedules(launch, "uninitialized", outputs=[torch.zeros(THREADS, dtype=torch.int32)])


# ---- faults that end the launch with an error ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divergent_shuffle", r"divergent shuffle: thread .*__shfl_down_sync with mask 0xffffffff, but thread"),
        ("mixed_shuffle", r"divergent shuffle: .*__shfl_(down|up)_sync .*, but .*__shfl_(up|down)_sync"),
        ("absent_source", "divergent shuffle: .* reads a lane that takes no part"),
        ("divergent_barrier", "divergent barrier: thread .* waits at the barrier of .*faults.cu:"),
        ("dynamic_overrun", r"write outside of dynamic shared memory: block \(0, 0, 0\) changed byte 1024 of 1024"),
        ("too_many_threads", "invalid configuration argument"),
    ],
)
def test_fault_is_reported_and_the_next_launch_is_well(launch, schedule, name, message):
    with pytest.raises(RuntimeError, match=message):
        launch(name, torch.zeros(THREADS))
    x, sums = torch.ones(2 * THREADS), torch.zeros(2)
    launch("sum", x, sums, 2)
    assert sums.tolist() == [THREADS, THREADS]


# ---- faults that the sanitizers see --------------------------------------------------------------------------------


def sanitized(which):
    # As the program is run by hand: a preloaded sanitizer of the test process is not handed on.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run([build.faults_program(), which], capture_output=True, text=True, env=environment, check=False)


def test_right_kernels_are_clean_under_the_sanitizers():
    done = sanitized("right")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("which", "kernel", "report"),
    [
        ("global", "global_overrun_kernel", "AddressSanitizer: heap-buffer-overflow"),
        ("static", "faults.cu", r"runtime error: index 256 out of bounds for type 'float \[256\]'"),
    ],
)
def test_write_past_an_array_is_reported_by_the_sanitizers(which, kernel, report):
    done = sanitized(which)
    assert done.returncode != 0
    assert kernel in done.stderr
    assert re.search(report, done.stderr), done.stderr
