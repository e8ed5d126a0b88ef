"""The peak of the memory that a call adds.

On a GPU the caching allocator counts it. On a CPU torch's profiler records every allocation and release of torch's
allocator, inside operators, the autograd threads and our own kernels too, which a dispatch mode over tensors would not
see. The peak of their running sum is exact and the same every time. The resident set (VmHWM) agrees to 1% in a fresh
process with a fixed mmap threshold, but with the C library's default it counts freed memory that it keeps: up to 1.9
times as much for a convolutional network.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_added(call: Callable[[], object], device: torch.device) -> int:
    """Return the largest number of bytes that `call` holds at once beyond what was held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
