"""The quantization room: low-bit arithmetic simulated in full precision."""

from lsfast.quantization.fake_quantize import fake_quantize

__all__ = ["fake_quantize"]
