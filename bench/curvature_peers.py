"""Curvature products by the peers, each at its best: packages from PyPI, ``torch.func``, and plain torch code.

A peer is made for a case, on a copy of its model, and does outside the product what it need do only once. All need
attention by its formula: the fused kernels have no second derivative.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from curvature_cases import Case
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """What makes a peer's product of rows [k, n]; `batched` if it does more than loop over them."""

    name: str
    make: Callable[[Case], Product]
    batched: bool

    def product(self, case: Case) -> Product:
        """Make the product of one case."""
        private = Case(case.size, copy.deepcopy(case.model), case.inputs, case.targets, case.k, case.matmul_precision)
        with sdpa_kernel(SDPBackend.MATH):
            made = self.make(private)

        def product(rows: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return made(rows)

        return product


def one_by_one(product: Callable[[Tensor], Tensor]) -> Product:
    return lambda rows: torch.stack([product(row) for row in rows])


def double_backward(case: Case) -> Product:
    """Plain torch: the graph of one gradient is kept, each vector costs one more backward pass."""
    parameters = list(case.model.parameters())
    loss = case.loss_fn(case.model(case.inputs), case.targets)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(row: Tensor) -> Tensor:
        parts = _like(row, parameters)
        return _flat(torch.autograd.grad(gradient, parameters, parts, retain_graph=True))

    return one_by_one(product)


def plain_ggn(case: Case) -> Product:
    """J^T H J v by forward mode, the loss's own Hessian, and a backward pass."""
    named = dict(case.model.named_parameters())

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(case.model, parameters, (case.inputs,))

    def product(row: Tensor) -> Tensor:
        tangent = dict(zip(named, _like(row, list(named.values())), strict=True))
        z, turned = jvp(outputs, (named,), (tangent,))
        curved = vjp(grad(lambda z: case.loss_fn(z, case.targets)), z)[1](turned)[0]
        return _flat(vjp(outputs, named)[1](curved)[0].values()).detach()

    return one_by_one(product)


def torch_func(case: Case) -> Product:
    """Forward over reverse for all vectors at once."""
    named = {name: parameter.detach() for name, parameter in case.model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return case.loss_fn(functional_call(case.model, parameters, (case.inputs,)), case.targets)

    def one(row: Tensor) -> Tensor:
        tangent = dict(zip(named, _like(row, list(named.values())), strict=True))
        return _flat(jvp(grad(loss), (named,), (tangent,))[1].values())

    return vmap(one)


def compiled(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile for this case alone: what Dynamo has seen of others can make it run the next one uncompiled."""
    torch.compiler.reset()
    return torch.compile(product)


def hessian_eigenthings(case: Case) -> Product:
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators import HessianOperator

    batches = [(case.inputs, case.targets)]
    return one_by_one(HessianOperator(case.model, batches, supervised_loss(case.loss_fn)).matvec)


def curvlinops(case: Case, compile_it: bool = False) -> Product:
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        case.model,
        case.loss_fn,
        list(case.model.parameters()),
        [(case.inputs, case.targets)],
        check_deterministic=False,
        num_data=len(case.inputs),
    )
    if compile_it:  # as its documentation does
        operator._mp = compiled(operator._mp)
    return lambda rows: (operator @ rows.T).T


def pyhessian(case: Case) -> Product:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    kept = hessian(case.model, case.loss_fn, (case.inputs, case.targets), cuda=case.inputs.is_cuda)
    return one_by_one(lambda row: _flat(hessian_vector_product(kept.gradsH, kept.params, _like(row, kept.params))))


PLAIN = Peer("plain torch, gradient graph kept", double_backward, batched=False)
PEERS = (
    PLAIN,
    Peer("torch.func vmap(jvp(grad))", torch_func, batched=True),
    Peer("hessian-eigenthings", hessian_eigenthings, batched=False),
    Peer("curvlinops", curvlinops, batched=True),
    Peer("pyhessian", pyhessian, batched=False),
)
COMPILED_FUNC = Peer("torch.func, torch.compile", lambda case: compiled(torch_func(case)), batched=True)
COMPILED_CURVLINOPS = Peer("curvlinops, torch.compile", lambda case: curvlinops(case, compile_it=True), batched=True)


def peers_of(name: str, device: str) -> tuple[Peer, ...]:
    """Return the peers that a case is measured with.

    On a CPU only the perceptrons are compiled: a CNN or GPT takes the compiler minutes, more than all the rest.
    """
    if device == "cuda":
        return (*PEERS, COMPILED_FUNC, COMPILED_CURVLINOPS)
    return (*PEERS, COMPILED_FUNC) if "mlp" in name else PEERS


def _like(row: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    parts = row.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def _flat(parts: object) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
