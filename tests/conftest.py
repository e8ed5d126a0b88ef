"""Fixtures and helpers that every room's tests share."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from subprocess import PIPE

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The models of the tests are small: a second thread costs more than it brings. Tests of threads set their own."""
    torch.set_num_threads(1)


@pytest.fixture
def run_python():
    """Run a Python program in a fresh interpreter with some environment variables; return what it printed."""

    def run(program: str, check: bool = True, **environment: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}
        )
        if check and result.returncode != 0:
            raise AssertionError(result.stderr)
        return result.stdout if check else result.stdout + result.stderr

    return run


# Runs each program it is sent with 1 and with 2 threads, and answers with digests of what was added.
DIGESTS = """
import hashlib, json, sys
import torch
from lsfast._native import cpu_capability, ops

def digest_of(program):
    digest = hashlib.sha256()

    def add(*tensors):
        for tensor in tensors:
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())

    exec(program, {"torch": torch, "ops": ops, "add": add})
    return digest.hexdigest()

for line in sys.stdin:
    digests = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        digests.append(digest_of(json.loads(line)))
    print(json.dumps([cpu_capability(), *digests]), flush=True)
"""


@pytest.fixture(scope="session")
def digests_under():
    """Return a function of an instruction set and a program that gives its digests; an interpreter for each set."""
    running: dict[str, subprocess.Popen[str]] = {}

    def ask(capability: str, program: str) -> list[str]:
        if capability not in running or running[capability].poll() is not None:
            environment = {**os.environ, "LSFAST_CPU_CAPABILITY": capability}
            running[capability] = subprocess.Popen(
                [sys.executable, "-c", DIGESTS], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment
            )
        process = running[capability]
        with suppress(BrokenPipeError):  # it ended before it read
            print(json.dumps(program), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise AssertionError(process.communicate()[1])
        found, *digests = json.loads(answer)
        assert found == capability
        return digests

    yield ask
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.fixture
def assert_same_bits(digests_under):
    """Return a check that a program adds tensors of the same bits under every instruction set, with 1 and 2 threads.

    The program finds ``torch``, ``ops`` and ``add(*tensors)``.
    """

    def check(program: str) -> None:
        digests = {"baseline": digests_under("baseline", program)}
        for capability in ("avx2", "avx512"):
            try:
                digests[capability] = digests_under(capability, program)
            except AssertionError as error:
                if "this processor lacks it" not in str(error):
                    raise
        assert len({digest for both in digests.values() for digest in both}) == 1, digests

    return check
