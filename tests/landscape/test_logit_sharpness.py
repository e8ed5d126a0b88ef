"""Sharpness on logits: the maximum over a box in closed form."""

import itertools
import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch.nn.functional import cross_entropy

import lsfast
from lsfast.landscape import reference

ops = torch.ops.lsfast
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def case(rows, classes, dtype=torch.float64, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


def units(dtype, classes):
    """The documented bound of the relative error."""
    return (3 * math.log(classes) + 24) * (2.0**-53 if dtype == torch.float64 else 2.0**-24)


@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_it_is_the_largest_rise_over_the_vertices_and_the_inside_of_the_box(epsilon):
    logits, targets = case(6, 5)
    found = lsfast.logit_sharpness(logits, targets, epsilon)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    inside = 2.0 * torch.rand(2000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1.0
    for row, target, value in zip(logits, targets, found, strict=True):
        before = cross_entropy(row, target)

        def measure(moves, row=row, target=target, before=before):
            moved = row + moves * epsilon * (row.abs() + 1.0)
            after = cross_entropy(moved, target.expand(len(moves)), reduction="none")
            return (100.0 * (after - before) / (1.0 + before)).max()

        # The two losses that are subtracted here, below 40, round a few times each; 100 multiplies that.
        torch.testing.assert_close(value, measure(signs), rtol=1e-13, atol=100 * 16 * 40 * 2.0**-53)
        assert measure(inside) < value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "spread"), [(2, 1.0), (10, 3.0), (1024, 8.0), (3001, 2.0), (70_001, 4.0)])
def test_it_is_the_reference_within_the_stated_error(classes, spread, dtype):
    logits, targets = case(4, classes, dtype, spread)
    logits[1] = logits[1].sort().values  # the largest logit changes all the way
    targets[2] = logits[2].argmax()
    found = lsfast.logit_sharpness(logits, targets, 1e-2)
    expected = reference.logit_sharpness(logits, targets, 1e-2)
    before = cross_entropy(logits.double(), targets, reduction="none")
    # Of the reference: the two losses, and the logits they are made from, round in float64.
    own = 100.0 * 8 * 2.0**-53 * (1.0 + before + logits.double().abs().amax(1)) / (1.0 + before)
    assert ((found - expected).abs() <= units(dtype, classes) * expected + own).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-3])
def test_a_small_rise_keeps_its_digits(epsilon, dtype):
    logits, targets = case(6, 12, dtype, spread=8.0)
    targets[0] = logits[0].argmax()
    logits[0, targets[0]] += 16.0  # a loss of e^-16 or less, of which the rise is a small share
    found = lsfast.logit_sharpness(logits, targets, epsilon)
    with localcontext() as context:
        context.prec = 60
        e = Decimal(epsilon)
        for row, target, value in zip(logits.tolist(), targets.tolist(), found.tolist(), strict=True):
            z = [Decimal(x) for x in row]
            moved = [x - e * (abs(x) + 1) if i == target else x + e * (abs(x) + 1) for i, x in enumerate(z)]
            before, after = (sum(x.exp() for x in y).ln() - y[target] for y in (z, moved))
            expected = 100 * (after - before) / (1 + before)
            assert abs(Decimal(value) / expected - 1) <= units(dtype, 12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_logits_have_no_part_and_ignored_rows_are_0(dtype):
    logits, targets = case(4, 40, dtype)
    targets.fill_(3)
    wide = torch.full((4, 2000), -torch.inf, dtype=dtype)
    wide[:, 5:45] = logits
    # The same terms in another order: their float64 sums round apart, and the largest seen so far with them.
    torch.testing.assert_close(
        lsfast.logit_sharpness(wide, targets + 5),
        lsfast.logit_sharpness(logits, targets),
        rtol=units(dtype, 40),
        atol=0,
    )
    targets[1] = -100
    values = lsfast.logit_sharpness(logits, targets)
    assert values[1] == 0.0
    assert (values[[0, 2, 3]] > 0.0).all()
    only = torch.full((1, 7), -torch.inf, dtype=dtype)
    only[0, 2] = 4.0
    assert lsfast.logit_sharpness(only, torch.tensor([2])).item() == 0.0


def test_what_is_not_finite_gives_nan_in_its_row_alone():
    logits, targets = case(6, 1500, torch.float32)
    logits[0, 7], logits[1, 1300], logits[2, 7] = math.nan, math.inf, -math.inf
    targets[:3], targets[3] = 7, 9
    logits[4, targets[4]] = math.inf
    finite = torch.isfinite(lsfast.logit_sharpness(logits, targets)).tolist()
    assert finite == [False, False, False, True, False, True]
    assert lsfast.logit_sharpness(logits, targets)[[0, 1, 2, 4]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_logits_do_not_overflow(dtype):
    large = torch.finfo(dtype).min / 4
    logits = torch.tensor([[1e5, -1e5, 3.0], [0.0, large, 1.0]], dtype=dtype)
    targets = torch.tensor([0, 2])
    expected = reference.logit_sharpness(logits, targets, 0.9)
    assert expected.isfinite().all()
    torch.testing.assert_close(lsfast.logit_sharpness(logits, targets, 0.9), expected, rtol=1e-6, atol=0)


def test_any_shape_and_strides_are_taken():
    logits, targets = case(12, 9)
    values = lsfast.logit_sharpness(logits, targets)
    assert torch.equal(lsfast.logit_sharpness(logits.view(3, 4, 9), targets.view(3, 4)), values.view(3, 4))
    assert torch.equal(lsfast.logit_sharpness(logits.T.contiguous().T, targets), values)
    assert torch.equal(lsfast.logit_sharpness(logits[5], targets[5]), values[5])
    assert lsfast.logit_sharpness(logits[:0], targets[:0]).shape == (0,)


def test_operator_keeps_the_rules_of_torch_library():
    torch.library.opcheck(ops.logit_sharpness, (*case(3, 5), 1e-3, -100))


def test_bad_arguments_are_named():
    logits, targets = case(3, 5)
    wrong = targets.clone()
    wrong[1] = 5
    for arguments, error, message in (
        ((logits.long(), targets), ValueError, "logits must be a floating-point tensor, got torch.int64"),
        (
            (logits, targets[:2]),
            ValueError,
            r"targets must be int64 of shape \[3\] on cpu, got torch.int64 \[2\] on cpu",
        ),
        ((logits, targets.int()), ValueError, "targets must be int64 .* got torch.int32"),
        ((logits, 3), TypeError, "targets must be a tensor, got int"),
        ((logits, wrong), ValueError, "targets must lie in 0 .. 4 or be -100, got 5"),
        ((logits, targets, 0.0), ValueError, r"epsilon must lie in \(0, 1\), got 0.0"),
        ((logits, targets, 1.0), ValueError, r"epsilon must lie in \(0, 1\), got 1.0"),
        ((logits, targets, 0.1, 1.5), TypeError, "ignore_index must be an integer, got 1.5"),
        ((logits[:, :0], targets), ValueError, r"logits must have shape \[..., classes\], got \[3, 0\]"),
    ):
        with pytest.raises(error, match=f"logit_sharpness: {message}"):
            lsfast.logit_sharpness(*arguments)
