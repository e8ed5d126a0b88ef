"""What a rule is: the four parts of one operation, and the table that finds them by the operation's ATen overload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch._ops import OpOverload

Activity = tuple[bool | tuple[bool, ...], ...]


class Rule:
    r"""One call of an operation at one point: ``y = f(x, w, ...)``, and its derivatives for K vectors at once.

    An object is made for each call in the captured program and lives as long as the linearization. Its methods are
    called in this order: `forward` once; for Hessian products `vjp` with one row and `hold`, once; then for every
    product `jvp` and, in reverse order of the program, `vjp_jvp` (Hessian) or `vjp` (GGN).

    All arguments follow the operation's schema, keyword-only ones and defaults filled in, so a rule names them as ATen
    does. Tangents and adjoints come in the same places: ``None`` for what is no tensor or does not depend on the
    parameters, a list for a list of tensors. K vectors are the first axis: the tangent of ``x`` [*s] is [K, *s], that
    of the result and all adjoints likewise. They may have any strides; nobody may write to them (but see `lent`).

    Attributes
    ----------
    active
        Whether each argument depends on the parameters (a tuple of such for a list of tensors).
    curved
        Whether `vjp_jvp` uses the tangents: False where f is linear in all active arguments together.
    lent
        The argument, if any, whose tangents `vjp_jvp` would write over to spare their memory. The engine sets
        `may_overwrite` for a call in which nothing else needs them.
    into
        Argument -> where its adjoint may be written, [K, *s] with strides of its own. A rule that writes there returns
        that tensor itself; one that does not look spares nothing but a copy.
    """

    curved: bool = True
    lent: int | None = None

    def __init__(self, active: Activity) -> None:
        self.active = active
        self.may_overwrite = False
        self.into: dict[int, Tensor] = {}

    def forward(self, *args: Any) -> Any:
        """Return y (or the tuple of results) and keep on `self` what the other parts need."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def jvp(self, *tangents: Any) -> Any:
        r"""Return :math:`\dot y = \partial f\, \dot x`, a row for each of K tangents."""
        raise TypeError(f"{type(self).__name__} does not define jvp")

    def vjp(self, adjoints: Any) -> tuple[Any, ...]:
        r"""Return :math:`\bar x = \partial f^T \bar y` for each argument (None where it is not active), K rows.

        `adjoints` is one tensor, or for an operation with several results a tuple of tensors and Nones.
        """
        raise TypeError(f"{type(self).__name__} does not define vjp")

    def hold(self, adjoint: Any) -> None:
        r"""Keep what `vjp_jvp` needs of the primal adjoint :math:`\bar y` [*y.shape] (a tuple for several results).

        A rule that is not curved needs nothing. The place to drop values that no product needs and to form those that
        every product does, such as :math:`f''(x)\, \bar y`.
        """
        if self.curved:
            self.adjoint = adjoint

    def vjp_jvp(self, adjoints: Any, *tangents: Any) -> tuple[Any, ...]:
        r"""Return the tangent of `vjp`, :math:`\partial f^T \dot{\bar y} + (\partial^2 f\, \dot x)^T \bar y`.

        `adjoints` are the tangents :math:`\dot{\bar y}` of the adjoint, K rows; `tangents` those that `jvp` was given.
        """
        if self.curved:
            raise TypeError(f"{type(self).__name__} does not define vjp_jvp")
        return self.vjp(adjoints)


_table: dict[OpOverload, Callable[[Activity], Rule]] = {}
_Class = TypeVar("_Class", bound=type[Rule])


def rule_for(*operations: OpOverload) -> Callable[[_Class], _Class]:
    """Decorate the rule of operations, given as ATen overloads such as ``aten.linear.default``."""

    def register(rule: _Class) -> _Class:
        for operation in operations:
            register_rule(operation, rule)
        return rule

    return register


def register_rule(operation: OpOverload, make: Callable[[Activity], Rule]) -> None:
    """Enter what makes the rule of an operation: its class, or a function of the activity of its arguments."""
    if operation in _table:
        raise ValueError(f"register_rule: {operation} has a rule already")
    _table[operation] = make


def find_rule(operation: OpOverload) -> Callable[[Activity], Rule] | None:
    """Return what makes the rule of an operation, None where it has none of its own."""
    return _table.get(operation)
