"""The words of the demo's report: what each picture shows, how it was computed, and the numbers found."""

from __future__ import annotations

from typing import Any

import torch

from lsfast.studies.demo.analysis import Analysis

_MODELS = {
    "mlp": "Two hidden layers of 64 and 32 GELU units.",
    "cnn": "Three 3x3 convolutions with batch norm and ReLU, averaged over the image; batch norm uses its running "
    "statistics, so the loss is a function of the weights alone.",
    "transformer": "One pre-norm block of width 24 with two heads; the eight rows of an image are its tokens.",
}


def model_text(analysis: Analysis) -> str:
    """Return what the model is and how well it learned."""
    return (
        f"{_MODELS[analysis.name]} {analysis.parameters:,} parameters; {100 * analysis.train_accuracy:.1f} % of the "
        f"training and {100 * analysis.test_accuracy:.1f} % of the test images right."
    )


def caption(analysis: Analysis, figure: str, settings: dict[str, Any]) -> str:
    """Return the caption of one figure, HTML."""
    return _CAPTIONS[figure](analysis, settings)


def _contours(analysis: Analysis, settings: dict[str, Any]) -> str:
    values = analysis.grid.values
    finite = torch.where(values.isfinite(), values, torch.inf)
    lowest = int(finite.argmin())
    x, y = analysis.grid.coordinates
    at = float(x[lowest // len(y)]), float(y[lowest % len(y)])
    steps = settings["grid_steps"]
    seen = (
        "The trained weights are the lowest point of the plane."
        if at == (0.0, 0.0)
        else f"The lowest point lies at ({at[0]:.2g}, {at[1]:.2g}) with {float(finite.min()):.3g}, against "
        f"{analysis.loss:.3g} at the origin: the images drawn are not all that it was trained on."
    )
    return (
        f"The loss around the trained weights (+) in a plane of two random directions. A distance of 1 changes each "
        f"filter by as much as its own norm, so planes of different models compare. {seen} "
        f"<code>loss_grid</code> over <code>random_directions</code>, {steps} x {steps} points, contours at round "
        f"values of the loss."
    )


def _surface(analysis: Analysis, settings: dict[str, Any]) -> str:
    values = analysis.grid.values
    highest = float(values[values.isfinite()].max())
    return (
        f"The same {values.numel():,} points as a surface, its height on a logarithmic axis: from {analysis.loss:.3g} "
        f"at the trained weights up to {highest:.3g} at the rim. Guessing among ten digits costs 2.30."
    )


def _spectrum(analysis: Analysis, settings: dict[str, Any]) -> str:
    values = analysis.eigenpairs.values
    slq, trace = analysis.density.trace, analysis.trace
    gap = abs(slq.value - trace.value) / max((slq.stderr**2 + trace.stderr**2) ** 0.5, 1e-30)
    return (
        f"Where the {analysis.parameters:,} eigenvalues of the Hessian lie: most near zero, a few far out. Orange: the "
        f"{len(values)} largest in magnitude, by <code>eigsh</code>, up to {float(values.max()):.4g}. The density has "
        f"a band of one standard error over {settings['probes']} probes of {settings['lanczos_steps']} Lanczos steps "
        f"(<code>spectral_density</code>); they sum to a trace of {slq.value:.4g} ± {slq.stderr:.2g}, and "
        f"{settings['trace_products']} Hutchinson products (<code>trace</code>) to {trace.value:.4g} ± "
        f"{trace.stderr:.2g}: {gap:.1f} standard errors apart."
    )


def _bulk(analysis: Analysis, settings: dict[str, Any]) -> str:
    criteria = analysis.density.criteria()
    rank = criteria.effective_rank
    positive = analysis.density.function_trace(lambda nodes: nodes.clamp(min=0.0))
    negative = analysis.density.function_trace(lambda nodes: nodes.clamp(max=0.0))
    return (
        f"The same density on a symmetric logarithmic axis, which opens up the bulk. Negative eigenvalues, down to "
        f"{criteria.smallest:.3g}, sum to {negative.value:.3g} ± {negative.stderr:.2g}, positive ones to "
        f"{positive.value:.4g} ± {positive.stderr:.2g}. The effective rank is {rank.value:.0f} ± {rank.stderr:.0f}: a "
        f"spectrum of that many equal eigenvalues would have the same traces of |H| and of H². Ripples in the bulk are "
        f"the resolution of {settings['lanczos_steps']} steps, not gaps."
    )


def _precision(analysis: Analysis, settings: dict[str, Any]) -> str:
    table = analysis.table
    reference, *others = table.schemes
    coarsest = max(others or [reference], key=lambda scheme: table[scheme, "weight_error"])
    before, after = table[reference, "test_accuracy"], table[coarsest, "test_accuracy"]
    return (
        f"The same model with {len(analysis.quantized)} weight tensors rounded to each format "
        f"(<code>precision_study</code>; the head, biases and norms stay as they are; dashed: {reference}). "
        f"{coarsest} changes the weights most, by {100 * table[coarsest, 'weight_error']:.2g} % of their norm: the "
        f"loss goes from {table[reference, 'loss']:.3g} to {table[coarsest, 'loss']:.3g}, the test accuracy from "
        f"{100 * before:.1f} to {100 * after:.1f} %, the largest eigenvalue from "
        f"{table[reference, 'largest_eigenvalue']:.4g} to {table[coarsest, 'largest_eigenvalue']:.4g}. Sharpness is "
        f"the rise of the loss after a step of 0.05 uphill."
    )


_CAPTIONS = {
    "contours": _contours,
    "surface": _surface,
    "spectrum": _spectrum,
    "bulk": _bulk,
    "precision": _precision,
}
