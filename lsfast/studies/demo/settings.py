"""How much work the demo does: the numbers that set its accuracy and its time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the demo's analyses.

    Attributes
    ----------
    images
        Training images whose cross-entropy is analysed.
    probes, lanczos_steps
        Of the spectral density.
    eigenvalues
        How many of the largest in magnitude are computed.
    trace_products
        Hessian products of the trace estimate.
    grid_steps
        Points along each of the two directions of the loss surface.
    extent
        The surface reaches from -extent to extent, in units of the filters' own norms.
    schemes
        Of the precision table.
    """

    images: int = 128
    probes: int = 8
    lanczos_steps: int = 32
    eigenvalues: int = 5
    trace_products: int = 64
    grid_steps: int = 51
    extent: float = 1.0
    schemes: tuple[str, ...] = ("fp32", "bf16", "fp8_e4m3", "fp8_e5m2", "nvfp4")
