"""Everything there is to say about the spectrum of a loss's curvature, in one call and one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lsfast import checks
from lsfast.curvature import FisherOperator, GGNOperator, HessianOperator
from lsfast.env import environment
from lsfast.objective import Objective
from lsfast.spectrum import eigsh, parameter_traces, spectral_density
from lsfast.spectrum.eigen import WHICH
from lsfast.studies.spectrum_table import SpectrumReport
from lsfast.studies.timing import timed

if TYPE_CHECKING:
    import os

OPERATORS = {"hessian": HessianOperator, "ggn": GGNOperator, "fisher": FisherOperator}
_CHECKPOINTS = ("density.checkpoint.npz", "eigenvalues.checkpoint.npz")


def spectrum_report(
    objective: Objective,
    kind: str = "hessian",
    probes: int = 8,
    steps: int = 64,
    eigs: int = 10,
    which: str = "LM",
    traces: int = 64,
    seed: int = 0,
    reorthogonalize: str | None = None,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    memory_limit: int | None = None,
    rtol: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> SpectrumReport:
    """Spectral density, extreme eigenpairs and traces of the curvature of an objective.

    Parameters
    ----------
    objective
        The loss.
    kind
        ``"hessian"``, ``"ggn"`` or ``"fisher"`` (the empirical one).
    probes, steps, seed
        As of `lsfast.spectral_density`.
    eigs, which
        Number of eigenpairs, as `k` and `which` of `lsfast.eigsh`; 0: none.
    traces
        Products for the trace of each parameter's block, see `lsfast.parameter_traces`; 0: none.
    reorthogonalize, basis_dtype, basis_device, memory_limit, rtol
        As of `lsfast.spectral_density`; None: its defaults. The eigenpairs get the memory limit too.
    checkpoint
        Folder for what a killed run resumes from, made if there is none: the same call goes on where it was, with the
        same result. `remove_checkpoints` takes it away again.
    progress
        Show a bar for each stage, with the time left.

    Returns
    -------
    SpectrumReport
        ``print(report)``, ``report.save(folder)``, ``report.plot(folder)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be (before any work), a product is not finite, or the checkpoint is of
        another run.

    Examples
    --------
    >>> report = lsfast.studies.spectrum_report(objective, "ggn", probes=4, steps=32, eigs=5)
    >>> report.density.trace, report.eigenpairs.values
    """
    _check(objective, kind, probes, steps, eigs, which, traces, seed, rtol, memory_limit)
    options: dict[str, Any] = {
        "reorthogonalize": reorthogonalize, "basis_dtype": basis_dtype, "basis_device": basis_device,
        "memory_limit": memory_limit, "rtol": rtol,
    }  # fmt: skip
    chosen = {name: value for name, value in options.items() if value is not None}
    files: dict[str, Any] = {}
    if checkpoint is not None:
        folder = Path(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            name: {"checkpoint": folder / file} for name, file in zip(("density", "eigs"), _CHECKPOINTS, strict=True)
        }
    seconds: dict[str, float] = {}
    operator = OPERATORS[kind](objective)
    with timed(seconds, "loss and gradient"):
        loss = float(objective.loss())
        gradient_norm = float(objective.gradient().double().norm())
    with timed(seconds, "spectral density"):
        density = spectral_density(
            operator, probes, steps, seed, progress=progress, **chosen, **files.get("density", {})
        )
    pairs = None
    if eigs:
        with timed(seconds, "eigenpairs"):
            pairs = eigsh(
                operator, eigs, which, seed=seed, memory_limit=memory_limit, progress=progress, **files.get("eigs", {})
            )
    by_parameter = {}
    if traces:
        with timed(seconds, "traces"):
            by_parameter = parameter_traces(operator, traces, seed)
    given = {"probes": probes, "steps": steps, "eigs": eigs, "which": which, "traces": traces, "seed": seed}
    described = {
        name: str(value) if isinstance(value, (torch.dtype, torch.device)) else value for name, value in chosen.items()
    }
    return SpectrumReport(
        kind=kind,
        n=objective.n,
        shapes={name: tuple(shape) for name, shape in zip(objective.names, objective.shapes, strict=True)},
        loss=loss,
        gradient_norm=gradient_norm,
        density=density,
        eigenpairs=pairs,
        parameter_traces=by_parameter,
        settings={
            **given, **described, "dtype": str(objective.dtype), "device": str(objective.device),
            "engine": objective.engine, "reduction": objective.reduction, "weight_decay": objective.weight_decay,
        },
        seconds=seconds,
        environment=environment(),
    )  # fmt: skip


def remove_checkpoints(folder: str | os.PathLike[str]) -> None:
    """Remove what `spectrum_report` left in its checkpoint folder to resume from."""
    for file in _CHECKPOINTS:
        (Path(folder) / file).unlink(missing_ok=True)


def _check(
    objective: object,
    kind: object,
    probes: object,
    steps: object,
    eigs: object,
    which: object,
    traces: object,
    seed: object,
    rtol: object,
    memory_limit: object,
) -> None:
    """Raise for what would otherwise be found after hours."""
    name = "spectrum_report"
    if not isinstance(objective, Objective):
        raise TypeError(f"{name}: objective must be an lsfast.Objective, got {type(objective).__name__}")
    if objective.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: objective must have parameters in float32 or float64, got {objective.dtype}")
    checks.one_of(name, "kind", kind, tuple(OPERATORS))
    checks.positive_integer(name, "probes", probes)
    checks.positive_integer(name, "steps", steps)
    if checks.positive_integer(name, "eigs", eigs, least=0) > objective.n:
        raise ValueError(f"{name}: eigs must be at most the number of parameters {objective.n}, got {eigs}")
    checks.one_of(name, "which", which, WHICH)
    checks.positive_integer(name, "traces", traces, least=0)
    checks.seed(name, seed)
    if memory_limit is not None:
        checks.positive_integer(name, "memory_limit", memory_limit)
    if rtol is not None and not (isinstance(rtol, (int, float)) and 0.0 < rtol < 1.0):
        raise ValueError(f"{name}: rtol must lie between 0 and 1, got {rtol!r}")
