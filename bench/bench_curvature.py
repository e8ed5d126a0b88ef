"""Curvature products: their time over gradients and over peers, the memory they add, and the first one.

On a CPU a perceptron, a CNN, a GPT and a small perceptron; with ``--device cuda`` the perceptron, ResNet-18 and GPT-2.
With ``--tiny`` the same at sizes that say nothing, to see that everything runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from curvature_cases import CASES, Case, make_case, torch_precision
from curvature_peers import PEERS, PLAIN, Peer, Product, peers_of, plain_ggn
from first_product import seconds_of_first_product
from peak_memory import peak_added
from torch import Tensor

import lsfast

OPERATORS = {"hessian": lsfast.HessianOperator, "ggn": lsfast.GGNOperator}
PLAIN_PRODUCTS = {"hessian": PLAIN, "ggn": Peer("plain torch", plain_ggn, batched=False)}
ROOT = Path(__file__).parent.parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = metafunc.config.getoption("--device")
    names = CASES[device]
    if "peer" in metafunc.fixturenames:
        pairs = [(name, peer) for name in names for peer in peers_of(name, device)]
        ids = [f"{name}-{peer.name}" for name, peer in pairs]
        metafunc.parametrize(("name", "peer"), pairs, ids=ids, scope="module")
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names, scope="module")


@pytest.fixture(scope="module")
def case(name: str, request: pytest.FixtureRequest) -> Iterator[Case]:
    device = torch.device(request.config.getoption("--device"))
    made = make_case(name, device, tiny=request.config.getoption("--tiny"))
    with torch_precision(made):
        yield made


def size_of(case: Case) -> str:
    return f"{case.size}; K = {case.k}"


def defect(product: Tensor, right: Tensor) -> float:
    return float((product - right).norm() / right.norm())


def checked(peer: Peer, case: Case, right: Callable[[Tensor], Tensor]) -> tuple[Product | None, str | None]:
    """Return the peer's product, run once; None and what is wrong where it fails or its result is not `right`'s."""
    rows = case.vectors() if peer.batched else case.vectors()[:1]
    try:
        product = peer.product(case)
        error = defect(product(rows), right(rows))
    except Exception as exception:  # a peer's failure of any kind is its result
        return None, f"{type(exception).__name__}: {str(exception).strip().splitlines()[0][:80]}"
    return (product, None) if error < case.tolerance else (None, f"wrong: relative error {error:.1e}")


@pytest.mark.parametrize("kind", OPERATORS)
def test_product_over_gradients(compare, case, kind):
    operator, rows = OPERATORS[kind](case.objective()), case.vectors()
    right = PLAIN_PRODUCTS[kind].product(case)(rows[:2])
    assert defect(operator.apply(rows)[:2], right) < case.tolerance
    compare(
        f"{kind} product",
        size_of(case),
        lambda: operator.apply(rows),
        case.gradient,
        "K gradients",
        factor=case.k,
        rounds=5,
        warm=1,
    )


def test_hessian_products_over_a_peers(compare, case, peer):
    operator, rows = lsfast.HessianOperator(case.objective()), case.vectors()
    product, failure = checked(peer, case, operator.apply)
    # A peer that takes one vector after another need not be timed for all of them.
    theirs = rows if peer.batched else rows[:2]
    compare(
        "hessian product",
        size_of(case),
        lambda: operator.apply(rows),
        None if product is None else lambda: product(theirs),
        peer.name,
        factor=len(rows) / len(theirs),
        rounds=3,
        warm=0,
        failure=failure,
    )


def test_peak_memory_over_a_gradients(record, case):
    device, row = case.inputs.device, case.vectors()[:1]
    calls = {
        "one gradient": case.gradient,
        "lsfast": lambda: lsfast.HessianOperator(case.objective()).apply(row),
        **{peer.name: lambda peer=peer: peer.product(case)(row) for peer in PEERS},
    }
    peaks = {}
    for name, call in calls.items():
        call()  # what stays for good is not part of the peak
        peaks[name] = peak_added(call, device)
    ours = peaks.pop("lsfast")
    for name, peak in peaks.items():
        record("memory added, one hessian product", size_of(case), ours / 1e6, peak / 1e6, name, "MB")


def test_first_product_over_a_gradient(record, case, name, request):
    def seconds_of_gradient() -> float:
        began = time.perf_counter()
        case.gradient()
        if case.inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    gradient = min(seconds_of_gradient() for _ in range(4))
    command = [sys.executable, str(ROOT / "bench/first_product.py"), name, case.inputs.device.type]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    cold = subprocess.run(
        command + (["tiny"] if request.config.getoption("--tiny") else []),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    firsts = {"cold": json.loads(cold.stdout), "warm": min(seconds_of_first_product(case) for _ in range(3))}
    for state, seconds in firsts.items():
        record(
            f"first hessian product, {state} process",
            size_of(case),
            1e3 * seconds,
            1e3 * gradient,
            "one gradient",
            shown=f"{seconds - gradient:+.2f} s",
        )
