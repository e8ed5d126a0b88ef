"""Spectra of symmetric operators: Lanczos recurrence, densities, eigenpairs, traces and other estimates, solves."""

from lsfast.estimate import Estimate
from lsfast.spectrum import _fakes as _fakes
from lsfast.spectrum.criteria import Criteria
from lsfast.spectrum.density import SpectralDensity
from lsfast.spectrum.diagonal import diagonal, diagonal_squared_sum
from lsfast.spectrum.eigen import Eigenpairs, eigsh
from lsfast.spectrum.functions import function_trace, logdet
from lsfast.spectrum.norms import frobenius_norm, spectral_norm
from lsfast.spectrum.recurrence import Tridiagonal, lanczos
from lsfast.spectrum.slq import spectral_density
from lsfast.spectrum.solve import Solution, solve
from lsfast.spectrum.trace import parameter_traces, trace

__all__ = [
    "Criteria",
    "Eigenpairs",
    "Estimate",
    "Solution",
    "SpectralDensity",
    "Tridiagonal",
    "diagonal",
    "diagonal_squared_sum",
    "eigsh",
    "frobenius_norm",
    "function_trace",
    "lanczos",
    "logdet",
    "parameter_traces",
    "solve",
    "spectral_density",
    "spectral_norm",
    "trace",
]
