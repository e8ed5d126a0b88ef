"""The rules of losses against ``torch.func``, and the kernels of cross-entropy against float64."""

from typing import Any
from unittest import mock

import pytest
import torch
from program import rule_cases
from program.rule_cases import check_rule
from torch import Tensor
from torch.nn import functional

from lsfast.program.cross_entropy import CrossEntropyRows
from lsfast.program.rules import find_rule
from lsfast.program.rules.generic import all_arguments

aten = torch.ops.aten
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
SHAPES = {"one row": (7,), "rows": (6, 5), "one class": (4, 1), "sequence": (3, 5, 2), "image": (2, 19, 3, 7)}
reduced = pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
shaped = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logits_and_labels(shape: tuple[int, ...], ignored: int = -100) -> tuple[Tensor, Tensor]:
    axis = 0 if len(shape) == 1 else 1
    rows = shape[:axis] + shape[axis + 1 :]
    labels = torch.randint(0, shape[axis], rows, generator=torch.Generator().manual_seed(1))
    if labels.numel() > 2:
        labels.view(-1)[[0, 2]] = ignored
    return 2 * random(*shape), labels


def class_weight(shape: tuple[int, ...]) -> Tensor:
    return random(shape[0 if len(shape) == 1 else 1], seed=2).abs() + 0.2


def check_outputs(operation: Any, *args: Any, **keywords: Any) -> None:
    """`check_rule` with the outputs alone active: PyTorch lacks derivatives in the others to compare with."""
    only_first = mock.patch.object(rule_cases, "activities", lambda values: [(True, *[False] * (len(values) - 1))])
    with only_first:
        check_rule(operation, *args, **keywords)


@reduced
@shaped
def test_cross_entropy_of_class_indices(shape, reduction):
    z, labels = logits_and_labels(shape)
    check_outputs(aten.cross_entropy_loss.default, z, labels, None, reduction)
    check_outputs(aten.cross_entropy_loss.default, z, labels, None, reduction, -100, 0.1)


@reduced
@shaped
def test_cross_entropy_with_class_weights_and_another_ignored_index(shape, reduction):
    z, labels = logits_and_labels(shape, ignored=0)
    ignored = 0 if len(shape) > 1 and shape[1] > 1 else -1  # the mean over no target at all has a test of its own
    for smoothing in (0.0, 0.3):
        check_outputs(aten.cross_entropy_loss.default, z, labels, class_weight(shape), reduction, ignored, smoothing)


@reduced
@shaped
def test_cross_entropy_of_class_probabilities(shape, reduction):
    z, _ = logits_and_labels(shape)
    probabilities = random(*shape, seed=3).softmax(0 if len(shape) == 1 else 1)
    check_outputs(aten.cross_entropy_loss.default, z, probabilities, None, reduction)
    check_outputs(aten.cross_entropy_loss.default, z, probabilities, class_weight(shape), reduction, -100, 0.2)


def test_cross_entropy_of_many_classes():
    # 1030 classes: more than a pack, a warp, and the 64 classes that a column sums at a time.
    z, labels = logits_and_labels((5, 1030))
    check_outputs(aten.cross_entropy_loss.default, z, labels, None, 1, -100, 0.1)
    check_outputs(aten.cross_entropy_loss.default, *logits_and_labels((2, 130, 18)))


@pytest.mark.parametrize("layout", ["classes last", "channels last", "transposed", "every other"])
def test_cross_entropy_of_logits_with_any_strides(layout):
    z = {
        "classes last": random(3, 4, 5).movedim(-1, 1),
        "channels last": random(2, 5, 3, 4).contiguous(memory_format=torch.channels_last),
        "transposed": random(5, 6).T,
        "every other": random(6, 10)[:, ::2],
    }[layout]
    labels = torch.randint(0, 5, z.shape[:1] + z.shape[2:], generator=torch.Generator().manual_seed(1))
    check_outputs(aten.cross_entropy_loss.default, z, labels)


def test_logits_with_classes_last_are_not_copied():
    z = random(3, 4, 5).movedim(-1, 1)
    rows = CrossEntropyRows(z, torch.zeros(3, 4, dtype=torch.long))
    assert rows._given[0].data_ptr() == z.data_ptr()
    tangents = random(2, 3, 4, 5, seed=1).movedim(-1, 2)
    result = rows.product(rows.mass, tangents, in_place=True)
    assert result.data_ptr() == tangents.data_ptr()
    assert result.stride() == tangents.stride()


@reduced
@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 5, 2), (2, 4, 3, 2)])
def test_negative_log_likelihood(shape, reduction):
    z, labels = logits_and_labels(shape)
    z = z.log_softmax(0 if len(shape) == 1 else 1)
    check_outputs(aten.nll_loss_nd.default, z, labels, None, reduction)
    check_outputs(aten.nll_loss_nd.default, z, labels, class_weight(shape), reduction)
    if len(shape) <= 2:
        check_outputs(aten.nll_loss.default, z, labels, None, reduction)
    if len(shape) == 4:
        check_outputs(aten.nll_loss2d.default, z, labels, None, reduction)


@reduced
@pytest.mark.parametrize("shape", [(4, 3), (), (5,), (2, 3, 4)])
def test_losses_of_a_difference_active_in_either(shape, reduction):
    x, target = random(*shape), random(*shape, seed=1)
    check_rule(aten.mse_loss.default, x, target, reduction)
    check_rule(aten.l1_loss.default, x, target, reduction)
    for width in (0.7, 2.0):
        check_rule(aten.smooth_l1_loss.default, x, target, reduction, width)
        check_rule(aten.huber_loss.default, x, target, reduction, width)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mse_loss: target must have shape \[4, 3\], got \[3\]"):
        find_rule(aten.mse_loss.default)((True, False, False)).forward(random(4, 3), random(3), 1)


def test_smooth_l1_of_width_zero_is_l1():
    check_rule(aten.smooth_l1_loss.default, random(4, 3), random(4, 3, seed=1), 1, 0.0)


@reduced
@pytest.mark.parametrize("shape", [(4, 3), (), (2, 3, 5)])
def test_binary_cross_entropy_with_logits(shape, reduction):
    x, target = 3 * random(*shape), random(*shape, seed=1).sigmoid()
    weight = random(*shape, seed=2).abs() + 0.1
    pos_weight = random(*shape[-1:], seed=3).abs() + 0.1
    operation = aten.binary_cross_entropy_with_logits.default
    check_rule(operation, x, target, None, None, reduction)
    check_rule(operation, x, target, weight, None, reduction)
    check_rule(operation, x, target, None, pos_weight, reduction)
    check_rule(operation, x, target, weight, pos_weight, reduction)


@reduced
@pytest.mark.parametrize("shape", [(4, 3), (), (2, 3, 5)])
def test_binary_cross_entropy_and_kl_divergence(shape, reduction):
    x, target = random(*shape).sigmoid(), random(*shape, seed=1).sigmoid()
    # PyTorch's second derivative adds 1e-12 to x and 1 - x, which are 0.05 and more here: 2e-11 relative.
    for weight in (None, random(*shape, seed=2).abs()):
        check_outputs(aten.binary_cross_entropy.default, x, target, weight, reduction, tolerance=1e-10)
    check_outputs(aten.kl_div.default, x.log(), target, reduction)
    check_outputs(aten.kl_div.default, x.log(), target.log(), reduction, log_target=True)


@pytest.mark.parametrize(
    ("loss_fn", "real"),
    [
        (torch.nn.CrossEntropyLoss(), False),
        (torch.nn.NLLLoss(), False),
        (torch.nn.MSELoss(), True),
        (torch.nn.L1Loss(), True),
        (torch.nn.SmoothL1Loss(), True),
        (torch.nn.HuberLoss(), True),
        (torch.nn.BCELoss(), True),
        (torch.nn.BCEWithLogitsLoss(), True),
        (torch.nn.KLDivLoss(reduction="sum"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_losses_are_exported_as_an_operation_with_a_rule(loss_fn, real):
    class Loss(torch.nn.Module):
        def forward(self, z: Tensor, target: Tensor) -> Tensor:
            return loss_fn(z, target)

    target = torch.rand(4, 5) if real else torch.tensor([0, 1, 2, 3])
    graph = torch.export.export(Loss(), (torch.rand(4, 5), target), strict=False).graph
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    assert any(isinstance(operation, torch._ops.OpOverload) and find_rule(operation) for operation in called)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 10), (3, 1000), (5, 21, 18)])
def test_low_precision_rows_are_those_of_float64_to_rounding(dtype, shape):
    z, labels = logits_and_labels(shape)
    z = z.to(dtype)
    u = random(4, *shape, seed=1).to(dtype)
    given = (labels, class_weight(shape).float(), -100, 0.1)
    rows, exact = CrossEntropyRows(z, *given), CrossEntropyRows(z.double(), *given)
    a = random(4, rows.count, seed=2).float()
    # Arithmetic in float32: log_sum has an error of (classes / 16 + 16) eps, which is relative in p; the sums behind a
    # derivative have as much again, of terms bounded by the mass times |u|. One rounding to the dtype of the result.
    eps = (shape[1] / 8 + 32) * torch.finfo(torch.float32).eps
    mass, largest = float(exact.mass.max()), float(u.abs().max())
    assert (rows.loss - exact.loss).abs().max() <= eps * mass * (1 + float(exact.loss.max()) + float(z.abs().max()))
    assert (rows.jvp(u) - exact.jvp(u.double())).abs().max() <= 2 * eps * mass * largest
    for found, wanted in (
        (rows.vjp(a), exact.vjp(a.double())),
        (rows.product(rows.mass, u), exact.product(exact.mass, u.double())),
        (rows.product(rows.mass, u, a), exact.product(exact.mass, u.double(), a.double())),
    ):
        assert found.dtype == dtype
        scale = mass * (largest + float(a.abs().max()))
        assert ((found - wanted).abs() <= 2 * eps * scale + torch.finfo(dtype).eps / 2 * wanted.abs()).all()


@pytest.mark.parametrize("shape", [(300, 50), (40, 5, 21)])
def test_cross_entropy_has_the_same_bits_for_one_and_two_threads(shape):
    z, labels = (x.float() if x.is_floating_point() else x for x in logits_and_labels(shape))
    u, results = random(3, *shape, seed=1).float(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows = CrossEntropyRows(z, labels, smoothing=0.1)
        results.append((rows.loss, rows.jvp(u), rows.product(rows.mass, u, rows.jvp(u))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_large_logits_lose_no_digits():
    z = torch.tensor([[1e4, 1e4 - 1.0], [-1e4, -1e4 + 3.0]], dtype=torch.float32)
    loss = CrossEntropyRows(z, torch.tensor([0, 1])).loss
    assert torch.allclose(loss, functional.cross_entropy(z.double(), torch.tensor([0, 1]), reduction="none").float())


def test_masked_logits_and_ignored_rows_do_not_spoil_the_rest():
    z = torch.tensor([[0.5, float("-inf"), 1.0], [float("nan"), 0.0, 0.0], [float("inf"), 0.0, 0.0]]).double()
    rows = CrossEntropyRows(z, torch.tensor([0, -100, 1]), mean=False)
    u = random(2, 3, 3)
    product = rows.product(rows.mass, u)
    p = z[0].softmax(0)
    assert torch.allclose(product[:, 0], p * (u[:, 0] - (u[:, 0] @ p)[:, None]))
    assert (rows.loss[1], bool((product[:, 1] == 0).all())) == (0.0, True)
    assert torch.isnan(product[:, 2]).all()


def test_the_mean_over_no_target_is_nan():
    z, labels = torch.randn(2, 3), torch.tensor([-100, -100])
    for logits, target in ((z, labels), (z[:0], labels[:0])):
        args = all_arguments(aten.cross_entropy_loss.default, (logits, target), {})
        rule = find_rule(aten.cross_entropy_loss.default)((True, *[False] * (len(args) - 1)))
        assert torch.isnan(rule.forward(*args))
        assert rule.vjp(torch.ones(2))[0].shape == (2, *logits.shape)


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(RuntimeError, match=r"cross_entropy_forward: target must lie in 0\.\.2, got 3"):
        CrossEntropyRows(torch.randn(2, 3), torch.tensor([1, 3]))


def test_operators_pass_opcheck_and_name_bad_arguments():
    ops = torch.ops.lsfast
    z, target = torch.randn(4, 5, 3), torch.randint(0, 5, (4, 3))
    factor, u, a = torch.rand(4, 3), torch.randn(2, 4, 5, 3), torch.randn(2, 4, 3)
    given = (z, target, None, torch.rand(5), factor, 0.1)
    log_sum, mass, _ = ops.cross_entropy_forward(*given)
    torch.library.opcheck(ops.cross_entropy_forward.default, given)
    torch.library.opcheck(ops.cross_entropy_tangent.default, (*given, log_sum, mass, u))
    torch.library.opcheck(ops.cross_entropy_adjoint.default, (*given, log_sum, mass, a, mass, u))
    torch.library.opcheck(ops.cross_entropy_adjoint.default, (*given, log_sum, mass, a, None, None))
    torch.library.opcheck(ops.cross_entropy_adjoint_.default, (*given, log_sum, mass, None, mass, u))
    with pytest.raises(RuntimeError, match=r"logits must have shape \[outer, classes, inner\], got \[4, 5\]"):
        ops.cross_entropy_forward(z[..., 0], *given[1:])
    with pytest.raises(RuntimeError, match="logits must be a floating-point tensor, got torch.Int"):
        ops.cross_entropy_forward(z.int(), *given[1:])
    with pytest.raises(RuntimeError, match="target must be torch.Long, got torch.Int"):
        ops.cross_entropy_forward(z, target.int(), *given[2:])
    with pytest.raises(RuntimeError, match=r"tangents must have shape \[2, 4, 5, 3\], got \[2, 4, 5, 2\]"):
        ops.cross_entropy_tangent(*given, log_sum, mass, u[..., :2])
    with pytest.raises(RuntimeError, match="curvature must be given with tangents"):
        ops.cross_entropy_adjoint(*given, log_sum, mass, a, mass, None)
    with pytest.raises(RuntimeError, match="tangents must be contiguous"):
        ops.cross_entropy_adjoint_(*given, log_sum, mass, None, mass, u.movedim(2, 3).contiguous().movedim(3, 2))
