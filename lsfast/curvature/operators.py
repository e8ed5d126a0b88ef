"""The Hessian and the generalized Gauss-Newton matrix (GGN) of an objective, as symmetric operators."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from lsfast import checks
from lsfast.objective import Objective
from lsfast.operator import LinearOperator


@dataclass(frozen=True)
class CurvatureCheck:
    r"""Defects of an operator, each relative and zero in exact arithmetic.

    Attributes
    ----------
    symmetry
        :math:`|u^T A v - v^T A u| / (|u| |A v|)`.
    finite_difference
        :math:`|A v - (g(\theta + h v) - g(\theta - h v)) / 2h| / |A v|`, g the gradient and v of length 1; for a GGN,
        or Fisher, which is no derivative of the gradient, NaN. Not small where the model detaches a value or makes it
        under ``torch.no_grad``: such a value is a constant of both derivatives, but moves with the parameters.
    determinism
        The largest difference of two products with the same vector, over the largest entry.
    matmul_precision
        :math:`|A v - A' v| / |A v|`, A with the objective's `matmul_precision` and A' with "ieee".
    """

    symmetry: float
    finite_difference: float
    determinism: float
    matmul_precision: float


class _ObjectiveOperator(LinearOperator):
    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(
                f"{type(self).__name__}: objective must be an lsfast.Objective, got {type(objective).__name__}"
            )
        super().__init__(objective.n, objective.dtype, objective.device)
        self.objective = objective
        self.parts = objective.slices
        self._linearization = objective.linearize()

    def block(self, pattern: str) -> LinearOperator:
        """Return the diagonal block of the parameters whose names match a pattern such as ``"layers.0.*"``.

        Raises
        ------
        ValueError
            If the pattern matches no parameter.
        """
        names = [name for name in self.parts if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"block: pattern must match a parameter, got {pattern!r}")
        return _Block(self, names)

    def check(self, seed: int = 0) -> CurvatureCheck:
        """Measure how far the operator is from symmetric, from the gradient's derivative, and from deterministic.

        A defect of a few times the machine epsilon (times the root of n) is rounding; in float32 the finite difference
        is itself good to about 1e-2 only.
        """
        generator = torch.Generator().manual_seed(checks.seed("check", seed))
        u, v = torch.randn(2, self.shape[0], generator=generator, dtype=torch.float64)
        u, v = (x.div_(x.norm()).to(self.device, self.dtype) for x in (u, v))
        product = self @ v
        again = self @ v
        across = torch.dot(v.double(), (self @ u).double())
        scale = product.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
        return CurvatureCheck(
            symmetry=float((torch.dot(u.double(), product.double()) - across).abs() / scale),
            finite_difference=self._finite_difference_defect(v, product.double(), scale),
            determinism=float((again - product).abs().max() / product.abs().max().clamp_min(1e-300)),
            matmul_precision=self._rounding_of_factors(v, product, scale),
        )

    def _rounding_of_factors(self, v: Tensor, product: Tensor, scale: Tensor) -> float:
        if self.objective.matmul_precision == "ieee":
            return 0.0
        exact = copy.copy(self)
        moved = self.objective.at(self._linearization.parameters)
        exact._linearization = moved.with_matmul_precision("ieee").linearize()
        return float((product.double() - (exact @ v).double()).norm() / scale)

    def _finite_difference_defect(self, v: Tensor, product: Tensor, scale: Tensor) -> float:
        theta = self._linearization.parameters
        step = torch.finfo(self.dtype).eps ** (1 / 3) * max(1.0, float(theta.norm()))
        ahead = self.objective.at(theta + step * v).gradient().double()
        behind = self.objective.at(theta - step * v).gradient().double()
        return float(((ahead - behind) / (2 * step) - product).norm() / scale)


class HessianOperator(_ObjectiveOperator):
    r"""The Hessian of an objective at its parameters, :math:`H v = \partial_t \nabla L(\theta + t v)`.

    Over a data set it is the Hessian of the mean (or sum) over all targets, whatever the split into batches.

    Parameters
    ----------
    objective
        What is differentiated; its (chosen) parameters at this moment are kept.

    Raises
    ------
    TypeError
        If `objective` is no objective.

    Notes
    -----
    Products raise what `objective.linearize()` says: CaptureError if the model cannot be captured (the autograd engine
    may take it), ValueError for a gradient that is not finite or data that changes between passes.

    Examples
    --------
    >>> H = lsfast.HessianOperator(objective)
    >>> H @ torch.randn(H.shape[0])          # one product [n]
    >>> H.apply(torch.randn(8, H.shape[0]))  # eight at once [8, n]

    References
    ----------
    Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6(1), 1994.
    """

    def _apply(self, rows: Tensor) -> Tensor:
        return self._linearization.hvp(rows)


class GGNOperator(_ObjectiveOperator):
    r"""The generalized Gauss-Newton matrix :math:`J^T (\partial^2 \ell / \partial z^2) J`.

    J is the Jacobian of the outputs z. Positive semidefinite where the loss is convex in the outputs; a weight decay
    adds its multiple of the identity.

    Parameters
    ----------
    objective
        What is differentiated; the loss must be given one tensor (see `output` of `Objective`).

    Examples
    --------
    >>> G = lsfast.GGNOperator(objective)
    >>> G.apply(torch.randn(8, G.shape[0]))

    References
    ----------
    Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural Computation 14(7),
    2002.
    """

    def _apply(self, rows: Tensor) -> Tensor:
        return self._linearization.ggnvp(rows)

    def _finite_difference_defect(self, v: Tensor, product: Tensor, scale: Tensor) -> float:
        return float("nan")


class _Block(LinearOperator):
    def __init__(self, whole: LinearOperator, names: list[str]) -> None:
        positions = torch.arange(whole.shape[0], device=whole.device)
        index = torch.cat([positions[whole.parts[name]] for name in names])
        super().__init__(len(index), whole.dtype, whole.device)
        self._whole, self._index = whole, index
        first = 0
        for name in names:
            size = len(positions[whole.parts[name]])
            self.parts[name] = slice(first, first + size)
            first += size

    def _apply(self, rows: Tensor) -> Tensor:
        padded = rows.new_zeros(len(rows), self._whole.shape[0])
        padded[:, self._index] = rows
        return self._whole.apply(padded)[:, self._index]
