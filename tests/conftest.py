"""Fixtures and helpers that every room's tests share."""

import subprocess
import sys
import textwrap

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The models of the tests are small: a second thread costs more than it brings. Tests of threads set their own."""
    torch.set_num_threads(1)


@pytest.fixture
def run_python():
    """Run a Python program in a fresh interpreter with some environment variables; return what it printed."""
    import os

    def run(program: str, check: bool = True, **environment: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}
        )
        if check and result.returncode != 0:
            raise AssertionError(result.stderr)
        return result.stdout if check else result.stdout + result.stderr

    return run


DIGEST = """
import hashlib, torch
from lsfast._native import cpu_capability, ops

def add(*tensors):
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())

def run():
{program}

digests = set()
for threads in (1, 2):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    run()
    digests.add(digest.hexdigest())
print(cpu_capability(), *digests)
"""


@pytest.fixture
def assert_same_bits(run_python):
    """Return a check that a program adds tensors of the same bits under every instruction set, with 1 and 2 threads.

    The program finds ``torch``, ``ops`` and ``add(*tensors)``.
    """

    def check(program: str) -> None:
        digests = {}
        for capability in ("baseline", "avx2", "avx512"):
            whole = DIGEST.format(program=textwrap.indent(program, "    "))
            printed = run_python(whole, check=False, LSFAST_CPU_CAPABILITY=capability)
            if "this processor lacks it" in printed:
                continue
            found, *digests[capability] = printed.split()
            assert found == capability, printed
        assert "baseline" in digests
        assert len({digest for both in digests.values() for digest in both}) == 1, digests

    return check
