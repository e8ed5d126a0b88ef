"""Checks a rule against ``torch.func`` on the whole operation, in float64: all four parts, K rows, any activity."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lsfast.program.rules import find_rule
from lsfast.program.rules.generic import Generic, all_arguments

K = 3


def check_rule(
    operation: OpOverload, *args: Any, tolerance: float = 1e-12, constants: tuple[int, ...] = (), **keywords: Any
) -> None:
    """Assert that the operation has a rule of its own that agrees with the generic one, for any choice of active ones.

    Floating-point tensors among the arguments (also in lists) take turns in being active, but for those in the places
    `constants` (buffers).
    """
    make = find_rule(operation)
    assert make is not None, f"{operation} has no rule of its own"
    values = all_arguments(operation, args, keywords)
    generator = torch.Generator().manual_seed(0)
    for active in activities(values):
        if any(active[place] for place in constants):
            continue
        rule, oracle = make(active), Generic(operation, active)
        result, expected = rule.forward(*values), oracle.forward(*values)
        _compare("forward", active, result, expected, tolerance)
        tangents = _like(values, active, generator, K)
        _compare("jvp", active, rule.jvp(*tangents), oracle.jvp(*tangents), tolerance)
        adjoint = _like_results(expected, generator, None)
        adjoints = _like_results(expected, generator, K)
        one = _map(adjoint, lambda x: x[None])
        _compare_adjoints("vjp, one row", active, rule.vjp(one), oracle.vjp(one), tolerance)
        rule.hold(adjoint)
        oracle.hold(adjoint)
        _compare_adjoints("vjp", active, rule.vjp(adjoints), oracle.vjp(adjoints), tolerance)
        for _ in range(2):  # a product leaves the rule as it was
            found = rule.vjp_jvp(adjoints, *tangents)
            _compare_adjoints("vjp_jvp", active, found, oracle.vjp_jvp(adjoints, *tangents), tolerance)


def activities(values: tuple[Any, ...]) -> list[Any]:
    """Every choice of active floating-point tensors, with at least one active."""
    places = [_flags(value) for value in values]
    return [active for active in product(*places) if any(any(f) if isinstance(f, tuple) else f for f in active)]


def _flags(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value):
        return list(product(*[_flags(item) for item in value]))
    return [True, False] if isinstance(value, Tensor) and value.is_floating_point() else [False]


def _random(x: Tensor, generator: torch.Generator, rows: int | None) -> Tensor:
    lead = () if rows is None else (rows,)
    return torch.randn((*lead, *x.shape), dtype=x.dtype, generator=generator)


def _like(values: tuple[Any, ...], active: Any, generator: torch.Generator, rows: int) -> list[Any]:
    return [
        [_random(x, generator, rows) if one else None for x, one in zip(value, flag, strict=True)]
        if isinstance(flag, tuple)
        else (_random(value, generator, rows) if flag else None)
        for value, flag in zip(values, active, strict=True)
    ]


def _like_results(result: Any, generator: torch.Generator, rows: int | None) -> Any:
    def one(x: Tensor) -> Tensor | None:
        return _random(x, generator, rows) if x.is_floating_point() else None

    return one(result) if isinstance(result, Tensor) else tuple(one(x) for x in result)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(None if x is None else function(x) for x in value)
    return function(value)


def _compare(part: str, active: Any, found: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected), part
        for a, b in zip(found, expected, strict=True):
            _compare(part, active, a, b, tolerance)
    elif expected is not None:
        assert found.shape == expected.shape, f"{part}, active {active}: {found.shape} != {expected.shape}"
        assert found.dtype == expected.dtype, f"{part}, active {active}: {found.dtype} != {expected.dtype}"
        defect = (found.double() - expected.double()).abs().max() if expected.numel() else torch.tensor(0.0)
        scale = expected.double().abs().max().clamp_min(1.0) if expected.numel() else torch.tensor(1.0)
        assert defect <= tolerance * scale, f"{part}, active {active}: off by {defect / scale}"


def _compare_adjoints(part: str, active: Any, found: Any, expected: Any, tolerance: float) -> None:
    assert len(found) <= len(expected)
    for index, flag in enumerate(active):
        flags = flag if isinstance(flag, tuple) else (flag,)
        a = found[index] if index < len(found) else None
        ours = a if isinstance(flag, tuple) else (a,)
        theirs = expected[index] if isinstance(flag, tuple) else (expected[index],)
        for one, x, y in zip(flags, ours or [None] * len(flags), theirs, strict=True):
            if one:
                assert x is not None, f"{part}, active {active}: no adjoint of argument {index}"
                _compare(f"{part} of argument {index}", active, x, y, tolerance)
