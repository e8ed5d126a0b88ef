"""What lsfast runs on: versions, the instruction set and CUDA architectures of its kernels, devices and threads."""

from __future__ import annotations

import os
import platform

import numpy
import torch


def environment() -> dict[str, str]:
    """Return the environment by name, in the order in which ``lsfast env`` prints it.

    Examples
    --------
    >>> lsfast.env.environment()["instruction set"]
    'avx512'
    """
    import lsfast
    from lsfast import _C as library
    from lsfast._native import cpu_capability

    facts = {
        "lsfast": lsfast.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "instruction set": _instruction_set(cpu_capability()),
        "CUDA kernels": _cuda_kernels(bool(library.has_cuda), str(library.cuda_architectures)),
        "CUDA of torch": torch.version.cuda or "none",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "devices": f"cpu ({_processor()})",
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            facts["devices"] += (
                f", cuda:{index} ({properties.name}, sm_{properties.major}{properties.minor}, "
                f"{properties.total_memory / 2**30:.0f} GiB)"
            )
    return facts


def environment_text() -> str:
    """Return the environment as aligned lines."""
    facts = environment()
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items())


def _instruction_set(name: str) -> str:
    wished = os.environ.get("LSFAST_CPU_CAPABILITY")
    return f"{name} (by LSFAST_CPU_CAPABILITY)" if wished else name


def _cuda_kernels(compiled: bool, architectures: str) -> str:
    return f"compiled for {architectures.replace(';', ', ')}" if compiled else "not compiled"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
