"""The figures of a spectrum: its density, and its extreme eigenvalues with their residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lsfast import checks
from lsfast.plotting.style import BLUE, COLUMN, GREY, ORANGE, Target, new_figure, short, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.spectrum import Eigenpairs, SpectralDensity

SCALES = ("linear", "symlog", "log")
_POINTS = 2000  # of a curve
_ROUNDING = 64  # times epsilon times the spectral norm: below it an eigenvalue is rounding, as in `Criteria`


@dataclass(frozen=True)
class _Curve:
    """A density [points] with its standard error, the height of a single eigenvalue, and what belongs to its axis."""

    x: Any
    value: Any
    stderr: Any
    height: float
    unit: str
    threshold: float = 0.0
    not_shown: str = ""


def spectral_density(
    density: SpectralDensity,
    path: Target | None = None,
    eigenvalues: Tensor | None = None,
    scale: str = "linear",
    title: str | None = None,
) -> Figure:
    r"""Plot a spectral density, itself on a logarithmic axis, with a band of one standard error over probes.

    What is lower than a tenth of the peak that a single eigenvalue makes is not shown.

    Parameters
    ----------
    density
        What `lsfast.spectral_density` returned.
    path
        Where to write the figure; None: nowhere.
    eigenvalues
        [k], such as those of `lsfast.eigsh`, marked on the axis; None: the largest and the smallest node of each probe.
    scale
        Of the eigenvalue axis. ``"linear"``: the density with its default bandwidth. ``"symlog"``: linear within a
        hundredth of the spectral radius r and logarithmic beyond, the density taken per unit of
        :math:`\operatorname{asinh}(100 \lambda / r)`, so that the bulk and far outliers are both resolved. ``"log"``:
        for an operator without negative eigenvalues, the density per decade; those below 64 epsilon times the largest
        are rounding and not shown, and the figure says which share of all they are.
    title
        Above the axes.

    Raises
    ------
    ValueError
        For an unknown scale, or ``"log"`` with a negative eigenvalue or without a positive one.
    """
    checks.one_of("plotting.spectral_density", "scale", scale, SCALES)
    nodes, weights = density.nodes.cpu().numpy(), density.weights.cpu().numpy()
    curve = {"linear": _linear, "symlog": _symmetric_log, "log": _log}[scale](density, nodes, weights)
    probes, floor = len(nodes), 0.1 * curve.height
    with style():
        figure = new_figure(COLUMN, 2.45 if curve.not_shown else 2.3)
        axes = figure.add_subplot()
        if probes > 1:
            lower, upper = (np.clip(curve.value + sign * curve.stderr, floor, None) for sign in (-1, 1))
            axes.fill_between(curve.x, lower, upper, color=BLUE, alpha=0.3, linewidth=0, label="±1 standard error")
        label = f"mean of {probes} probes" if probes > 1 else "one probe"
        axes.plot(curve.x, np.clip(curve.value, floor, None), color=BLUE, label=label)
        _mark(axes, nodes[weights > 0], eigenvalues, floor, curve)
        axes.set_yscale("log")
        axes.set_ylim(floor, _top(curve, floor))
        axes.set_xlim(curve.x[0], curve.x[-1])
        axes.set_xlabel(r"eigenvalue $\lambda$" + curve.not_shown)
        axes.set_ylabel(curve.unit)
        if scale == "symlog":
            _symmetric_log_axis(axes, curve.threshold, curve.x)
        elif scale == "log":
            axes.set_xscale("log")
        axes.legend(frameon=False, loc="upper right", handlelength=1.4)
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)


def eigenvalues(pairs: Eigenpairs, path: Target | None = None, title: str | None = None) -> Figure:
    """Plot eigenvalues by rank, the largest first, with error bars of their residuals; below, the residuals themselves.

    An eigenvalue of the operator lies within the residual |A v - value v| of each value, so the bars are bounds. They
    are mostly too short to be seen, hence the second panel: residuals relative to the largest value of all. The values
    are on a logarithmic axis where they are positive and span more than a factor of 30.

    Parameters
    ----------
    pairs
        What `lsfast.eigsh` returned.
    path
        Where to write the figure; None: nowhere.
    title
        Above the axes.
    """
    order = pairs.values.argsort(descending=True).cpu()
    values, residuals = (x.cpu()[order].double().numpy() for x in (pairs.values, pairs.residuals))
    ranks = np.arange(1, len(values) + 1)
    largest = float(np.abs(values).max()) or 1.0
    relative = residuals / largest
    with style():
        figure = new_figure(COLUMN, 2.7 + (0.2 if title else 0.0))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        upper.errorbar(
            ranks, values, yerr=residuals, fmt="o", color=BLUE, ecolor=ORANGE, markersize=4, capsize=3,
            label="value ± residual",
        )  # fmt: skip
        if values.min() > 0 and values.max() > 30 * values.min():
            upper.set_yscale("log")
        elif values.min() < 0 < values.max():
            upper.axhline(0.0, color=GREY, linewidth=0.7)
        upper.set_ylabel(r"eigenvalue $\lambda$")
        upper.legend(frameon=False, handlelength=1.4)
        lower.plot(ranks, np.where(relative > 0, relative, np.nan), "o", color=ORANGE, markersize=3)
        lower.set_yscale("log")
        if (relative > 0).any():
            low, high = np.log10(relative[relative > 0].min()), np.log10(relative.max())
            lower.set_ylim(10 ** (np.floor(low) - 0.2), 10 ** (np.ceil(high + 1e-9) + 0.2))
        lower.set_ylabel(r"$|Av-\lambda v|\,/\,|\lambda|_{\max}$")
        lower.set_xlabel("rank")
        lower.set_xlim(0.5, len(values) + 0.5)
        lower.set_xticks(ranks[:: -(-len(ranks) // 10)])
        figure.align_ylabels()
        if title:
            upper.set_title(title, loc="left")
        return written(figure, path)


def _top(curve: _Curve, floor: float) -> float:
    """Return the upper end of the axis: what is in its right half stays below the legend, in its upper third."""
    under_legend = (curve.value + np.nan_to_num(curve.stderr))[_POINTS // 2 :].max()
    return float(max(3 * curve.value.max(), floor * (max(under_legend, floor) / floor) ** (1 / 0.64)))


def _mark(axes: Any, present: Any, eigenvalues: Tensor | None, floor: float, curve: _Curve) -> None:
    """Mark eigenvalues on the lower edge."""
    if eigenvalues is None:
        marks, label = np.array([present.min(), present.max()]), "extreme Ritz values"
    else:
        marks, label = eigenvalues.detach().cpu().numpy(), "eigenvalues"
    marks = marks[(marks >= curve.x[0]) & (marks <= curve.x[-1])]
    axes.plot(
        marks, np.full(len(marks), floor), "|", color=ORANGE, markersize=9, markeredgewidth=1.1, clip_on=False,
        label=label, zorder=5,
    )  # fmt: skip


def _symmetric_log_axis(axes: Any, threshold: float, x: Any) -> None:
    """Set the eigenvalue axis to asinh(x / threshold), with ticks at 0 and at the decades beyond the threshold."""
    axes.set_xscale("function", functions=(lambda v: np.arcsinh(v / threshold), lambda v: threshold * np.sinh(v)))
    first = int(np.ceil(np.log10(threshold)))
    decades = [10.0**power for power in range(first, first + 4)]
    ticks = [sign * decade for sign in (-1.0, 1.0) for decade in decades if x[0] <= sign * decade <= x[-1]]
    if x[0] < -threshold and not any(tick < 0 for tick in ticks):  # else nothing tells how far below zero it goes
        ticks = [-float(f"{-0.7 * x[0]:.0e}"), *ticks]
    axes.set_xticks([0.0, *ticks], ["0", *(short(tick) for tick in ticks)])
    axes.set_xticks(
        [part * tick for tick in decades for part in range(2, 10) if x[0] <= part * tick <= x[-1]], minor=True
    )
    axes.set_xlim(x[0], x[-1])


def _linear(density: SpectralDensity, nodes: Any, weights: Any) -> _Curve:
    present = nodes[weights > 0]
    low, high = float(present.min()), float(present.max())
    bandwidth = 0.01 * ((high - low) or max(abs(high), 1e-30))
    x = np.linspace(low - 5 * bandwidth, high + 5 * bandwidth, _POINTS)
    estimate = density.density(torch.as_tensor(x), bandwidth)
    return _Curve(x, *_arrays(estimate), _peak(density, bandwidth), "density")


def _symmetric_log(density: SpectralDensity, nodes: Any, weights: Any) -> _Curve:
    threshold = 1e-2 * float(np.abs(nodes[weights > 0]).max()) or 1.0
    positions = np.arcsinh(nodes / threshold)
    seen = positions[weights > 0]
    bandwidth = 0.015 * (seen.max() - seen.min()) or 1.0
    z = np.linspace(seen.min() - 4 * bandwidth, seen.max() + 4 * bandwidth, _POINTS)
    kernel = np.exp(-0.5 * ((z[:, None, None] - positions) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    by_probe = (kernel * weights).sum(-1)
    probes = by_probe.shape[1]
    stderr = by_probe.std(1, ddof=1) / probes**0.5 if probes > 1 else np.full(len(z), np.nan)
    x, height = threshold * np.sinh(z), _peak(density, bandwidth)
    return _Curve(x, by_probe.mean(1), stderr, height, "density per unit of asinh", threshold)


def _log(density: SpectralDensity, nodes: Any, weights: Any) -> _Curve:
    present = nodes[weights > 0]
    cutoff = _ROUNDING * density.epsilon * float(np.abs(present).max())
    positive = np.log(present[present > cutoff])
    if positive.size == 0:
        raise ValueError(
            "plotting.spectral_density: scale 'log' must be given a positive eigenvalue, got "
            f"{float(present.max()):.3g} as the largest"
        )
    bandwidth = 0.015 * float(positive.max() - positive.min()) or 0.05
    z = np.linspace(positive.min() - 4 * bandwidth, positive.max() + 4 * bandwidth, _POINTS)
    value, stderr = _arrays(density.log_density(torch.as_tensor(np.exp(z)), bandwidth))
    per_decade = np.log(10.0)
    left_out = float(weights[nodes <= cutoff].sum()) / len(nodes)
    note = f"\n({100 * left_out:.2g}% at or below {cutoff:.2g} not shown)" if left_out > 0 else ""
    height = per_decade * _peak(density, bandwidth)
    return _Curve(np.exp(z), per_decade * value, per_decade * stderr, height, "density per decade", not_shown=note)


def _arrays(estimate: Any) -> tuple[Any, Any]:
    return estimate.value.cpu().numpy(), estimate.stderr.cpu().numpy()


def _peak(density: SpectralDensity, bandwidth: float) -> float:
    """Return the height of the peak of a single eigenvalue."""
    return float(1.0 / (density.n * bandwidth * np.sqrt(2 * np.pi)))
