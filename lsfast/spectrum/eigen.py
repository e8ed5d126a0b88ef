"""Extreme eigenpairs by thick-restart block Lanczos."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lsfast import checks
from lsfast._native import ops
from lsfast.checkpoint import Checkpoint
from lsfast.operator import LinearOperator, aslinearoperator
from lsfast.program.memory import free_memory
from lsfast.spectrum.krylov import BlockKrylovSpace
from lsfast.spectrum.probes import check_starts, check_symmetric, dots, draw, normalize, real_operator
from lsfast.spectrum.search import Search, by_preference

WHICH = ("LM", "LA", "SA", "BE")


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of a symmetric operator, in the order `eigsh` says.

    Attributes
    ----------
    values
        [k] float64: Rayleigh quotients of the vectors, from products with the operator.
    vectors
        [k, n] orthonormal rows in the dtype of the operator.
    residuals
        [k] float64: |A v - value v|, from the same products. There is an eigenvalue of A within this of the value.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def eigsh(
    A: Any,
    k: int = 6,
    which: str = "LM",
    tolerance: float | None = None,
    max_steps: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    block: int | None = None,
    memory_limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Eigenpairs:
    """Compute extreme eigenpairs ``A v = lambda v`` of a symmetric operator by thick-restart block Lanczos.

    A block Krylov space is grown with full orthogonalization, its best Ritz pairs are kept, and it is grown again (Wu &
    Simon, SIAM J. Matrix Anal. Appl. 22, 2000). Pairs that have converged are locked: kept as they are, and apart from
    the others, until products of all k at the end free them of what coupled them.

    Parameters
    ----------
    A
        A symmetric operator, or what `aslinearoperator` takes, in float32 or float64.
    k
        Number of pairs, 1..n.
    which
        "LM": largest magnitude, in descending order of it. "LA": largest, descending. "SA": smallest, ascending.
        "BE": half from each end (one more from the high end if k is odd), ascending.
    tolerance
        A pair has converged when its estimated residual is below `tolerance` times the largest Ritz magnitude. None:
        the 2/3 power of the machine epsilon, 4e-11 in float64 and 2e-5 in float32.
    max_steps
        Largest number of products with `A`, at least k; two more check its symmetry and k more make the residuals.
        None: 50 times the dimension of the Krylov space, which is 24 or 2k + 8 block, whichever is more, and at most n.
    seed
        Of the random vectors.
    start
        Vectors [p, n] near the wanted eigenvectors, of any length but 0, such as those of the checkpoint before along
        a training run. Each vector of the block begins as a sum of them, so that one block knows of all. What depends
        on the others is replaced by random vectors.
    block
        Number of vectors multiplied at a time, at most p if `start` is given. None: 1.
    memory_limit
        Most bytes the basis may take, (dimension + block) n numbers; the dimension shrinks to fit, down to
        k + 2 block. The k vectors returned and their products come on top. None: half of what is free.
    checkpoint
        A file that is written after every restart and at the end. If it exists, the run goes on from it and gives the
        bits of one that was not interrupted; if that run had converged, its result is returned. A run that ended at
        `max_steps` goes on from its last restart.
    progress
        Whether to show a bar of the pairs that have converged.

    Returns
    -------
    Eigenpairs
        values [k] and residuals [k] in float64, vectors [k, n]. If `max_steps` was too few, a RuntimeWarning says so,
        and the residuals say how far each pair is from one.

    Raises
    ------
    ValueError
        If an argument is not what it should be, `A` is found not to be symmetric, a product holds NaN or Inf, the
        basis cannot fit into `memory_limit`, or `checkpoint` is of another run.

    Notes
    -----
    A block Krylov space sees as many copies of an eigenvalue as it has start vectors. So a vector of the block that
    lies in the span of the others is replaced by a random one, and when all k are locked the space is grown once more,
    from a random block. It ends when a better eigenvalue would have shown there with probability 0.9999 (Kuczynski &
    Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992, with the spread of the Ritz values for that of the spectrum), or,
    where the next eigenvalues are too near for such a bound, after as many vectors as the usual dimension has beyond k.

    A larger block takes more products in fewer batches. Six eigenvalues of a matrix of size 120 with three outliers
    took 100, 133 and 185 products with blocks of 1, 2 and 4, in 100, 70 and 48 batches; ten outliers of a bulk of 10^4
    38, 50 and 86, in 38, 25 and 22; three clusters of 40 162, 221 and 307, in 162, 118 and 80. It pays where a product
    of 4 vectors costs less than about twice that of one.

    The device is waited for once a block step.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([5.0, -7.0, 1.0, 2.0], dtype=torch.float64))
    >>> lsfast.eigsh(A, k=2).values
    tensor([-7.,  5.], dtype=torch.float64)
    """
    operator = real_operator("eigsh", aslinearoperator(A))
    n = operator.shape[0]
    checks.positive_integer("eigsh", "k", k)
    if k > n:
        raise ValueError(f"eigsh: k must be at most n = {n}, got {k}")
    checks.one_of("eigsh", "which", which, WHICH)
    if tolerance is None:
        tolerance = torch.finfo(operator.dtype).eps ** (2 / 3)
    if not 0.0 < checks.finite_number("eigsh", "tolerance", tolerance) < 1.0:
        raise ValueError(f"eigsh: tolerance must lie between 0 and 1, got {tolerance}")
    checks.seed("eigsh", seed)
    block = 1 if block is None else checks.positive_integer("eigsh", "block", block)
    if start is not None:
        check_starts("eigsh", operator, start, "p")
        block = min(block, start.shape[0])
    block = min(block, n)
    dimension = _dimension(operator, k, block, memory_limit)
    limit = 50 * dimension if max_steps is None else checks.positive_integer("eigsh", "max_steps", max_steps, least=k)
    fingerprint = check_symmetric("eigsh", operator)

    file = None
    if checkpoint is not None:
        file = Checkpoint("eigsh", checkpoint, {
            "n": n, "dtype": str(operator.dtype), "k": k, "which": which, "tolerance": float(tolerance), "seed": seed,
            "block": block, "dimension": dimension, "operator": fingerprint,
            "start": "none" if start is None else _mark(operator, start),
        })  # fmt: skip
    state = file.load() if file is not None else None
    if state is not None and "values" in state:
        return Eigenpairs(*(state[name].to(operator.device) for name in ("values", "vectors", "residuals")))
    space = BlockKrylovSpace(operator, dimension, block, seed)
    search = Search(space, k, which, float(tolerance), limit, _usual_dimension(n, k, block))
    if state is not None:
        search.resume(state)
    else:
        space.begin(None if start is None else _folded(start, block))
    with tqdm(total=k, desc="eigsh", unit="pair", disable=not progress, leave=None) as bar:
        coefficients, missing, confirmed = search.run(file, bar)
    if missing or not confirmed:
        what = (
            f"{missing} of {k} pairs did not converge to {tolerance:.1e} in {space.products} products"
            if missing
            else f"{k} pairs converged, but {space.products} products were too few to exclude better ones"
        )
        warnings.warn(f"eigsh: {what}; their residuals are returned", RuntimeWarning, stacklevel=2)
    pairs = _measured_pairs(operator, space.vectors(coefficients), which)
    if file is not None and not missing and confirmed:
        file.save(vars(pairs))
    return pairs


def _usual_dimension(n: int, k: int, block: int) -> int:
    return min(n, max(24, 2 * k + 8 * block))


def _dimension(A: LinearOperator, k: int, block: int, memory_limit: int | None) -> int:
    """Return the dimension of the Krylov space: what is usual, or what fits."""
    n, element = A.shape[0], torch.finfo(A.dtype).bits // 8
    limit = memory_limit
    if limit is None:
        limit = free_memory(A.device) // 2
    else:
        checks.positive_integer("eigsh", "memory_limit", limit)
    least = min(n, k + 2 * block)
    fits = limit // (n * element) - block
    if fits < least:
        raise ValueError(
            f"eigsh: memory_limit must be at least {(least + block) * n * element} bytes for {k} pairs of length {n} "
            f"with blocks of {block}, got {limit}{'' if memory_limit is not None else ', half of what is free'}"
        )
    return min(_usual_dimension(n, k, block), fits)


def _mark(A: LinearOperator, start: Tensor) -> float:
    """Return a number that tells start vectors apart."""
    mark = ops.block_project(draw(A, 0, 1, seed=0x57, distribution="gaussian"), start.detach().contiguous())
    return float(mark.abs().sum())


def _folded(start: Tensor, block: int) -> Tensor:
    """Return `block` sums of the unit vectors along the rows of ``start``."""
    units = normalize(start.detach().contiguous())
    return torch.stack([units[i::block].sum(0) for i in range(block)])


def _measured_pairs(A: LinearOperator, vectors: Tensor, which: str) -> Eigenpairs:
    """Rayleigh quotients and residuals of orthonormal ``vectors`` [k, n] from products with A, in the order of `which`.

    The products decouple the vectors among themselves before: a locked pair had been kept apart from later ones.
    """
    vectors = normalize(vectors)
    products = A.apply(vectors).clone()
    H = ops.block_project(vectors, products).cpu()
    if not bool(H.isfinite().all()):
        raise ValueError("eigsh: A must give finite products, got NaN or Inf in the products with the eigenvectors")
    rotation = torch.linalg.eigh((H + H.T) / 2)[1].T.contiguous().to(vectors.device)
    ops.block_combine(vectors, rotation, vectors)
    ops.block_combine(products, rotation, products)
    values = dots(vectors, products) / dots(vectors, vectors)
    residuals = torch.empty_like(values)
    for i in range(values.numel()):
        difference = (products[i].double() - values[i] * vectors[i].double())[None]
        residuals[i] = dots(difference, difference)[0].sqrt()
    order = values.argsort(stable=True) if which == "BE" else by_preference(values, which)
    return Eigenpairs(values[order], vectors[order], residuals[order])
