"""The CUDA kernels of softmax and attention, emulated, against the CPU kernels."""

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_under_schedules

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(3, 9, 10), (1, 1, 1), (2, 5, 100), (2, 20, 33), (2, 3, 256)]  # rows of packs and of single elements


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arithmetic(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(dtype, cols, size, expected):
    """Two sums of terms up to `size` run in another order, cols / 16 + 16 roundings each; the results may then fall on
    neighbours in the dtype."""
    return 2 * (cols / 16 + 16) * torch.finfo(arithmetic(dtype)).eps * size + torch.finfo(dtype).eps * expected.abs()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("output", [0, 1, 2, 3])
def test_softmax_tangent_is_the_cpus_to_rounding(emulated, dtype, shape, output):
    p = torch.softmax(normal(*shape[1:]), -1).to(arithmetic(dtype))
    t = normal(*shape, dtype=dtype, seed=1)
    result = assert_same_under_schedules(lambda: emulated.softmax_tangent(p, t, output))
    expected = ops.softmax_tangent(p, t, output)
    size = float(t.abs().max()) * (shape[2] if output == 3 else 1)
    assert ((result - expected).double().abs() <= tolerance(dtype, shape[2], size, expected.double())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("output", [0, 1, 2])
def test_softmax_adjoint_tangent_is_the_cpus_to_rounding(emulated, dtype, shape, output):
    k, rows, cols = shape
    p = torch.softmax(normal(rows, cols), -1).to(arithmetic(dtype))
    c = normal(*((rows, cols) if output == 0 else (rows,)), dtype=arithmetic(dtype), seed=1)
    t = normal(*shape, dtype=dtype, seed=2)
    a = normal(*((k, rows) if output == 2 else shape), dtype=dtype, seed=3)
    result = assert_same_under_schedules(lambda: emulated.softmax_adjoint_tangent(p, c, t, a, output))
    expected = ops.softmax_adjoint_tangent(p, c, t, a, output)
    size = float(a.abs().max()) * (cols if output == 1 else 1) + 2 * float(c.abs().max()) * float(t.abs().max())
    assert ((result - expected).double().abs() <= tolerance(dtype, cols, size, expected.double())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 100), (2, 20, 33)])
def test_in_place_forms_give_the_bits_of_the_others(emulated, dtype, shape):
    p = torch.softmax(normal(*shape[1:]), -1).float()
    c = normal(*shape[1:], dtype=torch.float32, seed=1)
    t, a = normal(*shape, dtype=dtype, seed=2), normal(*shape, dtype=dtype, seed=3)

    def in_place():
        tangents, adjoints = t.clone(), a.clone()
        emulated.softmax_adjoint_tangent_(p, c, tangents, adjoints)
        return tangents, adjoints

    tangents, adjoints = assert_same_under_schedules(in_place)
    assert torch.equal(tangents, emulated.softmax_tangent(p, t, 0))
    assert torch.equal(adjoints, emulated.softmax_adjoint_tangent(p, c, t, a, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (2, 4, 64), (1, 3, 300)])
@pytest.mark.parametrize("causal", [-1, 0, 2])
def test_probabilities_are_the_cpus_to_rounding(emulated, dtype, shape, causal):
    scores = 5 * normal(*shape, dtype=dtype)
    scores[0, 0] = -torch.inf

    def probabilities(operators):
        found = scores.clone()
        operators.attention_probabilities_(found, causal)
        return found

    result = assert_same_under_schedules(lambda: probabilities(emulated))
    expected = probabilities(ops)
    # The exponentials have the same bits; their sum runs in another order.
    assert ((result - expected).abs() <= (shape[2] / 16 + 16) * torch.finfo(dtype).eps * expected).all()
    assert (result[0, 0] == 0).all()
