"""Spectral densities by the peers that reorthogonalize, each at its best: nodes and weights [probes, steps]."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from curvature_cases import Case
from curvature_peers import PLAIN, torch_func
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Quadrature = tuple[Tensor, Tensor]
Density = Callable[[Case, int, int], Quadrature]


def hessian_eigenthings(case: Case, probes: int, steps: int) -> Quadrature:
    from hessian_eigenthings.algorithms.spectral_density import spectral_density
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators import HessianOperator

    operator = HessianOperator(case.model, [(case.inputs, case.targets)], supervised_loss(case.loss_fn))
    found = spectral_density(operator, num_runs=probes, lanczos_steps=steps, num_grid_points=2, seed=0)
    return found.raw_eigenvalues, found.raw_weights


def pyhessian(case: Case, probes: int, steps: int) -> Quadrature:
    from pyhessian import hessian

    def eig(matrix: Tensor, eigenvectors: bool) -> Quadrature:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    torch.eig = eig  # gone from torch since 1.13; of a symmetric matrix this is what it returned
    try:
        kept = hessian(case.model, case.loss_fn, (case.inputs, case.targets), cuda=case.inputs.is_cuda)
        nodes, weights = kept.density(iter=steps, n_v=probes)
    finally:
        del torch.eig
    return torch.tensor(nodes), torch.tensor(weights)


def in_lockstep(make: Callable[[Case], Callable[[Tensor], Tensor]]) -> Density:
    """Plain torch at its best: all probes at once, Gram-Schmidt twice by batched matrix products, one batched eigh."""

    def density(case: Case, probes: int, steps: int) -> Quadrature:
        product = make(case)
        n = sum(parameter.numel() for parameter in case.model.parameters())
        device = case.inputs.device
        signs = torch.randint(0, 2, (probes, n), generator=torch.Generator().manual_seed(0)).float().mul_(2).sub_(1)
        v = (signs / n**0.5).to(device)
        basis, T = torch.zeros(probes, steps, n, device=device), torch.zeros(probes, steps, steps, device=device)
        for j in range(steps):
            basis[:, j] = v
            rows = basis[:, : j + 1]
            w = product(v)
            first = torch.bmm(rows, w[:, :, None])
            w = w - torch.bmm(first.mT, rows)[:, 0]
            second = torch.bmm(rows, w[:, :, None])
            w = w - torch.bmm(second.mT, rows)[:, 0]
            T[:, j, j] = (first + second)[:, -1, 0]
            norm = w.norm(dim=1)
            if j + 1 < steps:
                T[:, j, j + 1] = T[:, j + 1, j] = norm
            v = w / norm[:, None]
        nodes, vectors = torch.linalg.eigh(T.double())
        return nodes, vectors[:, 0] ** 2

    return density


PEERS: dict[str, Density] = {
    "hessian-eigenthings": hessian_eigenthings,
    "pyhessian": pyhessian,
    "plain torch in lockstep": in_lockstep(PLAIN.make),
    "torch.func in lockstep": in_lockstep(torch_func),
}


def density_of(peer: Density, case: Case, probes: int, steps: int) -> Quadrature:
    """Run a peer on a copy of the case's model, attention by its formula: fused kernels have no second derivative."""
    private = Case(case.size, copy.deepcopy(case.model), case.inputs, case.targets, case.k, case.matmul_precision)
    with sdpa_kernel(SDPBackend.MATH):
        return peer(private, probes, steps)
