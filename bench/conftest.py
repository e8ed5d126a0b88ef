"""How every benchmark measures: ours and a reference in turn, in one run, by medians; and the table at the end.

A benchmark first checks its result, then calls ``compare(name, size, ours, reference, ...)``. pytest-benchmark times
ours; the reference is run and timed before each round, so that both see the same state of the machine. On a GPU both
are timed by device events. What is no such pair of times goes into the table by ``record``. ``--results FILE`` writes
the table with what it was measured on as JSON, in place of the rows of the same rooms.
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
    parser.addoption("--tiny", action="store_true", help="curvature at sizes that say nothing, to see that it runs")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def room(request: pytest.FixtureRequest) -> str:
    return request.path.stem.removeprefix("bench_")


@pytest.fixture
def compare(benchmark: Any, device: torch.device, room: str) -> Callable[..., None]:
    """Return compare(operation, size, ours, reference, reference_name, factor=1.0, rounds=15, warm=3, failure=None).

    `factor` turns the reference's time into the limit: copying x moves two tensors, so an operation that must move
    three is held against 1.5 copies. `warm` calls of both go before. A peer that fails has no `reference`, but a
    `failure` that says why; ours is timed still.
    """

    def run(
        operation: str,
        size: str,
        ours: Callable[[], object],
        reference: Callable[[], object] | None,
        reference_name: str,
        factor: float = 1.0,
        rounds: int = 15,
        warm: int = 3,
        failure: str | None = None,
    ) -> None:
        calls = [ours] if reference is None else [ours, reference]
        for call in warm * calls:
            call()
        our_times: list[float] = []
        reference_times: list[float] = []

        def time_reference() -> None:
            if reference is not None:
                reference_times.append(factor * _seconds(reference, device))

        benchmark.pedantic(
            lambda: our_times.append(_seconds(ours, device)), setup=time_reference, rounds=rounds, iterations=1
        )
        mine = 1e3 * statistics.median(our_times)
        theirs = 1e3 * statistics.median(reference_times) if reference_times else None
        benchmark.extra_info.update(
            _add_row(room, operation, size, mine, theirs, reference_name, "ms", failure=failure)
        )

    return run


@pytest.fixture
def record(benchmark: Any, room: str) -> Callable[..., None]:
    """Return record(operation, size, ours, reference, reference_name, unit="ms", shown=None).

    For figures measured otherwise; `shown` stands in the tables in place of the ratio.
    """
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)

    def add(
        operation: str,
        size: str,
        ours: float,
        reference: float,
        reference_name: str,
        unit: str = "ms",
        shown: str | None = None,
    ) -> None:
        _add_row(room, operation, size, ours, reference, reference_name, unit, shown=shown)

    return add


def _add_row(
    room: str,
    operation: str,
    size: str,
    ours: float,
    reference: float | None,
    name: str,
    unit: str,
    **texts: str | None,
) -> dict[str, Any]:
    suffix = unit.lower()
    row = {
        "room": room,
        "operation": operation,
        "size": size,
        f"ours_{suffix}": ours,
        "reference": name,
        f"reference_{suffix}": reference,
        "ratio": None if reference is None else ours / reference,
    }
    row.update({key: text for key, text in texts.items() if text is not None})
    _rows.append(row)
    return row


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
    line = "{:<44} {:<44} {:>12} {:<34} {:>12} {:>6}"
    terminalreporter.write_line(line.format("operation", "size", "ours", "reference", "", "ratio"))
    for row in _rows:
        suffix = next(key.removeprefix("ours_") for key in row if key.startswith("ours_"))
        unit = "MB" if suffix == "mb" else suffix
        ours, reference = row[f"ours_{suffix}"], row[f"reference_{suffix}"]
        terminalreporter.write_line(
            line.format(
                row["operation"],
                row["size"],
                f"{ours:.3f} {unit}",
                row["reference"],
                row.get("failure", f"{reference:.3f} {unit}" if reference is not None else ""),
                row.get("shown", f"{row['ratio']:.2f}" if row["ratio"] is not None else ""),
            )
        )
    if config.getoption("--results"):
        _write(Path(config.getoption("--results")), config.getoption("--device"))


def _write(path: Path, device: str) -> None:
    """Write the rows, each with its commit; rows of rooms that did not run now stay, if the machine is the same."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cpu_capability": _native.cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "lsfast": lsfast.__version__,
    }
    before = json.loads(path.read_text()) if path.exists() else {"machine": machine, "rows": []}
    measured = {row["room"] for row in _rows}
    kept = [row for row in before["rows"] if row["room"] not in measured] if before["machine"] == machine else []
    rows = kept + [row | {"commit": described.stdout.strip()} for row in _rows]
    rows.sort(key=lambda row: str(row["room"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
