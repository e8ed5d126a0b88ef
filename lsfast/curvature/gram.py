"""The Gram matrix of the outputs' gradients (empirical neural tangent kernel), as a symmetric operator."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lsfast import checks
from lsfast.data import batches
from lsfast.objective import Objective
from lsfast.operator import LinearOperator

_ROWS_AT_ONCE = 64  # as many as a linearization takes in one pass


class GramOperator(LinearOperator):
    r"""The Gram matrix :math:`K = J J^T` of the gradients of all outputs, the empirical neural tangent kernel.

    J is [N, n]: the derivative of every number the model gives for the data, N in all, by every (chosen) parameter. K
    is plain: no mean over the data, no Hessian of the loss, no class weights, no weight decay, and targets that the
    loss ignores have their rows too. So it depends on model, inputs and parameters alone.

    :math:`J J^T` [N, N] and :math:`J^T J` [n, n] have the same eigenvalues other than 0. Where N < n, everything read
    from the spectrum is cheaper here: vectors and Lanczos bases have length N, and all of the n - N further eigenvalues
    of :math:`J^T J` are 0. The GGN of a loss with the Hessian c I in the outputs is :math:`c J^T J`: c = 2 / N for
    `torch.nn.MSELoss`, 2 for its sum.

    Parameters
    ----------
    objective
        Whose outputs are differentiated; its parameters at this moment are kept. With ``params=`` patterns K is that of
        the chosen ones; the K of disjoint sets add up to the whole. The loss must be given one tensor (see `output` of
        `Objective`).

    Attributes
    ----------
    objective
        As given.
    output_shapes
        The shape of the outputs of each batch, in order. A vector holds the outputs of the first batch, flattened, then
        those of the second, and so on: `unflatten` gives the parts. Batches may differ in any axis.

    Raises
    ------
    TypeError
        If `objective` is no objective, or what the loss is given is not one tensor.
    ValueError
        If the outputs are not in the parameters' dtype; by a product, what `objective.linearize()` says.

    Notes
    -----
    A product is a vjp and a jvp over the data, 4 forward-equivalents a vector where linearizations are kept. Rows are
    taken in parts whose J^T u [k, n] fit a quarter of the objective's `memory_limit`.

    Examples
    --------
    >>> K = lsfast.GramOperator(objective)
    >>> lsfast.eigsh(K, k=6).values                 # of J J^T, and of J^T J
    >>> K.unflatten(lsfast.eigsh(K, k=1).vectors[0])[0]    # the first eigenfunction on the outputs of the first batch

    References
    ----------
    Jacot, Gabriel & Hongler, "Neural tangent kernel", NeurIPS 2018. Dangel, Tatzel & Hennig, "ViViT: curvature access
    through the generalized Gauss-Newton's low-rank structure", TMLR 2022.
    """

    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(f"GramOperator: objective must be an lsfast.Objective, got {type(objective).__name__}")
        self.output_shapes = _output_shapes(objective)
        super().__init__(sum(map(prod, self.output_shapes)), objective.dtype, objective.device)
        self.objective = objective
        self._linearization = objective.linearize()

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector [N] by batch, as views in the shapes of the outputs.

        Raises
        ------
        ValueError
            If the vector has another length.
        """
        checks.floating("unflatten", "vector", vector)
        if vector.shape != self.shape[:1]:
            raise ValueError(f"unflatten: vector must have shape [{self.shape[0]}], got {list(vector.shape)}")
        parts = vector.split([prod(shape) for shape in self.output_shapes])
        return [part.view(shape) for part, shape in zip(parts, self.output_shapes, strict=True)]

    def _apply(self, rows: Tensor) -> Tensor:
        bytes_per_row = (2 * self.objective.n + self.shape[0]) * self.dtype.itemsize
        chunk = max(1, min(_ROWS_AT_ONCE, self.objective.memory_limit // 4 // bytes_per_row))
        products = [self._linearization.jvp(self._linearization.vjp(part, True), True) for part in rows.split(chunk)]
        return products[0] if len(products) == 1 else torch.cat(products)


def _output_shapes(objective: Objective) -> tuple[torch.Size, ...]:
    shapes = []
    parameters = objective.unflatten(objective.parameters)
    with objective.undisturbed(), torch.no_grad():
        for inputs, _ in batches(objective.data):
            outputs = objective.outputs(parameters, inputs)
            if not isinstance(outputs, Tensor):
                raise TypeError(
                    f"GramOperator: the loss must be given one tensor, got {type(outputs).__name__}; pass output= to "
                    "Objective"
                )
            if outputs.dtype != objective.dtype:
                raise ValueError(
                    f"GramOperator: the outputs must have the parameters' dtype {objective.dtype}, got {outputs.dtype}"
                )
            shapes.append(outputs.shape)
    return tuple(shapes)
