"""Runs that are killed with SIGKILL at random moments and started again, until they have been killed often enough."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

HARNESS = """
import hashlib, os, random, signal, sys, time
import torch
torch.set_num_threads(1)  # a forked child has no other threads
import lsfast

def slow(rows):
    time.sleep(0.002)
    return rows * diagonal

{setup}

def run(checkpoint):
{run}

def digest(tensors):
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest()

folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
expected = digest(run(None))
length = time.perf_counter() - began
chance, killed, finished, resumed = random.Random(seed), 0, 0, 0
path, answer = os.path.join(folder, "run.npz"), os.path.join(folder, "answer")
while killed < kills or not finished:
    resumed += os.path.exists(path)
    child = os.fork()
    if child == 0:
        found = digest(run(path))
        with open(answer, "w") as file:
            file.write(found)
        os._exit(0)
    deadline = time.monotonic() + (chance.uniform(0, 0.6) * length if killed < kills else 1000)
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    except (ProcessLookupError, ChildProcessError):
        pass
    if os.path.exists(answer):
        assert open(answer).read() == expected, "a resumed run gave other bits"
        os.remove(answer)
        os.remove(path)
        finished += 1
print("killed", killed, "finished", finished, "resumed", resumed)
"""


def assert_survives_kills(folder: Path, setup: str, run: str, kills: int, seed: int = 0) -> None:
    """Check that `run`, which returns tensors and may use `checkpoint`, gives the bits of an uninterrupted run.

    `setup` defines ``diagonal`` and what else `run` needs; ``slow`` is a diagonal operator that takes its time.
    """
    program = HARNESS.format(setup=textwrap.dedent(setup), run=textwrap.indent(textwrap.dedent(run), "    "))
    command = [sys.executable, "-c", program, str(folder), str(kills), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert counts["killed"] >= kills
    assert counts["resumed"] >= kills // 2  # else it was not the checkpoints that were tested
