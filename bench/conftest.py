"""How every benchmark measures: ours and a reference in turn, in one run, by medians; and the table at the end.

A benchmark first checks its result, then calls ``compare(name, size, ours, reference, ...)``. pytest-benchmark times
ours; the reference is run and timed before each round, so that both see the same state of the machine. On a GPU both
are timed by device events. ``--results FILE`` writes the table with what it was measured on as JSON.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lsfast
from lsfast import _native

_rows: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cpu or cuda")
    parser.addoption("--results", default=None, help="file that the table is written to as JSON")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def compare(benchmark: Any, device: torch.device) -> Callable[..., None]:
    """Return compare(operation, size, ours, reference, reference_name, factor=1.0, rounds=15).

    `factor` turns the reference's time into the limit: copying x moves two tensors, so an operation that must move
    three is held against 1.5 copies.
    """

    def run(
        operation: str,
        size: str,
        ours: Callable[[], object],
        reference: Callable[[], object],
        reference_name: str,
        factor: float = 1.0,
        rounds: int = 15,
    ) -> None:
        for _ in range(3):
            ours()
            reference()
        our_times: list[float] = []
        reference_times: list[float] = []
        benchmark.pedantic(
            lambda: our_times.append(_seconds(ours, device)),
            setup=lambda: reference_times.append(factor * _seconds(reference, device)),
            rounds=rounds,
            iterations=1,
        )
        mine, theirs = statistics.median(our_times), statistics.median(reference_times)
        row = {
            "operation": operation,
            "size": size,
            "ours_ms": 1e3 * mine,
            "reference": reference_name,
            "reference_ms": 1e3 * theirs,
            "ratio": mine / theirs,
        }
        benchmark.extra_info.update(row)
        _rows.append(row)

    return run


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _rows:
        return
    terminalreporter.section("lsfast: ours against a limit or a peer (ratio below 1 is faster)")
    line = "{:<44} {:<26} {:>10} {:<34} {:>10} {:>6}"
    terminalreporter.write_line(line.format("operation", "size", "ours ms", "reference", "ms", "ratio"))
    for row in _rows:
        terminalreporter.write_line(
            line.format(
                row["operation"],
                row["size"],
                f"{row['ours_ms']:.3f}",
                row["reference"],
                f"{row['reference_ms']:.3f}",
                f"{row['ratio']:.2f}",
            )
        )
    if config.getoption("--results"):
        _write(Path(config.getoption("--results")), config.getoption("--device"))


def _write(path: Path, device: str) -> None:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cpu_capability": _native.cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "lsfast": lsfast.__version__,
        "commit": described.stdout.strip(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": _rows}, indent=2) + "\n")
