"""lsfast: curvature, spectra, loss surfaces and low-precision studies of PyTorch models."""

from lsfast import _native  # noqa: F401  first: a missing build is said before anything else
from lsfast.curvature import FisherOperator, GGNOperator, HessianOperator
from lsfast.formats import QuantScheme, scheme, schemes
from lsfast.landscape import Directions, LossGrid, loss_grid, random_directions, sharpness
from lsfast.objective import Evaluation, Objective
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.quantization import (
    Calibration,
    QuantizedTensor,
    QuantStatistics,
    calibrate,
    dequantize,
    fake_quantize,
    hadamard,
    hadamard_signs,
    load_quantized,
    quantize,
    quantized_matmul,
    save_quantized,
    swizzle_scales,
    unswizzle_scales,
)
from lsfast.spectrum import (
    Criteria,
    Eigenpairs,
    Estimate,
    SpectralDensity,
    Tridiagonal,
    eigsh,
    lanczos,
    parameter_traces,
    spectral_density,
    trace,
)
from lsfast.studies import PrecisionTable, precision_study

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Criteria",
    "Directions",
    "Eigenpairs",
    "Estimate",
    "Evaluation",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "LinearOperator",
    "LossGrid",
    "Objective",
    "PrecisionTable",
    "QuantScheme",
    "QuantStatistics",
    "QuantizedTensor",
    "SpectralDensity",
    "Tridiagonal",
    "aslinearoperator",
    "calibrate",
    "dequantize",
    "eigsh",
    "fake_quantize",
    "hadamard",
    "hadamard_signs",
    "lanczos",
    "load_quantized",
    "loss_grid",
    "parameter_traces",
    "precision_study",
    "quantize",
    "quantized_matmul",
    "random_directions",
    "save_quantized",
    "scheme",
    "schemes",
    "sharpness",
    "spectral_density",
    "swizzle_scales",
    "trace",
    "unswizzle_scales",
]
