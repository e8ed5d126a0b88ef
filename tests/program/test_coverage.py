"""No operation that the program engine promises a rule of its own for runs on a generic one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lsfast
from lsfast.program.rules import Rule, find_rule
from lsfast.program.rules.generic import Generic

aten = torch.ops.aten

OPERATIONS = [
    *(aten.linear.default, aten.matmul.default, aten.bmm.default, aten.addmm.default, aten.einsum.default),
    *(aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.embedding.default, aten.add.Tensor),
    *(aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.pow.Tensor_Scalar, aten.exp.default, aten.log.default),
    *(aten.sqrt.default, aten.rsqrt.default, aten.tanh.default, aten.sigmoid.default, aten.relu.default),
    *(aten.leaky_relu.default, aten.elu.default, aten.gelu.default, aten.silu.default, aten.softplus.default),
    *(aten.mish.default, aten.abs.default, aten.clamp.default, aten.where.self, aten.masked_fill.Scalar),
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.transpose.int),
    *(aten.permute.default, aten.t.default, aten.expand.default, aten.squeeze.dim, aten.unsqueeze.default),
    *(aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.contiguous.default, aten.clone.default),
    *(aten.cat.default, aten.stack.default, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default),
    *(aten.unbind.int, aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim),
    *(aten.var.default, aten.var.dim, aten.var.correction, aten.max_pool1d.default, aten.max_pool2d.default),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool1d.default),
    *(aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default, aten.dropout.default),
    *(aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default, aten.batch_norm.default),
    *(aten.softmax.int, aten.log_softmax.int, aten.logsumexp.default, aten.scaled_dot_product_attention.default),
    *(aten.cross_entropy_loss.default, aten.nll_loss_nd.default, aten.mse_loss.default, aten.l1_loss.default),
    *(aten.huber_loss.default, aten.smooth_l1_loss.default, aten.binary_cross_entropy_with_logits.default),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_the_operation_has_a_rule_of_its_own(operation):
    make = find_rule(operation)
    assert make is not None
    tensors = ("Tensor", "Tensor[]", "Optional[Tensor]")
    arguments = operation._schema.arguments
    first = next(
        i for i, argument in enumerate(arguments) if str(argument.type) in tensors or "Tensor" in str(argument.type)
    )
    active = tuple(
        ((True,) if "List" in str(argument.type) else True) if i == first else False
        for i, argument in enumerate(arguments)
    )
    rule = make(active)
    assert isinstance(rule, Rule)
    assert not isinstance(rule, Generic)


class Everything(nn.Module):
    """The rest: what is written in Python as a few operations."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding="same", groups=2)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.RMSNorm(8)])
        self.group, self.batch = nn.GroupNorm(2, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.3).eval()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, key_padding_mask=tokens == 0)[0]
        x = self.norms[1](self.norms[0](x) + F.scaled_dot_product_attention(x, x, x, is_causal=True))
        y = self.batch(self.group(self.conv(x.transpose(1, 2))))
        y = F.mish(F.gelu(y, approximate="tanh")) + F.elu(y) * F.softplus(y) - F.leaky_relu(y).abs()
        y = F.max_pool1d(y, 2) + F.adaptive_avg_pool1d(y, 3)
        a, b = self.dropout(y).chunk(2, 1)
        y = torch.cat([a / (1.0 + b**2).sqrt(), torch.einsum("bct,bdt->bct", a, b).clamp(-2.0, 2.0)], 1)
        y = y.masked_fill(y > 1.5, 0.5) + y.var(1, keepdim=True).rsqrt() + y.logsumexp(1, keepdim=True)
        return self.head(torch.where(y.mean(2) > 0, y.sum(2), torch.sigmoid(y[..., 0])))


def test_a_model_of_everything_has_no_generic_rule_and_right_products():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Everything().double()
    data = (torch.arange(24).reshape(4, 6) % 11, torch.tensor([0, 2, 1, 1]))
    pair = [
        lsfast.Objective(model, nn.CrossEntropyLoss(label_smoothing=0.1), data, engine=e)
        for e in ("program", "autograd")
    ]
    assert pair[0].explain().generic == ()
    rows = torch.randn(3, pair[0].n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = (lsfast.HessianOperator(objective).apply(rows) for objective in pair)
    assert (found - expected).norm() < 1e-11 * expected.norm()
