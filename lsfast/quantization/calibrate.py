"""Static scales of activations: the largest magnitude each layer's input is quantized with, found over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from lsfast import checks
from lsfast.data import batch_count, batches
from lsfast.formats import QuantScheme
from lsfast.formats import scheme as scheme_of
from lsfast.objective import Objective
from lsfast.quantization.calibration import METHODS, Calibration
from lsfast.quantization.fake_quantize import fake_quantize
from lsfast.quantization.hadamard import hadamard
from lsfast.quantization.operators import has_tensor_amax
from lsfast.scheme_numbers import hadamard_signs

BINS = 1 << 16  # of the histogram of magnitudes; bin b holds bits in ((b - 1) 2^15, b 2^15], so zero has its own
_DROPPED = 15  # low mantissa bits that a bin does not tell apart
_INFINITY = 0x7F800000
_CANDIDATES = 41  # 2^(-k/8) of the largest magnitude, down to 1/32 of it
_TIE = 1e-9  # errors closer than this, relatively, are equal: sums of batches are rounded


def calibrate(
    objective: Objective,
    scheme: str | QuantScheme,
    method: str = "max",
    *,
    percentile: float = 99.99,
    modules: str | Sequence[str] | None = None,
    progress: bool = False,
) -> Calibration:
    r"""Find static scales of activations: the largest magnitude each layer's input should be quantized with.

    The objective's data goes through its model at its parameters, and hooks see what each layer is given. With x the
    finite elements of all inputs of a layer, in float32 and, where the scheme has a Hadamard transform, after it:

    - ``"max"``: :math:`\max |x|`;
    - ``"percentile"``: the least magnitude that p percent of all |x| do not exceed (of N of them the
      :math:`\lceil p N / 100 \rceil`-th, zeros counted), rounded up to 8 mantissa bits, or to the maximum where that
      is less: at most a relative :math:`2^{-8}` above it, and never below;
    - ``"mse"``: of :math:`\max |x|\, 2^{-k/8}, k = 0..40`, the one whose :math:`\sum (Q(x) - x)^2` is least, the
      largest of equals. This takes a second pass over the data.

    None of them depends on how the data is split into batches (batch norm in train mode apart, which does). The
    percentile is read from counts by the upper 16 of the 31 bits of a float32 magnitude, which sort as the magnitudes
    do: 65,536 bins, 512 KiB a layer, with no range to be known beforehand, and counts are the same in any order.

    Parameters
    ----------
    objective
        Its parameters are the ones used; its model is as before, also after an exception. Data that draws random
        numbers from torch draws the same ones in both passes.
    scheme
        A scheme with one scale, or one second-level scale, for a whole tensor: ``block="tensor"`` or
        ``tensor_scale=True``. ``"mse"`` quantizes along the features: the last axis of a linear layer's input, the
        channels of a convolution's.
    method
        ``"max"``, ``"percentile"`` or ``"mse"``.
    percentile
        p above, in (0, 100]; 100 is the maximum, exactly.
    modules
        Names of ``Linear`` and ``Conv`` modules, or patterns such as ``"encoder.*"``; None: all that run.
    progress
        Show a bar over batches, on stderr.

    Returns
    -------
    Calibration
        ``calibration[name]`` is 0-dim float32 on the objective's device, 0 where an input had no finite number but 0.

    Raises
    ------
    ValueError, TypeError
        If the scheme scales blocks or rows by themselves or not at all; for an unknown method or a percentile out of
        range; if a pattern matches no linear or convolution module, or one that the data does not run; for ``"mse"``
        with stochastic rounding or two-dimensional blocks, whose error depends on the split into batches.

    References
    ----------
    Wu et al. 2020, "Integer Quantization for Deep Learning Inference", arXiv:2004.09602, section 5 (max, percentile);
    Nagel et al. 2021, "A White Paper on Neural Network Quantization", arXiv:2106.08295, section 3.1 (mse).

    Examples
    --------
    >>> calibration = lsfast.calibrate(objective, "fp8_e4m3", method="percentile", percentile=99.9)
    >>> lsfast.fake_quantize(x, "fp8_e4m3", amax=calibration["0"])
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"calibrate: objective must be an lsfast.Objective, got {type(objective).__name__}")
    checks.one_of("calibrate", "method", method, METHODS)
    chosen = _static_scheme(scheme, method)
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)):
        raise TypeError(f"calibrate: percentile must be a number, got {percentile!r}")
    if not 0.0 < percentile <= 100.0:
        raise ValueError(f"calibrate: percentile must lie in (0, 100], got {percentile}")
    layers = _layers(objective.model, modules)
    counts = method == "percentile"
    magnitudes = {name: _Magnitudes(objective.device, counts) for name in layers}
    passes = 2 if method == "mse" else 1
    with _bar(objective, passes, progress) as step:
        _walk(objective, chosen, layers, magnitudes, step)
        idle = [name for name, seen in magnitudes.items() if not seen.ran]
        if idle and (modules is not None or len(idle) == len(layers)):
            raise ValueError(f"calibrate: modules must be run by the objective's data, got {idle[0]!r}, which is not")
        ran = {name: seen for name, seen in magnitudes.items() if seen.ran}
        if method == "mse":
            errors = {name: _Errors(seen.largest(), chosen) for name, seen in ran.items()}
            _walk(objective, chosen, {name: layers[name] for name in ran}, errors, step)
            return Calibration(chosen, method, {name: error.best() for name, error in errors.items()})
    if counts:
        return Calibration(chosen, method, {name: seen.percentile(percentile) for name, seen in ran.items()})
    return Calibration(chosen, method, {name: seen.largest() for name, seen in ran.items()})


class _Seen(Protocol):
    """What is gathered of a layer's inputs: float32, after the scheme's transform, with their feature axis."""

    def add(self, x: Tensor, axis: int) -> None: ...


class _Magnitudes:
    """The largest finite magnitude, and counts by the magnitude's upper bits."""

    def __init__(self, device: torch.device, counts: bool) -> None:
        self.ran = False
        self._largest = torch.zeros((), dtype=torch.int32, device=device)
        self._counts = torch.zeros(BINS, dtype=torch.int64, device=device) if counts else None

    def add(self, x: Tensor, axis: int) -> None:
        self.ran = True
        bits = x.abs().view(torch.int32).flatten()
        finite = bits < _INFINITY
        if self._counts is not None:
            bins = torch.where(finite, (bits + ((1 << _DROPPED) - 1)) >> _DROPPED, BINS - 1)
            self._counts += torch.bincount(bins, minlength=BINS)
        self._largest = torch.maximum(self._largest, torch.where(finite, bits, 0).amax())

    def largest(self) -> Tensor:
        return self._largest.view(torch.float32)

    def percentile(self, percentile: float) -> Tensor:
        assert self._counts is not None
        below = self._counts[:-1].cumsum(0)  # the last holds Inf and NaN
        # As it is written in decimal: 99.99 percent of 10000 are 9999.
        rank = max(1, math.ceil(Fraction(str(percentile)) * int(below[-1]) / 100))
        upper = torch.searchsorted(below, rank) << _DROPPED
        return torch.minimum(upper.to(torch.int32), self._largest).view(torch.float32)


class _Errors:
    """The squared error of quantizing with each candidate."""

    def __init__(self, largest: Tensor, scheme: QuantScheme) -> None:
        steps = torch.arange(_CANDIDATES, dtype=torch.float64, device=largest.device)
        self.candidates = (largest.double() * (-steps / 8).exp2()).float()
        self._scheme = scheme.replace(hadamard=0, nan="propagate")  # x is transformed, and finite
        self._sums = torch.zeros(_CANDIDATES, dtype=torch.float64, device=largest.device)

    def add(self, x: Tensor, axis: int) -> None:
        finite = torch.where(x.isfinite(), x, 0.0)
        out = torch.empty_like(finite, memory_format=torch.contiguous_format)
        for index, candidate in enumerate(self.candidates):
            _, found = fake_quantize(finite, self._scheme, axis, out=out, statistics=True, amax=candidate)
            self._sums[index] += found.squared_error

    def best(self) -> Tensor:
        least = self._sums <= self._sums.min() * (1.0 + _TIE)
        return self.candidates[least.to(torch.int32).argmax()].clone()


def _static_scheme(scheme: str | QuantScheme, method: str) -> QuantScheme:
    chosen = scheme_of(scheme)
    if not has_tensor_amax(chosen):
        own = "has no scale" if chosen.block is None else "scales each block by itself"
        raise ValueError(
            f"calibrate: scheme must have a scale for the tensor (block='tensor' or tensor_scale=True), got "
            f"{chosen.name!r}, which {own}"
        )
    if method == "mse" and chosen.rounding == "stochastic":
        raise ValueError(f"calibrate: method 'mse' needs a scheme that rounds without chance, got {chosen.name!r}")
    if method == "mse" and isinstance(chosen.block, tuple):
        raise ValueError(f"calibrate: method 'mse' needs blocks within a row, got {chosen.name!r} of {chosen.block}")
    return chosen


def _layers(model: nn.Module, patterns: str | Sequence[str] | None) -> dict[str, nn.Module]:
    known: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, _ConvNd))
    }
    if not known:
        raise ValueError("calibrate: objective must have a Linear or Conv module, got none in its model")
    if patterns is None:
        return known
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise ValueError("calibrate: modules must hold at least one name or pattern, got none")
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(
                f"calibrate: modules pattern {pattern!r} must match a Linear or Conv module, got none of {len(known)}"
            )
    return {name: module for name, module in known.items() if any(fnmatchcase(name, each) for each in wanted)}


def _walk(
    objective: Objective, scheme: QuantScheme, layers: Mapping[str, nn.Module], seen: Mapping[str, _Seen], step: Any
) -> None:
    """Run the data through the model once; `seen[name]` is given every input of `layers[name]`."""
    named = objective.unflatten(objective.parameters)
    signs = hadamard_signs(scheme.hadamard, scheme.hadamard_seed) if scheme.hadamard else None
    handles: list[RemovableHandle] = []

    def watched(name: str, module: nn.Module) -> RemovableHandle:
        axis = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1

        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            x = (arguments[0] if arguments else keywords["input"]).detach().to(torch.float32)
            if x.numel() > 0:
                seen[name].add(x if signs is None else hadamard(x, scheme.hadamard, signs, axis), axis)

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    try:
        for name, module in layers.items():
            handles.append(watched(name, module))
        with objective.undisturbed(), torch.no_grad():
            for inputs, _ in batches(objective.data):
                objective.outputs(named, inputs)
                step()
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _bar(objective: Objective, passes: int, progress: bool) -> Iterator[Any]:
    """Give what to call after each batch."""
    if not progress:
        yield lambda: None
        return
    from tqdm import tqdm

    with objective.undisturbed():
        total = passes * batch_count(objective.data)
    with tqdm(total=total, desc="calibrate", unit="batch", leave=None) as bar:
        yield bar.update
