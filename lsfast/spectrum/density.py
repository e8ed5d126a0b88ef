"""The spectral density of an operator and what is read from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsfast import checks
from lsfast.estimate import Estimate, estimate_number, estimate_tensor
from lsfast.results import read_arrays, write_arrays
from lsfast.spectrum.criteria import Criteria, criteria_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMAT = "lsfast.SpectralDensity 1"
_POINT_BYTES = 2**27  # of kernel values made at once by `density` and `cdf`


@dataclass(frozen=True)
class SpectralDensity:
    """Gauss quadratures of the spectral measures of several random probes; their mean is the spectral density.

    Each method returns an `Estimate`: the mean over probes and its standard error (NaN for a single probe).

    Attributes
    ----------
    nodes
        [probes, steps] float64, ascending for each probe, in the units of the operator.
    weights
        [probes, steps] float64, summing to 1 for each probe. Probes that ended early are padded with weight 0.
    n
        Number of eigenvalues: length of a vector.
    epsilon
        Machine epsilon of the operator's dtype.
    """

    nodes: Tensor
    weights: Tensor
    n: int
    epsilon: float

    def function_trace(self, f: Callable[[Tensor], Tensor]) -> Estimate[float]:
        """Trace of f(A): ``n sum_i w_i f(lambda_i)``; f maps a float64 tensor of nodes to one of the same shape."""
        return estimate_number(self._integrals(f), self.n)

    def moment(self, p: int) -> Estimate[float]:
        """Mean of lambda^p over the eigenvalues, ``tr A^p / n``, for an integer p of 0 or more."""
        checks.positive_integer("moment", "p", p, least=0)
        return estimate_number(self._integrals(lambda nodes: nodes**p))

    @property
    def trace(self) -> Estimate[float]:
        """Trace of the operator, ``n sum_i w_i lambda_i``."""
        return self.function_trace(lambda nodes: nodes)

    def density(self, x: Tensor, bandwidth: float | None = None) -> Estimate[Tensor]:
        """Density at x: the weights at the nodes, smoothed by a Gaussian of standard deviation `bandwidth`.

        Its integral is 1. The default bandwidth is 1% of the range of the nodes.
        """
        width = self._bandwidth("density", bandwidth)
        scale = 1.0 / (width * (2.0 * torch.pi) ** 0.5)
        return self._at_points("density", x, lambda gap: scale * torch.exp(-0.5 * (gap / width) ** 2))

    def log_density(self, x: Tensor, bandwidth: float | None = None) -> Estimate[Tensor]:
        """Density of ln(lambda) at ln(x), for x > 0, of an operator without negative eigenvalues.

        The weights at ln(node), smoothed by a Gaussian whose standard deviation `bandwidth` is in units of ln; by
        default 1% of the range of ln(node). Nodes below 64 epsilon times the largest are rounding and have no place on
        this axis: the integral over ln(x) is 1 less their weight.

        Raises
        ------
        ValueError
            If a node is negative beyond rounding, or no node is positive.
        """
        floor = 64 * self.epsilon * float(self.nodes.abs().max())
        if float(self.nodes.min()) < -floor:
            raise ValueError(
                f"log_density: the operator must have no negative eigenvalues, got one at {float(self.nodes.min()):.3g}"
            )
        if not bool(((self.nodes > floor) & (self.weights > 0)).any()):
            raise ValueError("log_density: the operator must have a positive eigenvalue, got none above rounding")
        checks.floating("log_density", "x", x)
        if not bool((x > 0).all()):
            raise ValueError(f"log_density: x must be above 0, got {float(x.min()):.3g}")
        kept = torch.where(self.nodes > floor, self.weights, 0.0)
        logarithms = self.nodes.clamp_min(self.nodes[self.nodes > floor].min()).log()
        on_axis = SpectralDensity(logarithms, kept, self.n, self.epsilon)
        width = on_axis._bandwidth("log_density", bandwidth)
        return on_axis.density(x.double().log(), width)

    def cdf(self, x: Tensor) -> Estimate[Tensor]:
        """Fraction of eigenvalues at or below x: the sum of the weights of such nodes."""
        return self._at_points("cdf", x, lambda gap: (gap >= 0).double())

    def criteria(self) -> Criteria:
        """Single numbers that summarize the spectrum; see `Criteria` for their definitions."""
        return criteria_of(self.nodes, self.weights, self.n, self.epsilon)

    def plot(self, path: str | os.PathLike[str] | None = None, scale: str = "linear") -> Figure:
        """Draw the density with a band of one standard error, see `lsfast.plotting.spectral_density`."""
        from lsfast import plotting

        return plotting.spectral_density(self, path, scale=scale)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` as a NumPy archive; the file appears whole or not at all."""
        numbers = {"n": torch.tensor(self.n), "epsilon": torch.tensor(self.epsilon, dtype=torch.float64)}
        write_arrays(path, _FORMAT, {"nodes": self.nodes, "weights": self.weights, **numbers})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SpectralDensity:
        """Read what `save` wrote. ValueError if the file is torn or is not such a file."""
        arrays, _ = read_arrays("SpectralDensity.load", path, _FORMAT)
        return SpectralDensity(arrays["nodes"], arrays["weights"], int(arrays["n"]), float(arrays["epsilon"]))

    def _integrals(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Return sum_i w_i f(lambda_i) for each probe [probes]; a node of weight 0 does not count."""
        values = f(self.nodes.clone())
        if not isinstance(values, Tensor) or values.shape != self.nodes.shape:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"function_trace: f must return a tensor {list(self.nodes.shape)}, got {got}")
        return torch.where(self.weights > 0, self.weights * values.double(), 0.0).sum(1)

    def _bandwidth(self, function: str, bandwidth: float | None) -> float:
        if bandwidth is None:
            extent = float(self.nodes.max() - self.nodes.min())
            return 0.01 * (extent or float(self.nodes.abs().max()) or 1.0)
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, (int, float)):
            raise TypeError(f"{function}: bandwidth must be a number, got {bandwidth!r}")
        if not 0.0 < bandwidth < float("inf"):
            raise ValueError(f"{function}: bandwidth must be above 0, got {bandwidth}")
        return float(bandwidth)

    def _at_points(self, function: str, x: Tensor, kernel: Callable[[Tensor], Tensor]) -> Estimate[Tensor]:
        """Sum over nodes w_i kernel(x - lambda_i), for every x and probe, then over probes."""
        checks.floating(function, "x", x)
        points = x.detach().to(self.nodes).flatten()
        slices = torch.split(points, max(1, _POINT_BYTES // (8 * self.nodes.numel())))
        sums = [(kernel(part[:, None, None] - self.nodes) * self.weights).sum(2) for part in slices]
        return estimate_tensor(torch.cat(sums).T.reshape(-1, *x.shape))
