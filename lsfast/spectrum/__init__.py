"""Spectra of symmetric operators: Lanczos recurrence, spectral density, extreme eigenpairs and traces."""

from lsfast.spectrum import _fakes as _fakes
from lsfast.spectrum.criteria import Criteria
from lsfast.spectrum.density import SpectralDensity, spectral_density
from lsfast.spectrum.eigen import Eigenpairs, eigsh
from lsfast.spectrum.estimate import Estimate
from lsfast.spectrum.recurrence import Tridiagonal, lanczos
from lsfast.spectrum.trace import parameter_traces, trace

__all__ = [
    "Criteria",
    "Eigenpairs",
    "Estimate",
    "SpectralDensity",
    "Tridiagonal",
    "eigsh",
    "lanczos",
    "spectral_density",
    "parameter_traces",
    "trace",
]
