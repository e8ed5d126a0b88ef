"""Products as CUDA graphs: a product of one shape that is asked for again and again is captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
_CALLS_BEFORE = 2  # calls that run as they are: the first makes the linearization, and a single further one is no habit


class Replays:
    """The captured products of a linearization, by kind and number of vectors.

    A capture costs a run and the memory of the product for as long as it lives; a replay costs no launches. A product
    that cannot be captured (a rule that waits for the device) is run as it is from then on.

    Parameters
    ----------
    capture
        ``capture(product, rows)`` returns a replay of ``product(rows)`` over other rows of the same shape.
    """

    def __init__(self, capture: Callable[[Product, Tensor], Product] | None = None) -> None:
        self._capture = capture or capture_graph
        self._calls: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Product] = {}

    def run(self, kind: str, product: Product, rows: Tensor) -> Tensor:
        """Return ``product(rows)``, by replay where there is one."""
        key = (kind, tuple(rows.shape))
        if key not in self._replays:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= _CALLS_BEFORE:
                return product(rows)
            try:
                self._replays[key] = self._capture(product, rows)
            except RuntimeError:
                self._replays[key] = product
        return self._replays[key](rows)


def capture_graph(product: Product, rows: Tensor) -> Product:
    """Capture a product in a CUDA graph; the replay copies its rows in and its result out."""
    given = rows.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = product(given)

    def replay(rows: Tensor) -> Tensor:
        given.copy_(rows)
        graph.replay()
        return result.clone()

    return replay
