"""The rule of every operation without one of its own: derived by ``torch.func`` from that one operation, at each call.

Right, and slower: the operation and its derivative are recomputed for every product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lsfast.program.rules.rule import Activity, Rule


def generic_rule(operation: OpOverload) -> Callable[[Activity], Rule]:
    """Return what makes a generic rule of `operation`."""
    return lambda active: Generic(operation, active)


class Generic(Rule):
    """Derivatives by ``torch.func``; ``vmap`` outermost, the order in which they are right."""

    def __init__(self, operation: OpOverload, active: Activity) -> None:
        super().__init__(active)
        self.operation = operation

    def forward(self, *args: Any) -> Any:
        self.args = args
        self.point = tuple(_chosen(args, self.active))
        return call_operation(self.operation, args)

    def _function(self, *chosen: Tensor) -> Any:
        """Return the floating-point results as a tuple: the operation as a function of its active arguments alone."""
        with sdpa_kernel(SDPBackend.MATH):
            result = call_operation(self.operation, _replaced(self.args, self.active, iter(chosen)))
        results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        return tuple(part for part in results if part.is_floating_point())

    def _results(self, derivatives: tuple[Tensor, ...]) -> Any:
        """Put the derivatives of the floating-point results in the places of all results."""
        shape = call_operation(self.operation, self.args)
        if isinstance(shape, Tensor):
            return derivatives[0]
        found = iter(derivatives)
        return tuple(next(found) if part.is_floating_point() else None for part in shape)

    def _cotangents(self, adjoints: Any, rows: int | None) -> tuple[Tensor, ...]:
        """Return one adjoint for each floating-point result, zeros where nothing depends on it."""
        given = adjoints if isinstance(adjoints, (tuple, list)) else (adjoints,)
        values = call_operation(self.operation, self.args)
        results = tuple(values) if isinstance(values, (tuple, list)) else (values,)
        lead = () if rows is None else (rows,)
        return tuple(
            part.new_zeros(*lead, *part.shape) if adjoint is None else adjoint
            for part, adjoint in zip(results, given, strict=True)
            if part.is_floating_point()
        )

    def jvp(self, *tangents: Any) -> Any:
        rows = tuple(_chosen(tangents, self.active))
        result = vmap(lambda *row: jvp(self._function, self.point, row)[1])(*rows)
        return self._results(result)

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        pull = vjp(self._function, *self.point)[1]
        found = vmap(pull)(self._cotangents(adjoints, _rows(adjoints)))
        return _replaced(tuple(None for _ in self.args), self.active, iter(found))

    def vjp_jvp(self, adjoints: Any, *tangents: Any) -> tuple[Any, ...]:
        rows = tuple(_chosen(tangents, self.active))
        cotangents = self._cotangents(adjoints, _rows(adjoints))
        adjoint = self._cotangents(self.adjoint, None)

        def pulled(point: tuple[Tensor, ...], at: tuple[Tensor, ...]) -> Any:
            return vjp(self._function, *point)[1](at)

        try:
            found = vmap(lambda x, a: jvp(pulled, (self.point, adjoint), (x, a))[1])(rows, cotangents)
        except (
            RuntimeError
        ):  # an operation whose gradient has no forward derivative; its second derivative is symmetric
            again = vjp(lambda point: pulled(point, adjoint), self.point)[1]
            first = vmap(vjp(self._function, *self.point)[1])(cotangents)
            found = tuple(a + b for a, b in zip(first, vmap(lambda x: again(x)[0])(rows), strict=True))
        return _replaced(tuple(None for _ in self.args), self.active, iter(found))


def call_operation(operation: OpOverload, args: tuple[Any, ...]) -> Any:
    """Call an operation with all arguments of its schema in order, keyword-only ones as keywords."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument, value in zip(operation._schema.arguments, args, strict=True):
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            positional.append(value)
    return operation(*positional, **keywords)


def all_arguments(operation: OpOverload, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call in the order of the schema, defaults filled in."""
    found = []
    for index, argument in enumerate(operation._schema.arguments):
        if index < len(args):
            found.append(args[index])
        else:
            found.append(keywords.get(argument.name, argument.default_value))
    return tuple(found)


def _chosen(values: tuple[Any, ...], active: Activity) -> Iterator[Tensor]:
    for value, flag in zip(values, active, strict=False):
        if isinstance(flag, tuple):
            yield from (item for item, one in zip(value, flag, strict=True) if one)
        elif flag:
            yield value


def _replaced(values: tuple[Any, ...], active: Activity, new: Iterator[Any]) -> tuple[Any, ...]:
    """Put `new` in the active places of `values`."""
    result: list[Any] = []
    for value, flag in zip(values, active, strict=True):
        if isinstance(flag, tuple):
            items = value if value is not None else [None] * len(flag)
            result.append([next(new) if one else item for item, one in zip(items, flag, strict=True)])
        else:
            result.append(next(new) if flag else value)
    return tuple(result)


def _rows(adjoints: Any) -> int:
    given = adjoints if isinstance(adjoints, (tuple, list)) else (adjoints,)
    return next(len(adjoint) for adjoint in given if adjoint is not None)
