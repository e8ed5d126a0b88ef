"""The rules of softmax, log-softmax and log-sum-exp against ``torch.func``, and their kernels against float64."""

import pytest
import torch
from program.rule_cases import check_rule

aten = torch.ops.aten


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHAPES = [((5,), 0), ((1,), -1), ((3, 7), -1), ((3, 7), 0), ((2, 33, 3), 1), ((2, 3, 4, 5), -3), ((), 0), ((0, 4), 1)]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("operation", [aten.softmax.int, aten.log_softmax.int])
def test_softmax_and_its_logarithm(operation, shape, dim):
    check_rule(operation, normal(*shape), dim)


@pytest.mark.parametrize("operation", [aten._softmax.default, aten._log_softmax.default])
def test_decomposed_forms(operation):
    check_rule(operation, normal(3, 7), 1, False)


@pytest.mark.parametrize("operation", [aten.softmax.int, aten.log_softmax.int])
def test_dtype_is_that_of_the_result_and_adjoints_return_to_the_arguments(operation):
    x = normal(3, 7).float()
    check_rule(operation, x, 1, torch.float64, tolerance=1e-6)  # the adjoint is rounded to float32: 6e-8 of it


@pytest.mark.parametrize(
    ("shape", "dims", "keepdim"),
    [
        ((4, 7), [1], False),
        ((4, 7), [0], True),
        ((2, 3, 5), [0, 2], False),
        ((2, 3, 5), [-1, 0], True),
        ((6,), [0], False),
    ]
    + [((2, 3), [], True), ((), [0], False), ((2, 3), [0, 1], True)],
)
def test_logsumexp(shape, dims, keepdim):
    check_rule(aten.logsumexp.default, normal(*shape), dims, keepdim)
