"""Rules of normalization: all four parts against torch.func in float64, for every choice of active arguments."""

import pytest
import torch
from program.rule_cases import check_rule

from lsfast.program.rules import find_rule

aten = torch.ops.aten


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("shape", "normalized"), [((4, 7), [7]), ((2, 3, 4, 5), [4, 5]), ((33,), [33]), ((40, 4), [4])]
)
def test_layer_and_rms_norm(shape, normalized):
    x, w, b = 3 * draw(*shape) + 1, draw(*normalized, seed=1), draw(*normalized, seed=2)
    check_rule(aten.layer_norm.default, x, normalized, w, b, 1e-3)
    check_rule(aten.layer_norm.default, x, normalized, w, None)
    check_rule(aten.layer_norm.default, x, normalized)
    check_rule(aten.rms_norm.default, x, normalized, w, 1e-3)
    check_rule(aten.rms_norm.default, x, normalized)


@pytest.mark.parametrize("shape", [(3, 6, 5, 2), (2, 6), (1, 6, 40), (3, 6, 1, 1)])
def test_group_and_instance_norm(shape):
    x, w, b = 2 * draw(*shape) + 1, draw(6, seed=1), draw(6, seed=2)
    for groups in (1, 2, 3):
        check_rule(aten.group_norm.default, x, groups, w, b, 1e-3)
    check_rule(aten.group_norm.default, x, 2)
    if x.dim() > 2:
        check_rule(aten.instance_norm.default, x, w, b, None, None, True, 0.1, 1e-3, False)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (7, 3), (150, 2), (2, 3, 40), (2, 300, 2)])
def test_batch_norm_with_batch_and_running_statistics(shape, layout):
    channels = shape[1]
    x, w, b = LAYOUTS[layout](2 * draw(*shape) + 1), draw(channels, seed=1), draw(channels, seed=2)
    check_rule(aten.batch_norm.default, x, w, b, None, None, True, 0.1, 1e-3, False)
    mean, variance = draw(channels, seed=3), draw(channels, seed=4).square() + 0.1
    eval_mode = (mean, variance, False, 0.1, 1e-3, False)
    check_rule(aten.batch_norm.default, x, w, b, *eval_mode, constants=(3, 4))
    check_rule(aten.batch_norm.default, x, None, None, *eval_mode, constants=(3, 4))
    if x.dim() > 2:
        check_rule(aten.instance_norm.default, x, w, b, *eval_mode, constants=(3, 4))


def test_running_statistics_are_left_as_they_are():
    x, w, b, mean, variance = draw(5, 3, 4), draw(3), draw(3), draw(3, seed=1), draw(3, seed=2).square()
    for operation in (aten.batch_norm.default, aten.instance_norm.default):
        rule = find_rule(operation)((True, True, True, *[False] * 6))
        before = mean.clone(), variance.clone()
        result = rule.forward(x, w, b, mean, variance, True, 0.1, 1e-3, False)
        assert torch.equal(result, operation(x, w, b, None, None, True, 0.1, 1e-3, False))
        assert torch.equal(mean, before[0])
        assert torch.equal(variance, before[1])
