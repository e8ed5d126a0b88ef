"""Activations in place: torch's values, what is added before them, every shape, the same bits however it is run."""

import pytest
import torch
from torch.nn import functional

from lsfast._native import ops
from lsfast.program.activate import ACTIVATIONS, activate_

FUNCTIONS = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}
SHAPES = [(1, 1, 1), (3, 5, 1), (2, 7, 16), (4, 3, 65), (2, 300, 17)]


def draw(*shape, dtype, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Of the number the function is of: float64's erf is the C library's, float32's is 2.5e-8 off before four roundings.
@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float64, 1e-15), (torch.float32, 3e-7), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_are_those_of_torch_with_anything_added(activation, dtype, share):
    for shape in SHAPES:
        g, _, c = shape
        for x in (
            None,
            draw(1, c, dtype=dtype, seed=1),
            draw(g, c, dtype=dtype, seed=2),
            draw(*shape, dtype=dtype, seed=3),
        ):
            y = draw(*shape, dtype=dtype)
            wide = y.double() + (0 if x is None else (x if x.dim() == 3 else x[:, None]).double())
            found = activate_(y, x, activation)
            assert found is y
            expected = FUNCTIONS[activation](wide)
            assert ((found.double() - expected).abs() <= share * wide.abs() + share * expected.abs()).all()


def test_gelu_is_that_of_the_normal_distribution_over_the_whole_range():
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, -0.0, 1e-30, 3e38])])
    exact = x.double() * torch.special.ndtr(x.double())
    found = activate_(x.clone(), None, "gelu")
    assert ((found.double() - exact).abs() <= 2.3e-7 * x.double().abs()).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_and_infinity_is_kept(activation):
    y = activate_(torch.tensor([float("nan"), float("inf"), -1.0]), None, activation)
    assert y[0].isnan()
    assert y[1] == float("inf")


def test_threads_do_not_change_a_bit():
    y, bias = draw(3, 900, 70, dtype=torch.float32), draw(3, 70, dtype=torch.float32, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(activate_(y.clone(), bias, "gelu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("y", "x", "message"),
    [
        (torch.ones(2, 3).int(), None, "y must be a floating-point tensor, got torch.Int"),
        (torch.ones(3, 2).T, None, "y must be contiguous"),
        (torch.ones(2, 3, 4), torch.ones(3, 4), r"x must have the shape of y, or be \[g or 1, C\]"),
        (torch.ones(2, 3, 4), torch.ones(2, 4).double(), "x must have the dtype|x must be"),
    ],
)
def test_bad_arguments_are_named(y, x, message):
    with pytest.raises(RuntimeError, match=f"activate_: {message}"):
        activate_(y, x, "relu")


def test_operator_keeps_the_rules_of_torch_library():
    torch.library.opcheck(ops.activate_.default, (torch.randn(2, 3, 4), torch.randn(2, 4), 2))
