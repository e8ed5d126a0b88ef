"""The quantization room: low-bit arithmetic simulated in full precision, and packed in low-bit codes."""

from lsfast.quantization.calibrate import calibrate
from lsfast.quantization.calibration import Calibration
from lsfast.quantization.fake_quantize import fake_quantize
from lsfast.quantization.hadamard import hadamard
from lsfast.quantization.interop import swizzle_scales, unswizzle_scales
from lsfast.quantization.matmul import quantized_matmul
from lsfast.quantization.packed import QuantizedTensor, dequantize, load_quantized, quantize, save_quantized
from lsfast.quantization.statistics import QuantStatistics
from lsfast.scheme_numbers import hadamard_signs

__all__ = [
    "Calibration",
    "QuantStatistics",
    "QuantizedTensor",
    "calibrate",
    "dequantize",
    "fake_quantize",
    "hadamard",
    "hadamard_signs",
    "load_quantized",
    "quantize",
    "quantized_matmul",
    "save_quantized",
    "swizzle_scales",
    "unswizzle_scales",
]
