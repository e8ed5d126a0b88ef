"""Indexing rules against the generic one: any axis, masks, repeated, negative, broadcast and empty indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from program.rule_cases import K, check_rule
from torch import Tensor

from lsfast.program.rules import find_rule
from lsfast.program.rules.generic import all_arguments
from lsfast.program.rules.selection import scatter, select

aten = torch.ops.aten


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rule_of(operation: Any, *args: Any, active: tuple[bool, ...] = (True,), **keywords: Any) -> Any:
    make = find_rule(operation)
    assert make is not None
    values = all_arguments(operation, args, keywords)
    rule = make(active + (False,) * (len(values) - len(active)))
    return rule, rule.forward(*values)


@pytest.mark.parametrize("tokens", [[0, 2, 2, 4], [[1, 1], [3, 0], [1, 4]], 3, []], ids=str)
def test_embedding_reads_rows_and_sums_repeated_ones(tokens: Any) -> None:
    check_rule(aten.embedding.default, normal(5, 3), torch.tensor(tokens, dtype=torch.int64))


def test_the_padding_row_of_an_embedding_is_a_constant() -> None:
    tokens = torch.tensor([[1, 0, 2], [1, 3, 1]])
    rule, y = rule_of(aten.embedding.default, normal(4, 3), tokens, padding_idx=1)
    assert torch.equal(y, normal(4, 3)[tokens])
    rows, adjoints = normal(K, 4, 3, seed=1), normal(K, 2, 3, 3, seed=2)
    kept = rows.clone()
    kept[:, 1] = 0.0
    assert torch.equal(rule.jvp(rows), kept[:, tokens])
    found = rule.vjp(adjoints)[0]
    assert torch.equal(found[:, 1], torch.zeros(K, 3, dtype=torch.float64))
    assert torch.equal(found[:, 0], adjoints[:, 0, 1])
    # One is the transpose of the other, which torch's own derivatives are not.
    torch.testing.assert_close((rule.jvp(rows) * adjoints).sum(), (rows * found).sum())


def test_the_adjoint_of_an_embedding_is_written_where_the_engine_wants_it() -> None:
    rule, _ = rule_of(aten.embedding.default, normal(4, 3), torch.tensor([1, 0, 1]))
    adjoints = normal(K, 3, 3, seed=1)
    expected = rule.vjp(adjoints)[0]
    rule.into[0] = torch.full((K, 15), torch.nan, dtype=torch.float64)[:, 2:14].view(K, 4, 3)
    assert rule.vjp(adjoints)[0] is rule.into[0]
    assert torch.equal(rule.into[0], expected)


def test_an_embedding_scaled_by_frequency_has_no_derivative() -> None:
    with pytest.raises(ValueError, match="embedding: scale_grad_by_freq must be False"):
        rule_of(aten.embedding.default, normal(4, 3), torch.tensor([1]), scale_grad_by_freq=True)


I = torch.tensor([2, 0, 2])
J = torch.tensor([1, -1, 0])


@pytest.mark.parametrize(
    "indices",
    [
        [I],
        [None, J],
        [None, None, I],
        [I, J],
        [None, I, J],
        [I, None, J],
        [I, None, None, J],
        [None, I, None, J],
        [I[:, None], J],
        [torch.tensor(1)],
        [None, torch.tensor(-1), I],
        [I[:0]],
        [I.int(), J],
        [torch.tensor([True, False, True])],
        [None, torch.tensor([[True, False, True], [False, True, True], [True, True, False]])],
        [torch.tensor([False, False, False])],
    ],
    ids=lambda indices: "-".join("all" if i is None else "x".join(map(str, [i.dtype, *i.shape])) for i in indices),
)
def test_index_by_tensors_reads_and_index_put_writes(indices: list[Tensor | None]) -> None:
    x = normal(3, 3, 3, 3)
    check_rule(aten.index.Tensor, x, indices)
    values = normal(*x[tuple(slice(None) if i is None else i for i in indices)].shape, seed=1)
    check_rule(aten.index_put.default, x, indices, values, True)


def test_index_put_overwrites_and_broadcasts_values() -> None:
    i, j = torch.tensor([2, 0]), torch.tensor([1, -1])
    x = normal(3, 3, 4)
    for values in (normal(2, 4), normal(4), normal(1), normal(), normal(2, 1)):
        for accumulate in (False, True):
            check_rule(aten.index_put.default, x, [i, j], values, accumulate)
            check_rule(aten.index_put.default, x.transpose(1, 2), [i, None, j], values, accumulate)
    check_rule(aten.index_put.default, x, [None, j], normal(3, 2, 4), False)
    check_rule(aten.index_put.default, x, [x > 0], normal(), False)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_index_select_and_its_writing_counterparts(dim: int) -> None:
    x, index = normal(4, 3, 4), torch.tensor([2, 0, 2])
    check_rule(aten.index_select.default, x, dim, index)
    source = normal(*aten.index_select(x, dim, index).shape, seed=1)
    check_rule(aten.index_add.default, x, dim, index, source)
    check_rule(aten.index_add.default, x, dim, index, source, alpha=-2.5)
    check_rule(aten.index_copy.default, x, dim, torch.tensor([2, 0, 1]), source)


def test_a_number_is_selected_from_a_number() -> None:
    check_rule(aten.index_select.default, normal(), 0, torch.tensor(0))
    check_rule(aten.gather.default, normal(), 0, torch.tensor([0, 0]))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gather_and_scatter_with_fewer_indices_than_elements(dim: int) -> None:
    index = torch.tensor([[[2, 0], [1, 2]], [[0, 0], [2, 1]]])
    x = normal(4, 3, 3)
    check_rule(aten.gather.default, x, dim, index)
    check_rule(aten.scatter_add.default, x, dim, index, normal(2, 2, 2, seed=1))
    once = torch.tensor([[[2, 0]], [[0, 1]]]) if dim == -1 else torch.tensor([[[2, 0]]])
    check_rule(aten.scatter.src, x, dim, once, normal(*once.shape, seed=1))
    check_rule(aten.scatter.value, x, dim, once, 1.5)


@pytest.mark.parametrize("operation", [aten.scatter_add.default, aten.scatter.src])
def test_values_that_scatter_leaves_out_have_no_derivative(operation: Any) -> None:
    x, index, values = normal(4, 3), torch.tensor([[2, 0], [3, 1]]), normal(3, 5, seed=1)
    rule, _ = rule_of(operation, x, 0, index, values, active=(True, False, False, True))
    tangents = [normal(K, *x.shape, seed=2), None, None, normal(K, *values.shape, seed=3)]
    ydot = rule.jvp(*tangents)
    for row, expected in enumerate(ydot):  # linear: the tangent of the operation is the operation
        torch.testing.assert_close(expected, operation(tangents[0][row], 0, index, tangents[3][row]))
    adjoints = normal(K, *x.shape, seed=4)
    found = rule.vjp(adjoints)
    product = (found[0] * tangents[0]).sum() + (found[3] * tangents[3]).sum()
    torch.testing.assert_close((adjoints * ydot).sum(), product)
    assert torch.equal(found[3][:, 2], torch.zeros(K, 5, dtype=x.dtype))


def test_take_and_take_along_dim() -> None:
    x = normal(3, 4)
    check_rule(aten.take.default, x, torch.tensor([[0, 11, -1], [0, 5, 3]]))
    check_rule(aten.take_along_dim.default, x, torch.tensor([[0, 1], [3, 3], [2, 0]]), 1)
    check_rule(aten.take_along_dim.default, x, torch.tensor([[0, 1, 2, 0]]), 0)
    check_rule(aten.take_along_dim.default, x, torch.tensor([5, 5, 0]))


def test_the_adjoint_of_a_selection_sums_in_a_fixed_order_along_any_axis() -> None:
    index = torch.tensor([2, 0, 2, 2])
    for shape, axis in (((K, 4), 1), ((K, 4, 5), 1), ((K, 2, 4, 5), 2), ((K, 5, 4), 2)):
        rows = normal(*shape)
        expected = torch.zeros(*shape[:axis], 3, *shape[axis + 1 :], dtype=rows.dtype)
        for place, n in enumerate(index.tolist()):
            expected.select(axis, n).add_(rows.select(axis, place))
        assert torch.equal(scatter(rows, index, 3, axis), expected)
        assert torch.equal(select(expected, index, axis), expected.index_select(axis, index))
