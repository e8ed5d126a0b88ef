"""Fixtures and helpers that every room's tests share."""

import subprocess
import sys

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
