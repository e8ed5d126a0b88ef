"""Stochastic Lanczos quadrature: the runs behind a spectral density."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lsfast import checks
from lsfast.checkpoint import Checkpoint
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.spectrum import probes as probe_vectors
from lsfast.spectrum.basis import Plan, plan
from lsfast.spectrum.density import SpectralDensity
from lsfast.spectrum.quadrature import quadrature
from lsfast.spectrum.recurrence import Recurrence


def spectral_density(
    A: Any,
    probes: int = 8,
    steps: int = 64,
    seed: int = 0,
    reorthogonalize: str = "full",
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    memory_limit: int | None = None,
    rtol: float | None = None,
    function: Callable[[Tensor], Tensor] | None = None,
    max_probes: int = 256,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int = 16,
    progress: bool = False,
) -> SpectralDensity:
    """Spectral density of a symmetric operator by stochastic Lanczos quadrature.

    For each of `probes` random sign vectors v, `steps` Lanczos steps give nodes lambda_i and weights w_i with
    ``sum_i w_i f(lambda_i) = v' f(A) v / v'v``, exact for polynomials up to degree 2 steps - 1; the mean over probes
    estimates ``tr f(A) / n`` (Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38, 2017).

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    probes
        Number of random vectors; probe i depends on (seed, i) alone. Standard errors fall with its root.
    steps
        Products with `A` for each probe, and nodes.
    seed
        Of the probes.
    reorthogonalize, basis_dtype, basis_device
        As of `lanczos`.
    memory_limit
        Bytes that the vectors may take: as many probes run together as fit. None: half of what is free.
    rtol
        Add probes until the standard error of the trace of `function` is at most `rtol` times its magnitude.
    function
        What `rtol` speaks of: maps a float64 tensor of nodes to one of the same shape. None: the identity, for the
        trace.
    max_probes
        Where `rtol` stops; if that is not enough a RuntimeWarning says what was reached.
    checkpoint
        A file to resume from: written after every group of probes and every `checkpoint_steps` steps. A run that was
        killed gives the same bits when it is called again; one with more probes continues after those it finds.
    checkpoint_steps
        Steps between two writings of the vectors (all of a group, up to `memory_limit`).
    progress
        Show a progress bar over the steps, with the time left.

    Returns
    -------
    SpectralDensity
        With nodes and weights [probes, steps].

    Raises
    ------
    ValueError
        If an argument is not what it should be, one probe does not fit `memory_limit`, the checkpoint is of another
        run (the message says what differs), `A` is found not to be symmetric, or a product holds NaN or Inf: the
        message names the step and the probe.

    Examples
    --------
    >>> s = lsfast.spectral_density(torch.diag(torch.arange(1.0, 101.0)), probes=4, steps=20)
    >>> round(s.trace.value)
    5050
    """
    name = "spectral_density"
    operator = probe_vectors.real_operator(name, aslinearoperator(A))
    checks.positive_integer(name, "probes", probes)
    checks.positive_integer(name, "steps", steps)
    checks.seed(name, seed)
    checks.positive_integer(name, "checkpoint_steps", checkpoint_steps)
    checks.positive_integer(name, "max_probes", max_probes)
    if rtol is not None:
        _check_rtol(rtol, probes, max_probes)
    layout = plan(name, operator, reorthogonalize, basis_dtype, basis_device, memory_limit)
    group = layout.probes_at_once(name, steps, operator.shape[0], probes)
    description: dict[str, int | float | str] = {
        "n": operator.shape[0],
        "dtype": str(operator.dtype),
        "steps": steps,
        "seed": seed,
        "reorthogonalize": reorthogonalize,
        "basis_dtype": str(layout.dtype),
        "operator": probe_vectors.check_symmetric(name, operator),
    }
    file = None if checkpoint is None else Checkpoint(name, checkpoint, description)
    run = _Run(operator, layout, steps, seed, group, probes, file, checkpoint_steps)
    with tqdm(desc="spectral density", unit="step", disable=not progress, leave=None) as bar:
        run.resume(bar)
        while True:
            run.to_target(bar)
            found = run.density()
            wanted = run.target if rtol is None else _probes_for(found, rtol, function, max_probes)
            if wanted <= run.target:
                return found
            run.target = wanted


def _check_rtol(rtol: float, probes: int, max_probes: int) -> None:
    if not checks.finite_number("spectral_density", "rtol", rtol) > 0.0:
        raise ValueError(f"spectral_density: rtol must be above 0, got {rtol}")
    if not 2 <= probes <= max_probes:
        raise ValueError(f"spectral_density: probes must lie in 2..max_probes = {max_probes} with rtol, got {probes}")


def _probes_for(
    found: SpectralDensity, rtol: float, function: Callable[[Tensor], Tensor] | None, max_probes: int
) -> int:
    """Return the number of probes that the standard error so far asks for; errors fall with the root of it."""
    estimate = found.trace if function is None else found.function_trace(function)
    have, bound = len(found.nodes), rtol * abs(estimate.value)
    if not estimate.stderr > bound:
        return have
    if have >= max_probes:
        warnings.warn(
            f"spectral_density: the standard error is {estimate.stderr / abs(estimate.value or 1.0):.1e} of the value "
            f"after max_probes = {max_probes}, not rtol = {rtol}",
            RuntimeWarning,
            stacklevel=3,
        )
        return have
    factor = (estimate.stderr / bound) ** 2 if bound > 0 else float("inf")
    return min(max_probes, max(have + 1, int(min(have * factor, max_probes)) + 1))


class _Run:
    """Groups of probes, one after the other; what is found so far; and the file it can continue from."""

    def __init__(
        self, A: LinearOperator, layout: Plan, steps: int, seed: int, group: int, target: int,
        file: Checkpoint | None, checkpoint_steps: int,
    ) -> None:  # fmt: skip
        self.A, self.layout, self.steps, self.seed = A, layout, steps, seed
        self.group, self.target, self.file, self.checkpoint_steps = group, target, file, checkpoint_steps
        self.nodes = torch.zeros(0, steps, dtype=torch.float64)
        self.weights = torch.zeros(0, steps, dtype=torch.float64)
        self.current: Recurrence | None = None

    def resume(self, bar: Any) -> None:
        """Continue from the file, if there is one; the size of its groups is kept, since products may depend on it."""
        state = None if self.file is None else self.file.load()
        if state is not None:
            self.nodes, self.weights = state["nodes"], state["weights"]
            self.group, self.target = int(state["group"]), max(self.target, int(state["target"]))
            if "count" in state:
                self.current = self._begin(int(state["count"]))
                self.current.restore(state)
        bar.total = self._steps_left()

    def to_target(self, bar: Any) -> None:
        """Run groups until there are `target` probes."""
        while len(self.nodes) < self.target:
            run = self.current = self.current or self._begin(min(self.group, self.target - len(self.nodes)))
            bar.total = bar.n + self._steps_left()
            while run.step < run.taken:
                run.advance()
                bar.update()
                if run.step % self.checkpoint_steps == 0 and run.step < run.taken:
                    self._save()
            nodes, weights = quadrature("spectral_density", run.alpha, run.beta, run.steps_taken)
            self.nodes = torch.cat([self.nodes, nodes.cpu()])
            self.weights = torch.cat([self.weights, weights.cpu()])
            self.current = None
            self._save()

    def density(self) -> SpectralDensity:
        """Return what the probes so far amount to."""
        return SpectralDensity(self.nodes, self.weights, self.A.shape[0], torch.finfo(self.A.dtype).eps)

    def _begin(self, count: int) -> Recurrence:
        first = len(self.nodes)
        start = probe_vectors.draw(self.A, first, count, self.seed)
        return Recurrence("spectral_density", self.A, start, self.steps, self.layout, first_probe=first)

    def _save(self) -> None:
        if self.file is None:
            return
        state = {"nodes": self.nodes, "weights": self.weights}
        state |= {"group": torch.tensor(self.group), "target": torch.tensor(self.target)}
        if self.current is not None:
            state |= {"count": torch.tensor(len(self.current.alpha))} | self.current.state()
        self.file.save(state)

    def _steps_left(self) -> int:
        each = min(self.steps, self.A.shape[0])
        groups = -(-(self.target - len(self.nodes)) // self.group)
        return max(0, groups) * each - (0 if self.current is None else self.current.step)
