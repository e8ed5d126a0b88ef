"""Operations at many parameter sets: an entry of the table equals the operation set by set, whatever differs."""

import pytest
import torch
from rule_cases import activities

from lsfast.program.batched.table import _table, call_batched, one_by_one
from lsfast.program.rules.generic import all_arguments

aten = torch.ops.aten
G = 3


def check_batched(operation, *args, tolerance=1e-13, **keywords):
    """Assert that an operation at G sets equals G operations, for every choice of tensors that differ between them."""
    values = all_arguments(operation, args, keywords)
    generator = torch.Generator().manual_seed(0)
    for many in activities(values):
        given = tuple(_varied(value, flag, generator) for value, flag in zip(values, many, strict=True))
        found, expected = call_batched(operation, given, many), one_by_one(operation, given, many)
        pairs = [(found, expected)] if isinstance(expected, torch.Tensor) else zip(found, expected, strict=True)
        for one, other in pairs:
            assert one.shape == other.shape, (operation, many)
            assert one.dtype == other.dtype, (operation, many)
            assert torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True), (operation, many)


def _varied(value, flag, generator):
    if isinstance(flag, tuple):
        return [_varied(item, one, generator) for item, one in zip(value, flag, strict=True)]
    if not flag:
        return value
    noise = 0.1 * torch.rand(G, *value.shape, dtype=value.dtype, generator=generator)
    return value * (1.0 + noise)  # keeps the sign: variances stay positive


def t(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ROWS, IMAGES, SEQUENCE = t(4, 3), t(2, 3, 6, 6), t(2, 3, 7)
POSITIVE = t(3).abs() + 0.5
CASES = [
    (aten.linear.default, ROWS, t(5, 3, seed=1), t(5, seed=2)),
    (aten.linear.default, t(2, 4, 3), t(5, 3, seed=1), None),
    (aten.linear.default, t(3), t(5, 3, seed=1), t(5, seed=2)),
    (aten.linear.default, ROWS, t(3, seed=1), None),
    (aten.matmul.default, ROWS, t(3, 2, seed=1)),
    (aten.matmul.default, t(2, 4, 3), t(3, 2, seed=1)),
    (aten.matmul.default, ROWS, t(2, 3, 2, seed=1)),
    (aten.matmul.default, t(3), t(2, 3, 2, seed=1)),
    (aten.matmul.default, t(2, 4, 3), t(3, seed=1)),
    (aten.mm.default, ROWS, t(3, 2, seed=1)),
    (aten.bmm.default, t(2, 4, 3), t(2, 3, 2, seed=1)),
    (aten.mv.default, ROWS, t(3, seed=1)),
    (aten.dot.default, t(3), t(3, seed=1)),
    (aten.addmm.default, t(2, seed=2), ROWS, t(3, 2, seed=1), {"beta": 0.5, "alpha": 2.0}),
    (aten.baddbmm.default, t(1, 4, 2, seed=2), t(2, 4, 3), t(2, 3, 2, seed=1)),
    (aten.einsum.default, "ij,jk->ik", [ROWS, t(3, 2, seed=1)]),
    (aten.conv1d.default, SEQUENCE, t(4, 3, 2, seed=1), t(4, seed=2)),
    (aten.conv2d.default, IMAGES, t(4, 3, 2, 2, seed=1), t(4, seed=2), [2, 1], [1, 0]),
    (aten.conv2d.default, t(2, 4, 5, 5), t(4, 2, 2, 2, seed=1), None, [1], [0], [1], 2),
    (aten.conv2d.default, t(3, 6, 6), t(4, 3, 2, 2, seed=1), None),
    (aten.conv2d.padding, IMAGES, t(4, 3, 3, 3, seed=1), t(4, seed=2), [1], "same"),
    (aten.conv3d.default, t(1, 2, 3, 4, 3), t(3, 2, 2, 2, 2, seed=1), t(3, seed=2)),
    (aten.convolution.default, IMAGES, t(3, 2, 2, 2, seed=1), t(2, seed=2), [2, 2], [0, 0], [1, 1], True, [0, 0], 1),
    (aten.conv_transpose2d.input, IMAGES, t(3, 2, 2, 2, seed=1), t(2, seed=2)),
    (aten.scaled_dot_product_attention.default, t(2, 2, 4, 3), t(2, 2, 5, 3, seed=1), t(2, 2, 5, 3, seed=2)),
    (
        aten.scaled_dot_product_attention.default,
        t(2, 2, 4, 3),
        t(2, 2, 4, 3, seed=1),
        t(2, 2, 4, 3, seed=2),
        None,
        0.0,
        True,
    ),
    (
        aten.scaled_dot_product_attention.default,
        t(2, 2, 4, 3),
        t(2, 2, 4, 3, seed=1),
        t(2, 2, 4, 3, seed=2),
        t(2, 1, 4, 4, seed=3),
    ),
    (aten.scaled_dot_product_attention.default, t(4, 3), t(4, 3, seed=1), t(4, 3, seed=2), t(4, 4, seed=3)),
    (aten.embedding.default, t(5, 3), torch.tensor([[0, 4], [2, 2]])),
    (aten.layer_norm.default, t(2, 4, 3), [3], t(3, seed=1), t(3, seed=2)),
    (aten.layer_norm.default, t(2, 4, 3), [4, 3], t(4, 3, seed=1), None),
    (aten.layer_norm.default, ROWS, [3]),
    (aten.rms_norm.default, t(2, 4, 3), [3], t(3, seed=1)),
    (aten.group_norm.default, t(2, 4, 5), 2, t(4, seed=1), t(4, seed=2)),
    (aten.group_norm.default, t(2, 4), 2),
    (aten.batch_norm.default, IMAGES, t(3, seed=1), t(3, seed=2), t(3, seed=3), POSITIVE, False, 0.1, 1e-5, False),
    (aten.batch_norm.default, ROWS, None, None, t(3, seed=3), POSITIVE, False, 0.1, 1e-5, False),
    (aten.add.Tensor, ROWS, t(3, seed=1), {"alpha": 2}),
    (aten.mul.Tensor, t(2, 4, 3), t(4, 1, seed=1)),
    (aten.mul.Tensor, t(3), t(2, 4, 3, seed=1)),
    (aten.where.self, ROWS > 0, ROWS, t(3, seed=1)),
    (aten.gelu.default, ROWS),
    (aten.clamp.default, ROWS, -0.5, 0.5),
    (aten.view.default, ROWS, [2, 6]),
    (aten.reshape.default, ROWS, [-1]),
    (aten.flatten.using_ints, t(2, 4, 3), 1, -1),
    (aten.unflatten.int, t(2, 6), -1, [2, 3]),
    (aten.unflatten.int, t(2, 6), 1, [2, 3]),
    (aten.unsqueeze.default, ROWS, 0),
    (aten.unsqueeze.default, ROWS, -1),
    (aten.squeeze.default, t(1, 4, 1)),
    (aten.squeeze.dim, t(1, 4, 1), -1),
    (aten.squeeze.dims, t(1, 4, 1), [0, 2]),
    (aten.transpose.int, t(2, 4, 3), -1, 0),
    (aten.permute.default, t(2, 4, 3), [2, 0, 1]),
    (aten.t.default, ROWS),
    (aten.slice.Tensor, ROWS, 0, 1, 3),
    (aten.select.int, ROWS, -1, 1),
    (aten.narrow.default, ROWS, 1, 1, 2),
    (aten.expand.default, t(1, 3), [2, 4, -1]),
    (aten.cat.default, [ROWS, t(2, 3, seed=1)], 0),
    (aten.cat.default, [ROWS, t(4, 2, seed=1)], -1),
    (aten.stack.default, [ROWS, t(4, 3, seed=1)], -1),
    (aten.split.Tensor, ROWS, 3, 0),
    (aten.split_with_sizes.default, ROWS, [1, 2], -1),
    (aten.chunk.default, ROWS, 2, 0),
    (aten.unbind.int, ROWS, 1),
    (aten.sum.default, ROWS),
    (aten.sum.dim_IntList, t(2, 4, 3), [0, -1], True),
    (aten.mean.default, ROWS),
    (aten.mean.dim, t(2, 4, 3), [1]),
    (aten.amax.default, t(2, 4, 3), [-1]),
    (aten.logsumexp.default, ROWS, [1]),
    (aten.var.correction, t(2, 4, 3), [1], {"correction": 0}),
    (aten.cumsum.default, ROWS, 0),
    (aten.softmax.int, ROWS, -1),
    (aten.log_softmax.int, ROWS, 0),
    (aten.index.Tensor, ROWS, [None, torch.tensor([0, 2])]),
    (aten.max_pool2d.default, IMAGES, [2, 2]),
    (aten.avg_pool2d.default, IMAGES, [2, 2]),
    (aten.adaptive_avg_pool2d.default, IMAGES, [2, 2]),
    (aten.constant_pad_nd.default, IMAGES, [1, 0, 0, 2], 3.0),
    (aten.pad.default, SEQUENCE, [1, 1], "reflect"),
    (aten.pad.default, ROWS, [1, 1, 2, 0], "constant", 1.0),
    (aten.constant_pad_nd.default, t(2, 3, 4), [0, 0, 1, 1, 1, 0], 0.0),
    (aten.upsample_bilinear2d.vec, IMAGES, [4, 5], False, None),
    (aten.dropout.default, ROWS, 0.5, False),
    (aten._to_copy.default, ROWS, {"dtype": torch.float32}),
    (aten.clone.default, ROWS),
    (aten.repeat_interleave.self_int, ROWS, 2, 1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name().removeprefix("aten::"))
def test_an_operation_at_many_sets_equals_the_sets_one_by_one(case):
    operation, *args = case
    keywords = args.pop() if isinstance(args[-1], dict) else {}
    check_batched(operation, *args, **keywords)


def test_numbers_do_not_promote_what_they_are_added_to():
    x, number = torch.randn(2, 3), torch.tensor(0.5, dtype=torch.float64)
    check_batched(aten.add.Tensor, x, number, tolerance=1e-6)


def test_the_families_of_common_layers_have_entries():
    names = {operation._schema.name.removeprefix("aten::") for operation in _table}
    assert names >= {"linear", "matmul", "conv2d", "layer_norm", "batch_norm", "embedding", "view", "permute", "cat"}
