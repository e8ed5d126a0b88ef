"""A number, or a tensor of numbers, known from random probes, with its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value", float, Tensor)


@dataclass(frozen=True)
class Estimate(Generic[Value]):
    """A mean over probes with its standard error, both floats or both float64 tensors of one shape.

    The standard error is the sample standard deviation over probes divided by the square root of their number; one
    probe says nothing about its own error, so it is NaN then.
    """

    value: Value
    stderr: Value


def mean_over_probes(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error of ``samples`` [probes, ...] over the first axis, in float64."""
    samples = samples.double()
    value = samples.mean(0)
    if samples.shape[0] == 1:
        return value, torch.full_like(value, float("nan"))
    return value, samples.std(0) / samples.shape[0] ** 0.5


def estimate_number(samples: Tensor, factor: float = 1.0) -> Estimate[float]:
    """Return `factor` times the mean of ``samples`` [probes] as floats."""
    value, stderr = mean_over_probes(samples)
    return Estimate(float(value) * factor, float(stderr) * abs(factor))


def estimate_tensor(samples: Tensor) -> Estimate[Tensor]:
    """Return the mean of ``samples`` [probes, ...] over the first axis."""
    return Estimate(*mean_over_probes(samples))
