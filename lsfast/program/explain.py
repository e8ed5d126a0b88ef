"""Which operation of a captured model runs on which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lsfast.program.graph import Program


@dataclass(frozen=True)
class Explanation:
    """How the program engine differentiates a model and its loss.

    Attributes
    ----------
    rows
        (operation, rule, count) of every operation, by count: "native" rules are lsfast's own, a "generic" one is
        derived by ``torch.func`` from the operation at each call (right, slower), a "constant" does not depend on the
        parameters (or is detached from them, or piecewise constant) and runs once for each linearization.
    where
        Generic operation -> a line of the model that calls it, as far as it is known.
    """

    rows: tuple[tuple[str, str, int], ...]
    where: dict[str, str]

    @property
    def generic(self) -> tuple[str, ...]:
        """The operations without a rule of their own."""
        return tuple(operation for operation, rule, _ in self.rows if rule == "generic")

    def __str__(self) -> str:
        width = max((len(operation) for operation, _, _ in self.rows), default=0)
        lines = [
            f"{operation:<{width}}  {rule:<8}  {count:>4}{self.where.get(operation, '') if rule == 'generic' else ''}"
            for operation, rule, count in self.rows
        ]
        return "\n".join(lines)


def explain(programs: Iterable[Program]) -> Explanation:
    """Return the explanation of programs together."""
    counts: Counter[tuple[str, str]] = Counter()
    where: dict[str, str] = {}
    for program in programs:
        for step in program.steps:
            counts[str(step.operation), step.rule] += 1
            if step.rule == "generic":
                where.setdefault(str(step.operation), step.where)
    rows = sorted(((operation, rule, count) for (operation, rule), count in counts.items()), key=lambda row: -row[2])
    return Explanation(tuple(rows), where)
