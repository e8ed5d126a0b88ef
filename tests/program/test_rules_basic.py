"""Rules of views, sums, joins, elementwise functions and products against ``torch.func`` on the same operation."""

import pytest
import torch
from program.rule_cases import check_rule

aten = torch.ops.aten


def real(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


LINEAR_MAPS = {
    "view": (aten.view.default, real(4, 6), [2, 12]),
    "reshape": (aten.reshape.default, real(4, 6).T, [2, 12]),
    "flatten": (aten.flatten.using_ints, real(2, 3, 4), 1, 2),
    "unflatten": (aten.unflatten.int, real(2, 6), -1, [3, 2]),
    "squeeze": (aten.squeeze.dim, real(2, 1, 3), 1),
    "squeeze all": (aten.squeeze.default, real(2, 1, 3)),
    "unsqueeze": (aten.unsqueeze.default, real(2, 3), -1),
    "contiguous": (aten.contiguous.default, real(2, 3).T),
    "clone": (aten.clone.default, real(2, 3)),
    "to float32": (aten.to.dtype, real(2, 3), torch.float32),
    "transpose": (aten.transpose.int, real(2, 3, 4), -1, 0),
    "permute": (aten.permute.default, real(2, 3, 4), [2, 0, 1]),
    "t": (aten.t.default, real(2, 3)),
    "movedim": (aten.movedim.int, real(2, 3, 4), 0, -1),
    "mT": (aten.mT.default, real(2, 3, 4)),
    "expand": (aten.expand.default, real(3, 1), [2, 3, 4]),
    "repeat": (aten.repeat.default, real(3, 2), [2, 1, 3]),
    "repeat_interleave": (aten.repeat_interleave.self_int, real(3, 2), 3, 1),
    "repeat_interleave of all": (aten.repeat_interleave.self_int, real(3, 2), 2),
    "slice": (aten.slice.Tensor, real(5, 7), -1, 1, 6, 2),
    "narrow": (aten.narrow.default, real(5, 7), 0, 1, 3),
    "select": (aten.select.int, real(5, 7), -1, -2),
    "diagonal": (aten.diagonal.default, real(4, 5, 3), 1, 0, -1),
    "split": (aten.split.Tensor, real(5, 4), 2, 0),
    "split with sizes": (aten.split_with_sizes.default, real(5, 4), [1, 3], -1),
    "chunk": (aten.chunk.default, real(5, 4), 3),
    "unbind": (aten.unbind.int, real(3, 4), -1),
    "sum": (aten.sum.default, real(3, 4)),
    "sum of an axis": (aten.sum.dim_IntList, real(3, 4, 2), [0, -1], True),
    "sum of all axes by an empty list": (aten.sum.dim_IntList, real(3, 4), []),
    "mean": (aten.mean.default, real(3, 4)),
    "mean of an axis": (aten.mean.dim, real(3, 4, 2), [1]),
    "number": (aten.view.default, real(), [1, 1]),
    "cat": (aten.cat.default, [real(2, 3), real(4, 3)], 0),
    "stack": (aten.stack.default, [real(2, 3), real(2, 3, seed=1)], -1),
    "select_scatter": (aten.select_scatter.default, real(3, 4), real(3), 1, -1),
    "slice_scatter": (aten.slice_scatter.default, real(5, 4), real(2, 4), 0, 1, 5, 2),
}


@pytest.mark.parametrize("case", LINEAR_MAPS.values(), ids=LINEAR_MAPS)
def test_linear_maps(case):
    check_rule(*case, tolerance=1e-7 if torch.float32 in case else 1e-12)


FUNCTIONS = [
    (aten.exp.default,), (aten.expm1.default,), (aten.log.default,), (aten.log1p.default,), (aten.log2.default,),
    (aten.sqrt.default,), (aten.rsqrt.default,), (aten.reciprocal.default,), (aten.square.default,),
    (aten.pow.Tensor_Scalar, 3.0), (aten.pow.Tensor_Scalar, 0.5), (aten.pow.Tensor_Scalar, 2),
    (aten.pow.Tensor_Scalar, 1), (aten.pow.Tensor_Scalar, 0), (aten.pow.Tensor_Scalar, -1.5),
    (aten.sin.default,), (aten.cos.default,), (aten.tanh.default,), (aten.sigmoid.default,),
    (aten.log_sigmoid.default,), (aten.erf.default,), (aten.gelu.default,), (aten.silu.default,),
    (aten.softplus.default, 1.5, 2.0), (aten.mish.default,), (aten.elu.default, 1.3, 1.1, 0.7),
    (aten.relu.default,), (aten.relu6.default,), (aten.leaky_relu.default, 0.1), (aten.hardtanh.default,),
    (aten.threshold.default, 0.3, 0.1), (aten.abs.default,), (aten.neg.default,), (aten.clamp.default, -0.4, 0.7),
    (aten.clamp.default, None, 0.7), (aten.clamp_min.default, 0.2), (aten.clamp_max.default, 0.2),
]  # fmt: skip
NEEDS_POSITIVE = {"log", "log2", "sqrt", "rsqrt", "reciprocal", "pow", "log1p"}


@pytest.mark.parametrize("case", FUNCTIONS, ids=str)
@pytest.mark.parametrize("shape", [(4, 7), ()])
def test_functions_of_one_tensor(case, shape):
    operation, *options = case
    name = operation._schema.name.split("::")[1]
    x = real(*shape) * 2
    check_rule(operation, x.abs() + 0.3 if name in NEEDS_POSITIVE else x, *options)


def test_gelu_by_tanh():
    check_rule(aten.gelu.default, real(30) * 3, approximate="tanh")


def test_derivatives_of_saturated_functions_are_finite():
    x = torch.tensor([-800.0, -90.0, 90.0, 800.0], dtype=torch.float64)
    for operation in (aten.tanh, aten.sigmoid, aten.silu, aten.softplus, aten.gelu, aten.elu):
        check_rule(operation.default, x)
    check_rule(aten.mish.default, x[:3])  # torch's own second derivative is NaN at 800


PAIRS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (2, 1, 4)), ((), (3,)), ((2, 3, 4), (1, 4))]
TWO = [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default]


@pytest.mark.parametrize("operation", TWO, ids=str)
@pytest.mark.parametrize("shapes", PAIRS, ids=str)
def test_two_tensors_with_broadcasting(operation, shapes):
    x, y = real(*shapes[0]), real(*shapes[1], seed=5)
    check_rule(operation, x, y + 3.0 * torch.sign(y) if operation is aten.div.Tensor else y)


def test_factors_and_numbers():
    x, y = real(3, 4), real(4, seed=2)
    check_rule(aten.add.Tensor, x, y, alpha=0.3)
    check_rule(aten.sub.Tensor, x, y, alpha=2)
    check_rule(aten.rsub.Scalar, x, 2.0, 3.0)
    check_rule(aten.rsub.Tensor, x, y, alpha=0.5)
    check_rule(aten.add.Scalar, x, 2.0)
    check_rule(aten.mul.Scalar, x, 2.0)
    check_rule(aten.div.Scalar, x, 2.0)
    check_rule(aten.mul.Tensor, x, torch.arange(4))


@pytest.mark.parametrize("packet", [aten.var, aten.std])
def test_variance_and_standard_deviation(packet):
    x = real(3, 4, 5)
    check_rule(packet.correction, x, [0, -1], correction=0, keepdim=True)
    check_rule(packet.correction, x, None)
    check_rule(packet.default, x, False)
    check_rule(packet.dim, x, [1], True)
    check_rule(packet.default, real(7))


def test_choices():
    x, y, mask = real(3, 4), real(4, seed=2), real(3, 4, seed=7) > 0
    check_rule(aten.where.self, mask, x, y)
    check_rule(aten.masked_fill.Scalar, x, mask, 2.0)
    check_rule(aten.masked_fill.Tensor, x, mask[0], real(seed=3))
    check_rule(aten.dropout.default, x, 0.5, False)
    check_rule(aten.fill.Tensor, x, real(seed=3))


PRODUCTS = {
    "linear": (aten.linear.default, real(3, 5), real(4, 5), real(4)),
    "linear without bias, leading axes": (aten.linear.default, real(2, 3, 5), real(4, 5)),
    "linear of a vector": (aten.linear.default, real(5), real(4, 5), real(4)),
    "mm": (aten.mm.default, real(3, 5), real(5, 4)),
    "mv": (aten.mv.default, real(3, 5), real(5)),
    "dot": (aten.dot.default, real(5), real(5, seed=1)),
    "bmm": (aten.bmm.default, real(2, 3, 5), real(2, 5, 4)),
    "matmul, batches broadcast": (aten.matmul.default, real(2, 1, 3, 5), real(6, 5, 4)),
    "matmul, batches broadcast the other way": (aten.matmul.default, real(6, 3, 5), real(2, 1, 5, 4)),
    "matmul with one matrix": (aten.matmul.default, real(2, 6, 3, 5), real(5, 4)),
    "one matrix matmul a batch": (aten.matmul.default, real(3, 5), real(2, 5, 4)),
    "vector matmul batch": (aten.matmul.default, real(5), real(2, 5, 4)),
    "batch matmul vector": (aten.matmul.default, real(2, 3, 5), real(5)),
    "large bmm": (aten.bmm.default, real(40, 30, 20), real(40, 20, 30)),
    "large matmul, four axes": (aten.matmul.default, real(2, 20, 30, 20), real(2, 20, 20, 30)),
    "addmm": (aten.addmm.default, real(4), real(3, 5), real(5, 4)),
    "baddbmm": (aten.baddbmm.default, real(2, 1, 4), real(2, 3, 5), real(2, 5, 4)),
    "einsum matrix product": (aten.einsum.default, "ij,jk->ik", [real(3, 4), real(4, 5)]),
    "einsum implicit": (aten.einsum.default, "ij,jk", [real(3, 4), real(4, 5)]),
    "einsum three": (aten.einsum.default, "bi,ij,bj->b", [real(2, 3), real(3, 4), real(2, 4)]),
    "einsum ellipsis": (aten.einsum.default, "...hd,hde->...he", [real(2, 5, 3, 4), real(3, 4, 2)]),
    "einsum sums an axis": (aten.einsum.default, "bij->j", [real(2, 3, 4)]),
}


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_products(case):
    check_rule(*case)


def test_the_worked_example():
    check_rule(aten.outer.default, real(3), real(4))


def test_factors_of_products():
    check_rule(aten.addmm.default, real(3, 4), real(3, 5), real(5, 4), beta=0.5, alpha=-2.0)
