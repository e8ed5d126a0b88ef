"""Sharpness: closed forms, and what it does not depend on."""

import pytest
import torch

import lsfast

from .problems import of_parameters


def quadratic(dtype=torch.float64):
    hessian = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 4.0]], dtype=dtype)
    theta = torch.tensor([0.5, -2.0, 1.0], dtype=dtype)
    return of_parameters(lambda x: 0.5 * x @ hessian @ x, theta), hessian, theta


@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_sam_of_a_quadratic_is_its_closed_form(radius):
    objective, hessian, theta = quadratic()
    gradient = hessian @ theta
    unit = gradient / gradient.norm()
    expected = radius * gradient.norm() + 0.5 * radius**2 * unit @ hessian @ unit
    found = lsfast.sharpness(objective, radius=radius)
    assert (found.dtype, found.shape) == (torch.float64, ())
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_asam_of_a_quadratic_is_its_closed_form():
    objective, hessian, theta = quadratic()
    gradient = hessian @ theta
    step = 0.1 * theta**2 * gradient / (theta.abs() * gradient).norm()
    expected = gradient @ step + 0.5 * step @ hessian @ step
    torch.testing.assert_close(lsfast.sharpness(objective, "asam", 0.1), expected, rtol=1e-13, atol=1e-13)


def test_asam_does_not_change_when_layers_are_rescaled():
    def product(theta):  # a network of two layers: scaling one and unscaling the other leaves it the same
        return (theta[0] * theta[1] - 3.0) ** 2

    one = of_parameters(product, torch.tensor([1.0, 2.0], dtype=torch.float64))
    other = of_parameters(product, torch.tensor([8.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(lsfast.sharpness(one, "asam"), lsfast.sharpness(other, "asam"), rtol=1e-12, atol=0)
    assert abs(lsfast.sharpness(one, "sam") - lsfast.sharpness(other, "sam")) > 0.1


@pytest.mark.parametrize("method", ["sam", "asam"])
def test_zero_gradient_has_zero_sharpness(method):
    flat = of_parameters(lambda theta: (theta * 0.0).sum() + 2.0, torch.ones(4))
    assert lsfast.sharpness(flat, method).item() == 0.0
    at_zero = of_parameters(lambda theta: theta.sum(), torch.zeros(4))
    assert (lsfast.sharpness(at_zero, "asam").item(), lsfast.sharpness(at_zero, "sam").item() > 0) == (0.0, True)


def test_loss_that_is_infinite_uphill_gives_infinity():
    wall = of_parameters(lambda theta: -torch.log(1.0 - theta[0]), torch.tensor([0.5]))
    assert lsfast.sharpness(wall, radius=0.5).item() == float("inf")


def test_sam_of_float32_is_its_closed_form_to_rounding():
    objective, hessian, theta = quadratic(torch.float32)
    expected = lsfast.sharpness(quadratic(torch.float64)[0], radius=0.5)
    # Of each term of the double sum: x rounds twice (the step, the sum) and enters twice, and each of the two products
    # with a vector rounds a term at most 3 times. 10 roundings of 2^-24 in each of the two losses.
    x = theta.double().abs() + 0.5
    bound = 2 * 10 * 2.0**-24 * 0.5 * (x @ hessian.double().abs() @ x)
    assert abs(lsfast.sharpness(objective, radius=0.5) - expected) <= bound


def test_bad_arguments_are_named():
    objective, _, _ = quadratic()
    for call, error, message in (
        (lambda: lsfast.sharpness(2), TypeError, "objective must be an Objective, got int"),
        (lambda: lsfast.sharpness(objective, "flat"), ValueError, "method must be one of 'sam', 'asam', got 'flat'"),
        (lambda: lsfast.sharpness(objective, radius=0), ValueError, "radius must be a finite number > 0, got 0"),
        (lambda: lsfast.sharpness(objective, radius=float("nan")), ValueError, "finite number > 0, got nan"),
        (lambda: lsfast.sharpness(objective, radius="1"), TypeError, "radius must be a number, got '1'"),
    ):
        with pytest.raises(error, match=f"sharpness: .*{message}"):
            call()
