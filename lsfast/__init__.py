"""lsfast: curvature, spectra, loss surfaces and low-precision studies of PyTorch models."""

from lsfast import _native  # noqa: F401  first: a missing build is said before anything else
from lsfast.curvature import GGNOperator, HessianOperator
from lsfast.formats import QuantScheme, scheme, schemes
from lsfast.landscape import Directions, LossGrid, loss_grid, random_directions, sharpness
from lsfast.objective import Evaluation, Objective
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.quantization import fake_quantize
from lsfast.spectrum import (
    Criteria,
    Eigenpairs,
    Estimate,
    SpectralDensity,
    Tridiagonal,
    eigsh,
    lanczos,
    spectral_density,
    trace,
)
from lsfast.studies import PrecisionTable, precision_study

__version__ = "0.1.0"

__all__ = [
    "Criteria",
    "Directions",
    "Eigenpairs",
    "Estimate",
    "Evaluation",
    "GGNOperator",
    "HessianOperator",
    "LinearOperator",
    "LossGrid",
    "Objective",
    "PrecisionTable",
    "QuantScheme",
    "SpectralDensity",
    "Tridiagonal",
    "aslinearoperator",
    "eigsh",
    "fake_quantize",
    "lanczos",
    "loss_grid",
    "precision_study",
    "random_directions",
    "scheme",
    "schemes",
    "sharpness",
    "spectral_density",
    "trace",
]
