"""The parameters of an objective after a low-precision scheme: what every study quantizes."""

from __future__ import annotations

from torch import Tensor

from lsfast import checks
from lsfast.formats import QuantScheme, scheme
from lsfast.objective import Objective
from lsfast.quantization.fake_quantize import fake_quantize
from lsfast.weights import contraction_first, contraction_last, quantizable_parameters, transposed_groups


def quantize_parameters(objective: Objective, name: str | QuantScheme, seed: int | None = None) -> Tensor:
    """Return the objective's parameters [n] with the weights of the policy rounded to a scheme.

    Parameters
    ----------
    objective
        Its parameters are the ones quantized; neither it nor its model is changed.
    name
        A scheme or its name.
    seed
        For stochastic rounding; every weight draws its own numbers from it.

    Raises
    ------
    ValueError
        For an unknown scheme, or if the policy (see `quantizable_parameters`) leaves nothing to quantize.

    Examples
    --------
    >>> theta = lsfast.studies.quantize_parameters(objective, "nvfp4")
    >>> objective.at(theta).loss()
    """
    chosen = scheme(name)
    if seed is not None:
        checks.seed("quantize_parameters", seed)
    theta = objective.parameters
    parts = objective.unflatten(theta)
    transposed = transposed_groups(objective)
    for index, weight_name in enumerate(quantizable_parameters(objective)):
        weight, groups = parts[weight_name], transposed.get(weight_name)
        rows = contraction_last(weight[None], groups).contiguous()
        quantized = fake_quantize(rows[0], chosen, axis=-1, seed=seed, stream=index)
        weight.copy_(contraction_first(quantized[None], weight.shape, groups)[0])
    return theta
