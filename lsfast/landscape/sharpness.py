"""Sharpness: how much the loss rises close to the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lsfast import checks
from lsfast.estimate import Estimate, estimate_tensor
from lsfast.landscape.ascent import Scale, highest_loss, steepest
from lsfast.landscape.critical import critical_sharpness
from lsfast.landscape.per_sample import Rows, row_values
from lsfast.objective import Objective

# The options of each method and their defaults; a method refuses the others.
_OPTIONS: dict[str, dict[str, Any]] = {
    "sam": {"radius": 0.05, "per_sample": False},
    "asam": {"radius": 0.05, "per_sample": False},
    "average": {"radius": 0.05, "adaptive": False, "samples": 16, "seed": 0, "per_sample": False},
    "worst": {"radius": 0.05, "p": 2, "adaptive": False, "steps": 20, "seed": 0},
    "keskar": {"radius": 1e-3, "steps": 20, "seed": 0},
    "critical": {"direction": None},
}
_ONES, _MAGNITUDES, _MAGNITUDES_AND_ONE = Scale(0.0, 1.0), Scale(1.0, 0.0), Scale(1.0, 1.0)


@overload
def sharpness(
    objective: Objective,
    method: Literal["average"],
    radius: float | None = ...,
    *,
    p: float | None = ...,
    adaptive: bool | None = ...,
    steps: int | None = ...,
    samples: int | None = ...,
    seed: int | None = ...,
    direction: Tensor | None = ...,
    per_sample: bool | None = ...,
    progress: bool = ...,
) -> Estimate[Tensor]: ...


@overload
def sharpness(
    objective: Objective,
    method: Literal["sam", "asam", "worst", "keskar", "critical"] = ...,
    radius: float | None = ...,
    *,
    p: float | None = ...,
    adaptive: bool | None = ...,
    steps: int | None = ...,
    samples: int | None = ...,
    seed: int | None = ...,
    direction: Tensor | None = ...,
    per_sample: bool | None = ...,
    progress: bool = ...,
) -> Tensor: ...


def sharpness(
    objective: Objective,
    method: str = "sam",
    radius: float | None = None,
    *,
    p: float | None = None,
    adaptive: bool | None = None,
    steps: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    direction: Tensor | None = None,
    per_sample: bool | None = None,
    progress: bool = False,
) -> Tensor | Estimate[Tensor]:
    r"""Return the rise of the loss close to the parameters w.

    With g the gradient at w, rho the radius and products elementwise:

    ============ ====================================================================================================
    method       value
    ============ ====================================================================================================
    ``sam``      :math:`L(w + \rho g / |g|) - L(w)`
    ``asam``     :math:`L(w + \rho w^2 g / |\,|w| g\,|) - L(w)`
    ``average``  the mean of :math:`L(w + \delta) - L(w)`, :math:`\delta \sim N(0, \rho^2 \mathrm{diag}(c^2))`
    ``worst``    :math:`\max L(w + \delta) - L(w)` over :math:`|\delta / c|_p \le \rho`
    ``keskar``   :math:`100 \max (L(w + \delta) - L(w)) / (1 + L(w))` over :math:`|\delta_i| \le \rho (|w_i| + 1)`
    ``critical`` :math:`2 / \eta_c`, the smallest :math:`\eta_c` with :math:`L(w - \eta_c d) > L(w)`
    ============ ====================================================================================================

    c is 1, or ``|w|`` with `adaptive`: then rescaling the weights of a network that computes the same function does not
    change the value, and parameters that are 0 do not move. ``"asam"`` is adaptive in the same way.

    Parameters
    ----------
    objective
        The loss.
    method
        As above.
    radius
        rho > 0, for all but critical: in units of the parameters, or relative to them where adaptive. 0.05 by default,
        for keskar 1e-3.
    p
        2 or ``math.inf``, for worst. Default 2.
    adaptive
        Whether c is ``|w|``, for average and worst.
    steps
        Steps uphill, for worst and keskar, each one loss and at most one gradient; 20 by default. The steepest one
        first, so no less than sam (or asam) is found where that rises; then projected gradient ascent, where a step
        that lowers the loss is taken back and halved. The largest loss met is a lower bound of the maximum.
    samples
        Draws for average, 16 by default; each is a pair +-delta, whose mean has no first-order error.
    seed
        Of the draws, made on the CPU; for worst and keskar of the first step where the gradient is exactly 0.
    direction
        d [n] for critical: the update that is subtracted, such as an optimizer's. Default: the gradient.
    per_sample
        One value for each row of the data, in order: of the row's own loss at its own perturbation for sam and asam
        (m-sharpness with m = 1), at the same ones for average. A row that counts no target (all ignored) gets 0.
    progress
        Show a bar.

    Returns
    -------
    Tensor or Estimate
        0-dim float64, or [rows] for `per_sample`. For average an `Estimate` of such a value with its standard error
        over the draws. NaN or Inf if the loss is there. 0 where the gradient (times c) is zero for sam and asam.

        Critical sharpness is that of the first rise on a scale of doublings, refined until eta_c is known to one part
        in 16000; Inf for a direction that does not go downhill, 0 with a warning where no rise is found.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above or belongs to another method, the gradient is not finite, keskar's 1 + L(w) is
        not positive, or `per_sample` is asked of a model whose batch norm mixes rows.

    References
    ----------
    Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization. ICLR 2021. Kwon, Kim, Park, Choi: ASAM. ICML 2021.
    Andriushchenko, Croce, Mueller, Hein, Flammarion: A Modern Look at the Relationship between Sharpness and
    Generalization. ICML 2023. Keskar, Mudigere, Nocedal, Smelyanskiy, Tang: On Large-Batch Training. ICLR 2017.

    Examples
    --------
    >>> lsfast.sharpness(objective, radius=0.05)
    tensor(0.0123, dtype=torch.float64)
    >>> lsfast.sharpness(objective, "average", samples=64).stderr
    tensor(0.0002, dtype=torch.float64)
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"sharpness: objective must be an Objective, got {type(objective).__name__}")
    checks.one_of("sharpness", "method", method, tuple(_OPTIONS))
    given = {
        "radius": radius,
        "p": p,
        "adaptive": adaptive,
        "steps": steps,
        "samples": samples,
        "seed": seed,
        "direction": direction,
        "per_sample": per_sample,
    }
    options = _checked(objective, method, {name: value for name, value in given.items() if value is not None})
    total = options.get("steps") or (options.get("samples") if not options.get("per_sample") else None)
    with _bar(progress, total) as advance:
        if method == "critical":
            return critical_sharpness(objective, options["direction"], advance)
        rho = options["radius"]
        if method in ("sam", "asam"):
            scale = _ONES if method == "sam" else _MAGNITUDES
            return _steepest_rise(objective, rho, scale, options["per_sample"], advance)
        if method == "average":
            scale = _MAGNITUDES if options["adaptive"] else _ONES
            number, start = options["samples"], options["seed"]
            return _average(objective, rho, scale, number, start, options["per_sample"], advance)
        if method == "worst":
            scale, box = (_MAGNITUDES if options["adaptive"] else _ONES), options["p"] == math.inf
            base, highest = highest_loss(objective, rho, scale, box, options["steps"], options["seed"], advance)
            return highest - base
        base, highest = highest_loss(
            objective, rho, _MAGNITUDES_AND_ONE, True, options["steps"], options["seed"], advance
        )
        if 1.0 + base <= 0.0:
            raise ValueError(f"sharpness: keskar must have a loss above -1, got {float(base)}")
        return 100.0 * (highest - base) / (1.0 + base)


def _checked(objective: Objective, method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a method, those given checked and the others at their defaults."""
    own = _OPTIONS[method]
    for name, value in given.items():
        if name not in own:
            raise ValueError(f"sharpness: {name} must not be given for {method!r}, which has {', '.join(own)}")
        if name == "radius":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"sharpness: radius must be a number, got {value!r}")
            if not 0.0 < value < math.inf:
                raise ValueError(f"sharpness: radius must be a finite number > 0, got {value}")
        elif name == "p":
            if value not in (2, math.inf):
                raise ValueError(f"sharpness: p must be 2 or math.inf, got {value!r}")
        elif name in ("adaptive", "per_sample"):
            if not isinstance(value, bool):
                raise TypeError(f"sharpness: {name} must be True or False, got {value!r}")
        elif name in ("steps", "samples"):
            checks.positive_integer("sharpness", name, value)
        elif name == "seed":
            checks.seed("sharpness", value)
        else:
            checks.like("sharpness", "direction", value, objective.dtype, objective.device)
            if value.shape != (objective.n,):
                raise ValueError(f"sharpness: direction must have shape [{objective.n}], got {list(value.shape)}")
            if not value.isfinite().all():
                raise ValueError("sharpness: direction must be finite, got NaN or Inf in it")
    return own | given


def _steepest_rise(
    objective: Objective, radius: float, scale: Scale, per_sample: bool, advance: Callable[[int], object]
) -> Tensor:
    parameters = objective.parameters
    if per_sample:

        def rises(rows: Rows) -> Tensor:
            points = steepest(rows.gradients(parameters), parameters, radius, scale)
            return rows.losses(points) - rows.losses(parameters)

        return row_values(objective, rises, advance)
    point = steepest(objective.gradient()[None], parameters, radius, scale)
    values = objective.evaluate(points=torch.cat([parameters[None], point])).values
    return values[1] - values[0]


def _average(
    objective: Objective,
    radius: float,
    scale: Scale,
    samples: int,
    seed: int,
    per_sample: bool,
    advance: Callable[[int], object],
) -> Estimate[Tensor]:
    parameters = objective.parameters
    widths = radius * (scale.slope * parameters.abs() + scale.offset)

    def pairs(count: int, generator: torch.Generator) -> Tensor:
        """Return w + delta and w - delta [2, count, n] of the next draws."""
        noise = torch.stack(
            [torch.randn(objective.n, generator=generator, dtype=objective.dtype) for _ in range(count)]
        )
        steps = widths * noise.to(objective.device)
        return torch.stack([parameters + steps, parameters - steps])

    if per_sample:

        def rises(rows: Rows) -> Tensor:
            generator = torch.Generator().manual_seed(seed)  # the same noise for the rows of every batch
            base = rows.losses(parameters)
            drawn = []
            for _ in range(samples):
                up, down = pairs(1, generator)[:, 0]
                drawn.append(0.5 * ((rows.losses(up) - base) + (rows.losses(down) - base)))
            return torch.stack(drawn)

        return estimate_tensor(row_values(objective, rises, advance))

    generator = torch.Generator().manual_seed(seed)
    base = objective.evaluate(points=parameters[None]).values[0]
    # The points may take a quarter of the memory: noise and steps are as large again.
    at_once = max(1, objective.memory_limit // (4 * 4 * objective.n * objective.dtype.itemsize))
    found = []
    for first in range(0, samples, at_once):
        count = min(at_once, samples - first)
        values = objective.evaluate(points=pairs(count, generator).flatten(0, 1)).values.view(2, count)
        found.append(0.5 * ((values[0] - base) + (values[1] - base)))
        advance(count)
    return estimate_tensor(torch.cat(found))


@contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[int], object]]:
    """Give what is told how many steps, draws, rows or losses are done, with a progress bar or without."""
    with tqdm(total=total, desc="sharpness", disable=not shown, leave=None) as bar:
        yield bar.update
