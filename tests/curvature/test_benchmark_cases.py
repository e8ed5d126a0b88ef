"""The benchmarked cases of CPU and GPU, tiny and on the CPU: their parts agree with each other."""

import os
import subprocess
import sys
from pathlib import Path

import first_product
import peak_memory
import pytest
import torch
from curvature_cases import CASES, make_case
from curvature_peers import PLAIN, Peer, plain_ggn, torch_func

import lsfast

NAMES = tuple(name for name in dict.fromkeys(CASES["cpu"] + CASES["cuda"]) if "tf32" not in name)
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NAMES)
def test_products_equal_those_of_plain_torch(name):
    case = make_case(name, CPU, tiny=True)
    rows = case.vectors()
    gradient = torch.cat([part.reshape(-1) for part in case.gradient()])
    objective = case.objective()
    assert torch.allclose(objective.gradient(), gradient, atol=1e-6)
    right = {
        lsfast.HessianOperator: (PLAIN, Peer("", torch_func, batched=True)),
        lsfast.GGNOperator: (Peer("", plain_ggn, batched=False),),
    }
    for operator, peers in right.items():
        product = operator(objective).apply(rows)
        for peer in peers:
            assert (peer.product(case)(rows) - product).norm() < case.tolerance * product.norm()


def test_peak_memory_is_what_is_held_at_once():
    def call():
        kept = torch.empty(1000, dtype=torch.float64)
        for _ in range(3):
            torch.empty(500, dtype=torch.float64)
        return kept

    assert peak_memory.peak_added(call, CPU) == 8 * (1000 + 500)


def test_the_first_product_is_timed_in_a_process_of_its_own():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, first_product.__file__, "mlp", "cpu", "tiny"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    assert float(said.stdout) > 0.0
