"""Curvature products of a problem by torch alone: the oracles of every engine.

By plain double backward passes, with no ``torch.func`` transform; and by finite differences of first derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from problems import Problem
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector


def hessian_products(problem: Problem, vectors: Tensor) -> Tensor:
    """Double backward: the gradient of g.v for each row v of [k, n]."""
    theta = _parameters(problem)
    with sdpa_kernel(SDPBackend.MATH):
        loss = problem.loss_fn(_outputs(problem, theta), problem.targets)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        return torch.stack([torch.autograd.grad(gradient @ v, theta, retain_graph=True)[0] for v in vectors])


def ggn_products(problem: Problem, vectors: Tensor) -> Tensor:
    """J^T H J v by backward passes only; J v is the derivative of u -> (J^T u).v, which is linear in u."""
    theta = _parameters(problem)
    with sdpa_kernel(SDPBackend.MATH):
        outputs = _outputs(problem, theta)
        dummy = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, theta, dummy, create_graph=True)
        at = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss_fn(at, problem.targets), at, create_graph=True)
        products = []
        for v in vectors:
            (tangent,) = torch.autograd.grad(pulled @ v, dummy, retain_graph=True)
            (curved,) = torch.autograd.grad(slope, at, tangent, retain_graph=True)
            products.append(torch.autograd.grad(outputs, theta, curved, retain_graph=True)[0])
        return torch.stack(products)


def differenced_hessian_products(problem: Problem, vectors: Tensor, step: float) -> Tensor:
    """Differences of gradients from one backward pass each."""

    def gradient(theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(problem.loss_fn(_outputs(problem, theta), problem.targets), theta)[0]

    theta = _parameters(problem).detach()
    return torch.stack([_slope(lambda t, v=v: gradient(theta + t * v), step) for v in vectors])


def differenced_ggn_products(problem: Problem, vectors: Tensor, step: float) -> Tensor:
    """J v by differences of outputs, H J v by differences of the loss's gradient along it, J^T by a backward pass."""

    def gradient(outputs: Tensor) -> Tensor:
        outputs = outputs.detach().requires_grad_()
        return torch.autograd.grad(problem.loss_fn(outputs, problem.targets), outputs)[0]

    theta = _parameters(problem)
    value = _outputs(problem, theta)
    products = []
    for v in vectors:
        with torch.no_grad():
            tangent = _slope(lambda t, v=v: _outputs(problem, theta + t * v), step)
        curved = _slope(lambda t, u=tangent: gradient(value.detach() + t * u), step / float(tangent.norm()))
        products.append(torch.autograd.grad(value, theta, curved, retain_graph=True)[0])
    return torch.stack(products)


def _slope(function: Callable[[float], Tensor], step: float) -> Tensor:
    """Fourth-order central difference at 0."""
    near, far = (function(m * step) - function(-m * step) for m in (1, 2))
    return (8 * near - far) / (12 * step)


def _parameters(problem: Problem) -> Tensor:
    return parameters_to_vector(problem.model.parameters()).detach().requires_grad_()


def _outputs(problem: Problem, theta: Tensor) -> Tensor:
    named, first = {}, 0
    for name, parameter in problem.model.named_parameters():
        named[name] = theta[first : first + parameter.numel()].view_as(parameter)
        first += parameter.numel()
    return problem.outputs(named)
