"""The loss as a function of parameters over data: what every room is given.

An `Objective` fixes a model, a loss and data, and answers for any parameters: the loss, its gradient, products with its
curvature, its values at many points. It never changes the model: parameters, buffers, gradients, train/eval mode and
the state of the random number generators are as before, also after an exception.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lsfast import checks
from lsfast.data import batches, call_arguments, check_data, check_device, denominator_of, subsample, tensors_in
from lsfast.formats import QuantScheme
from lsfast.program import autograd
from lsfast.program.autograd import batch_gradient
from lsfast.program.errors import CaptureError
from lsfast.program.evaluation import evaluate_points
from lsfast.program.explain import Explanation, explain
from lsfast.program.graph import Program
from lsfast.program.linearization import Linearization, program_of
from lsfast.program.memory import free_memory
from lsfast.program.point_sets import points_of
from lsfast.program.precision import PRECISIONS

Metric = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Evaluation:
    """Values of an objective at g points.

    Attributes
    ----------
    values
        [g] float64, the loss at each point (NaN and Inf are kept as they come).
    stderr
        [g] float64, the standard error of each as a mean over rows of data drawn at random (targets that are not
        ignored, for losses of classes); over batches where a loss cannot be taken apart; NaN for a single one.
    metrics
        name -> [g] float64, the mean over the data of each metric asked for.
    points_at_once
        How many points were evaluated together.
    """

    values: Tensor
    stderr: Tensor
    metrics: dict[str, Tensor]
    points_at_once: int


class Objective:
    r"""The loss of a model over data, as a function of n parameters.

    .. math:: L(\theta) = \sum_b c_b \ell_b(\theta) / \sum_b c_b + \tfrac{w}{2} |\theta|^2

    with :math:`\ell_b` the loss of batch b and :math:`c_b` the number of targets it is a mean over (mean); for
    `reduction="sum"` the batches are added. The value does not depend on how the data is split into batches.

    Parameters
    ----------
    model
        Any module. Its train/eval mode is respected; batch norm in train mode uses batch statistics and does not update
        its running ones; dropout in train mode is refused (that of a function, not a module, when it is captured).
    loss_fn
        ``loss_fn(outputs, targets)``, a scalar.
    data
        ``(inputs, targets)``, or anything that yields the same pairs each time it is iterated (a list, a DataLoader
        that does not shuffle).
        inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments).
    params
        None: all parameters that require grad; or name patterns such as ``"encoder.*.weight"``.
    reduction
        What `loss_fn` does over a batch, ``"mean"`` or ``"sum"``.
    count
        ``count(inputs, targets)``: what a batch's mean is divided by. By default the loss module's own denominator
        (``ignore_index``, class weights), else the rows of the targets.
    output
        Picks the tensor the loss is given from what the model returns.
    weight_decay
        The factor w above.
    engine
        ``"program"``: the model and the loss are captured by ``torch.export`` and differentiated by rules for K vectors
        at once (see `explain`). ``"autograd"``: products by composing ``torch.func`` transforms; slower, and for models
        that cannot be captured. It does not notice data that changes between passes, takes ``no_grad`` regions as if
        they were differentiated, and does not look at the next two.
    memory_limit
        Bytes that products may take beyond model and data; None: half of what is free now. Linearizations of batches
        stay between products while they fit half of it, and as many vectors are taken at once (one at least) as fit
        the rest.
    matmul_precision
        How the factors of float32 matrix products and convolutions are rounded in products: ``"ieee"`` (not at all),
        ``"tf32"`` or ``"bf16"`` (where the device has it; a CUDA device takes ``"bf16"`` as ``"tf32"``). What it costs
        in accuracy is measured by ``check()`` of the operators.

    Raises
    ------
    ValueError, TypeError
        Before any work, if a pattern matches nothing, a chosen parameter does not require grad, parameters differ in
        dtype or device, the data can be iterated only once, or the loss of the first batch is not a finite scalar.

    Examples
    --------
    >>> objective = lsfast.Objective(model, torch.nn.CrossEntropyLoss(), (images, labels))
    >>> objective.loss()
    tensor(2.3026, dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        params: str | Sequence[str] | None = None,
        reduction: str = "mean",
        count: Callable[[Any, Any], Any] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        weight_decay: float = 0.0,
        engine: str = "program",
        memory_limit: int | None = None,
        matmul_precision: str = "ieee",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Objective: model must be a torch.nn.Module, got {type(model).__name__}")
        for name, value in (("loss_fn", loss_fn), ("count", count), ("output", output)):
            if not callable(value) and (name == "loss_fn" or value is not None):
                raise TypeError(f"Objective: {name} must be callable, got {type(value).__name__}")
        checks.one_of("Objective", "reduction", reduction, ("mean", "sum"))
        checks.one_of("Objective", "engine", engine, ("program", "autograd"))
        own = getattr(loss_fn, "reduction", reduction)
        if own != reduction:
            raise ValueError(f"Objective: reduction must be that of loss_fn, {own!r}, got {reduction!r}")
        if not 0.0 <= weight_decay < float("inf"):
            raise ValueError(f"Objective: weight_decay must be a finite number >= 0, got {weight_decay}")
        checks.one_of("Objective", "matmul_precision", matmul_precision, PRECISIONS)
        if memory_limit is not None and not memory_limit > 0:
            raise ValueError(f"Objective: memory_limit must be a number of bytes > 0, got {memory_limit}")
        check_data(data)
        _refuse_active_dropout(model)

        self.model, self.loss_fn, self.data = model, loss_fn, data
        self.reduction, self.output, self.weight_decay, self.engine = reduction, output, float(weight_decay), engine
        self._count = count or denominator_of(loss_fn)
        self.names = _select(model, params)
        named = dict(model.named_parameters())
        chosen = [named[name] for name in self.names]
        self.shapes = [parameter.shape for parameter in chosen]
        self.n = sum(parameter.numel() for parameter in chosen)
        self.dtype, self.device = _common(self.names, chosen)
        self.programs: dict[Any, Program | CaptureError] = {}
        self.matmul_precision = matmul_precision
        self.memory_limit = free_memory(self.device) // 2 if memory_limit is None else int(memory_limit)
        self._at: Tensor | None = None
        self._check_first_batch()

    # -- parameters ---------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Tensor:
        """The parameters as one vector [n], a copy."""
        if self._at is not None:
            return self._at.clone()
        named = dict(self.model.named_parameters())
        return torch.cat([named[name].detach().reshape(-1) for name in self.names])

    @property
    def slices(self) -> dict[str, slice]:
        """Name of a parameter -> its place in a vector [n]."""
        ends = list(accumulate((shape.numel() for shape in self.shapes), initial=0))
        return {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.names)}

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the parts of a vector [n] by parameter name, as views in the parameters' shapes."""
        if not isinstance(vector, Tensor) or vector.shape != (self.n,):
            got = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise ValueError(f"unflatten: vector must have shape [{self.n}], got {got}")
        shapes = zip(self.slices.items(), self.shapes, strict=True)
        return {name: vector[part].view(shape) for (name, part), shape in shapes}

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the vector [n] of parameters given by name, the inverse of `unflatten`."""
        missing = [name for name in self.names if name not in named]
        if missing:
            raise ValueError(f"flatten: named must hold every parameter, missing {missing[0]!r}")
        return torch.cat([named[name].reshape(-1) for name in self.names])

    def at(self, parameters: Tensor) -> Objective:
        """Return the same objective at other parameters [n]; the model keeps its own.

        Examples
        --------
        >>> objective.at(0.9 * objective.parameters).loss()
        """
        checks.like("at", "parameters", parameters, self.dtype, self.device)
        if parameters.shape != (self.n,):
            raise ValueError(f"at: parameters must have shape [{self.n}], got {list(parameters.shape)}")
        moved = copy.copy(self)
        moved._at = parameters.detach().clone()
        return moved

    def with_matmul_precision(self, precision: str) -> Objective:
        """Return the same objective with another `matmul_precision`."""
        checks.one_of("with_matmul_precision", "precision", precision, PRECISIONS)
        other = copy.copy(self)
        other.matmul_precision = precision
        return other

    # -- values and derivatives ---------------------------------------------------------------------------------------

    def loss(self) -> Tensor:
        """Return the loss, 0-dim float64.

        Raises
        ------
        ValueError
            If it is not finite at some batch.
        """
        evaluation = self.evaluate(points=self.parameters[None])
        if not torch.isfinite(evaluation.values[0]):
            raise ValueError(f"loss: the loss must be finite, got {float(evaluation.values[0])}")
        return evaluation.values[0]

    def gradient(self) -> Tensor:
        """Return the gradient of the loss [n].

        Raises
        ------
        ValueError
            If it is not finite.
        """
        parameters = self.parameters
        total = self.over_batches(lambda inputs, targets: batch_gradient(self, parameters, inputs, targets))
        if not torch.isfinite(total).all():
            raise ValueError("gradient: the gradient must be finite, got NaN or Inf in it")
        return total.add_(parameters, alpha=self.weight_decay)

    def linearize(self) -> Linearization | autograd.Linearization:
        """Return the products with the derivatives of this objective at its parameters."""
        return Linearization(self) if self.engine == "program" else autograd.Linearization(self)

    def explain(self) -> Explanation:
        """Return which operation of the model and the loss runs on which rule of the program engine.

        Raises
        ------
        CaptureError
            If the model cannot be captured.

        Examples
        --------
        >>> print(objective.explain())  # counts are over the programs of all shapes of batches
        aten.linear.default              native       3
        aten.relu.default                native       2
        aten.cross_entropy_loss.default  native       1
        aten.reshape.default             native       1
        """
        with self.undisturbed():
            return explain({id(p): p for p in (program_of(self, *pair) for pair in batches(self.data))}.values())

    def evaluate(
        self,
        origin: Tensor | None = None,
        directions: Tensor | None = None,
        coordinates: Tensor | None = None,
        metrics: Mapping[str, Metric] | None = None,
        points: Tensor | None = None,
        batch_norm: str = "eval",
        scheme: str | QuantScheme | None = None,
        seed: int | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        points_at_once: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Evaluation:
        """Evaluate the loss at g points: origin + coordinates [g, d] @ directions [d, n], or at `points` [g, n].

        The program engine takes many points together (`lsfast.program.evaluation`); a model it cannot capture, and a
        call for fewer than four points, is evaluated point by point.

        Parameters
        ----------
        origin
            [n]; None: this objective's parameters.
        directions, coordinates
            [d, n] and [g, d].
        metrics
            name -> ``metric(outputs, targets)``, a mean over the batch, averaged over batches by their rows.
        points
            [g, n], in place of the three above.
        batch_norm
            What batch norms in eval mode normalize by: ``"eval"``, their running statistics; ``"recompute"``, mean and
            (biased) variance over all the data at each point, as if the data were one batch in train mode.
        scheme
            A number format (or its name): at every point the weights that `lsfast.studies.quantizable_parameters`
            names are rounded to it.
        seed
            For a scheme with stochastic rounding; all points draw the same numbers.
        buffers
            name -> [1 + d, *shape]: a floating buffer that moves with the coordinates, row 0 plus their products with
            the others; with `points`, name -> [g, *shape].
        points_at_once
            How many points are evaluated together; None: as many as fit a block of cache and `memory_limit`. What is
            in one product may decide its last bit, so a run that is to repeat another to the bit passes its number.
        progress
            Called with the number of points done since the last call.

        Raises
        ------
        ValueError
            If points or coordinates are none, do not fit the parameters in shape, dtype or device, or the engine cannot
            do what is asked for: statistics of batch norms without a captured program, metrics without one output.
        """
        where = points_of(self, origin, directions, coordinates, points, scheme, seed, buffers)
        checks.one_of("evaluate", "batch_norm", batch_norm, ("eval", "recompute"))
        if points_at_once is not None:
            checks.positive_integer("evaluate", "points_at_once", points_at_once)
        recompute = batch_norm == "recompute"
        found, together = evaluate_points(self, where, dict(metrics or {}), recompute, points_at_once, progress)
        values = found.values
        if self.weight_decay:
            values = values + 0.5 * self.weight_decay * where.squared_norms(self.names)
        return Evaluation(values, found.stderr, found.metrics, together)

    def subset(self, rows: int, seed: int = 0) -> Objective:
        """Return the same objective over a fixed random subsample of the data: `rows` rows without replacement.

        The batches keep their order, the rows theirs within a batch. They are held in memory.

        Raises
        ------
        ValueError
            If the data has fewer rows, or tensors of a batch differ in their first axis.

        Examples
        --------
        >>> objective.subset(4).loss()
        """
        checks.positive_integer("subset", "rows", rows)
        checks.seed("subset", seed)
        with self.undisturbed():
            chosen = copy.copy(self)
            chosen.data = subsample(self.data, rows, seed)
        return chosen

    # -- what the engines stand on ------------------------------------------------------------------------------------

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """Return what the loss is given: the model's output at parameters by name."""
        arguments, keywords = call_arguments(inputs)
        result = functional_call(self.model, dict(parameters), arguments, keywords)
        return result if self.output is None else self.output(result)

    def batch_loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of one batch, a scalar."""
        value = self.loss_fn(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"Objective: loss_fn must return a scalar tensor, got {got}")
        return value.reshape(())

    def over_batches(self, term: Callable[[Any, Any], Tensor]) -> Tensor:
        """Return the combination of ``term(inputs, targets)`` over batches that the loss is of its batches' losses."""
        total: Tensor | None = None
        counted = 0.0
        with self.undisturbed():
            for inputs, targets in batches(self.data):
                count = self.weight_of(inputs, targets)
                if count > 0.0:
                    value = term(inputs, targets)
                    total = value.mul(count) if total is None else total.add_(value, alpha=count)
                counted += count
        return self.divided(total, counted)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leave the model and the random number generators as they were found."""
        devices = [self.device] if self.device.type == "cuda" else []
        saved = _detach_running_statistics(self.model)
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            for module, buffers in saved:
                module._buffers.update(buffers)

    def weight_of(self, inputs: Any, targets: Any) -> float:
        """Return the weight of a batch's loss in the whole: its count of targets, or 1 for a sum."""
        if self.reduction == "sum":
            return 1.0
        count = float(self._count(inputs, targets))
        if not count >= 0.0:
            raise ValueError(f"Objective: count must be a number >= 0, got {count}")
        return count

    def divided(self, total: Tensor | None, counted: float) -> Tensor:
        """Return a sum over batches divided by the sum of their weights (for a mean)."""
        if total is None:
            raise ValueError("Objective: data must count more than zero targets, got none")
        return total if self.reduction == "sum" else total.div_(counted)

    def _check_first_batch(self) -> None:
        with self.undisturbed(), torch.no_grad():
            first = next(batches(self.data), None)
            if first is None:
                raise ValueError("Objective: data must hold at least one batch, got none")
            inputs, targets = first
            check_device("inputs", inputs, self.device)
            check_device("targets", targets, self.device)
            if any(tensor.numel() == 0 for tensor in tensors_in(inputs)):
                raise ValueError("Objective: inputs must not be empty, got a batch of no elements")
            outputs = self.outputs(self.unflatten(self.parameters), inputs)
            value = self.batch_loss(outputs, targets)
        if not value.dtype.is_floating_point or not torch.isfinite(value):
            raise ValueError(f"Objective: the loss must be a finite floating-point number, got {value.item()}")


def _select(model: nn.Module, params: str | Sequence[str] | None) -> list[str]:
    named = dict(model.named_parameters())
    if params is None:
        chosen = [name for name, parameter in named.items() if parameter.requires_grad]
        if not chosen:
            raise ValueError("Objective: model must have parameters that require grad, got none")
        return chosen
    patterns = [params] if isinstance(params, str) else list(params)
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(f"Objective: params pattern {pattern!r} must match a parameter, got none of {len(named)}")
        frozen = [name for name in matched if not named[name].requires_grad]
        if frozen:
            raise ValueError(f"Objective: params must require grad, got {frozen[0]!r}, which does not")
    return [name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _common(names: list[str], parameters: Sequence[Tensor]) -> tuple[torch.dtype, torch.device]:
    first = parameters[0]
    for name, parameter in zip(names, parameters, strict=True):
        if parameter.dtype != first.dtype or parameter.device != first.device:
            raise ValueError(
                "Objective: params must share one dtype and device, got "
                f"{first.dtype} on {first.device} ({names[0]}) and {parameter.dtype} on {parameter.device} ({name})"
            )
    return first.dtype, first.device


def _refuse_active_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"Objective: model must be deterministic, got dropout in train mode at {name!r}; call model.eval()"
            )


def _detach_running_statistics(model: nn.Module) -> list[tuple[nn.Module, dict[str, Tensor | None]]]:
    """Take the running statistics off batch norms in train mode, which would update them; return them."""
    saved: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            saved.append((module, dict(module._buffers)))
            module._buffers.update(dict.fromkeys(module._buffers))
    return saved
