"""The time of the first Hessian product of a case, with all that it takes to capture the model.

Run as a program, ``first_product.py CASE DEVICE [tiny]``, it is that of a fresh process: one gradient is taken first,
so that what torch itself loads at first use is not counted.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from curvature_cases import Case, make_case

import lsfast


def seconds_of_first_product(case: Case) -> float:
    """Return the seconds from the model to one finished product."""
    vector = case.vectors()[0]
    _finish(case)
    began = time.perf_counter()
    lsfast.HessianOperator(case.objective()) @ vector
    _finish(case)
    return time.perf_counter() - began


def _finish(case: Case) -> None:
    if case.inputs.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    name, device, *tiny = sys.argv[1:]
    made = make_case(name, torch.device(device), tiny=bool(tiny))
    made.gradient()
    print(json.dumps(seconds_of_first_product(made)))
