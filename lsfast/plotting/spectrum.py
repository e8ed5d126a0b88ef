"""The figure of a spectral density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lsfast import checks
from lsfast.plotting.style import BLUE, COLUMN, ORANGE, Target, new_figure, short, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsfast.spectrum import SpectralDensity


def spectral_density(
    density: SpectralDensity,
    path: Target | None = None,
    eigenvalues: Tensor | None = None,
    scale: str = "linear",
    title: str | None = None,
) -> Figure:
    r"""Plot a spectral density on a logarithmic axis, with a band of one standard error over probes.

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
        :math:`\operatorname{asinh}(100 \lambda / r)`, so that the bulk and far outliers are both resolved.
    title
        Above the axes.

    Raises
    ------
    ValueError
        For an unknown scale.
    """
    checks.one_of("plotting.spectral_density", "scale", scale, ("linear", "symlog"))
    nodes, weights = density.nodes.cpu().numpy(), density.weights.cpu().numpy()
    present = nodes[weights > 0]
    x, value, stderr, height = _smoothed(density, nodes, weights, scale)
    marks = eigenvalues.cpu().numpy() if eigenvalues is not None else np.array([present.min(), present.max()])
    with style():
        figure = new_figure(COLUMN, 2.3)
        axes = figure.add_subplot()
        floor = 0.1 * height
        if nodes.shape[0] > 1:
            lower, upper = np.clip(value - stderr, floor, None), np.clip(value + stderr, floor, None)
            axes.fill_between(x, lower, upper, color=BLUE, alpha=0.3, linewidth=0, label="±1 standard error")
        probes = f"mean of {nodes.shape[0]} probes" if nodes.shape[0] > 1 else "one probe"
        axes.plot(x, np.clip(value, floor, None), color=BLUE, label=probes)
        label = "eigenvalues" if eigenvalues is not None else "extreme Ritz values"
        axes.plot(
            marks, np.full(len(marks), floor), "|", color=ORANGE, markersize=9, markeredgewidth=1.1, clip_on=False,
            label=label, zorder=5,
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(floor, value.max() * 3)
        axes.set_xlim(x[0], x[-1])
        axes.set_xlabel(r"eigenvalue $\lambda$")
        axes.set_ylabel("density" if scale == "linear" else r"density per unit of asinh")
        if scale == "symlog":
            _symmetric_log_axis(axes, _threshold(present), x)
        axes.legend(frameon=False, loc="upper right", handlelength=1.4)
        if title:
            axes.set_title(title, loc="left")
        return written(figure, path)


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


def _threshold(nodes: Any) -> float:
    return float(np.abs(nodes).max()) * 1e-2


def _smoothed(density: SpectralDensity, nodes: Any, weights: Any, scale: str) -> tuple[Any, Any, Any, float]:
    """Return abscissae, density, standard error, and the height of the peak of a single eigenvalue."""
    present = nodes[weights > 0]
    low, high = float(present.min()), float(present.max())
    if scale == "linear":
        bandwidth = 0.01 * ((high - low) or max(abs(high), 1e-30))
        x = np.linspace(low - 5 * bandwidth, high + 5 * bandwidth, 2000)
        estimate = density.density(torch.as_tensor(x), bandwidth)
        return x, estimate.value.cpu().numpy(), estimate.stderr.cpu().numpy(), _peak(density, bandwidth)
    threshold = _threshold(present) or 1.0
    positions = np.arcsinh(nodes / threshold)
    seen = positions[weights > 0]
    bandwidth = 0.015 * (seen.max() - seen.min()) or 1.0
    z = np.linspace(seen.min() - 4 * bandwidth, seen.max() + 4 * bandwidth, 2000)
    kernel = np.exp(-0.5 * ((z[:, None, None] - positions) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    by_probe = (kernel * weights).sum(-1)
    probes = by_probe.shape[1]
    stderr = by_probe.std(1, ddof=1) / probes**0.5 if probes > 1 else np.full(len(z), np.nan)
    return threshold * np.sinh(z), by_probe.mean(1), stderr, _peak(density, bandwidth)


def _peak(density: SpectralDensity, bandwidth: float) -> float:
    return float(1.0 / (density.n * bandwidth * np.sqrt(2 * np.pi)))
