"""What fake_quantize and the schemes refuse, in one line that names the argument."""

import pytest
import torch

import lsfast


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: lsfast.fake_quantize(x.long(), "e4m3"), ValueError, "x must be a floating-point tensor"),
        (
            lambda x: lsfast.fake_quantize(x.to(torch.complex64), "e4m3"),
            ValueError,
            "x must be a floating-point tensor",
        ),
        (lambda x: lsfast.fake_quantize([1.0], "e4m3"), TypeError, "x must be a tensor, got list"),
        (lambda x: lsfast.fake_quantize(x[:0], "e4m3"), ValueError, "x must not be empty"),
        (lambda x: lsfast.fake_quantize(x, "nvfp5"), ValueError, "nearest is 'nvfp4'"),
        (lambda x: lsfast.fake_quantize(x, "e9m3"), ValueError, "X in 2..8"),
        (lambda x: lsfast.fake_quantize(x, "e8m0"), ValueError, "e8m0 holds scales only"),
        (lambda x: lsfast.fake_quantize(x, 4), TypeError, "name must be a string"),
        (lambda x: lsfast.fake_quantize(x, "nvfp4", axis=2), ValueError, r"axis must lie in -2..1, got 2"),
        (lambda x: lsfast.fake_quantize(x, "nvfp4", axis=1.0), TypeError, "axis must be an integer"),
        (
            lambda x: lsfast.fake_quantize(x, lsfast.scheme("e4m3").replace(rounding="stochastic")),
            ValueError,
            "seed must be given",
        ),
        (lambda x: lsfast.fake_quantize(x, "e4m3", seed=-1), ValueError, "seed must be at least 0"),
        (lambda x: lsfast.fake_quantize(x, "e4m3", seed=2**63), ValueError, "seed must be below"),
        (lambda x: lsfast.fake_quantize(x, "e4m3", out=x[:1]), ValueError, r"out must have shape \[3, 40\]"),
        (lambda x: lsfast.fake_quantize(x, "e4m3", out=x.double()), ValueError, "out must have dtype"),
        (lambda x: lsfast.fake_quantize(x, "e4m3", out=torch.empty(40, 3).T), ValueError, "out must be contiguous"),
        (
            lambda x: lsfast.fake_quantize(x.reshape(-1)[:60], "e4m3", out=x.reshape(-1)[30:90]),
            ValueError,
            "must not share its memory",
        ),
        (
            lambda x: lsfast.fake_quantize(x.clone().requires_grad_(), "e4m3", out=torch.empty_like(x)),
            ValueError,
            "out= has no derivative",
        ),
        (lambda x: lsfast.scheme("nvfp4").replace(block=32), ValueError, "block, scale, tensor_scale"),
        (lambda x: lsfast.scheme("nvfp4").replace(blocks=32), TypeError, "no attribute 'blocks'"),
        (lambda x: lsfast.scheme("e4m3").replace(random_bits=0), ValueError, "random_bits must be at least 1"),
        (lambda x: lsfast.scheme("e4m3").replace(rounding="up"), ValueError, "rounding must be one of"),
        (lambda x: lsfast.scheme("nvfp4").replace(element="e4m3"), ValueError, "hold e2m1"),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with pytest.raises(error, match=message) as raised:
        call(x)
    assert "\n" not in str(raised.value)
    assert torch.equal(x, before)


def test_the_operator_checks_for_itself():
    good = (2, 1, 0, 2, 0, 32, 0, 1, False, False, 0, 0)
    x = torch.randn(2, 16)
    with pytest.raises(RuntimeError, match="x must be float32"):
        torch.ops.lsfast.fake_quantize(x.long(), *good)
    with pytest.raises(RuntimeError, match="axis must lie in"):
        torch.ops.lsfast.fake_quantize(x, *good[:7], 2, *good[8:])
    with pytest.raises(RuntimeError, match="out must have the shape of x"):
        torch.ops.lsfast.fake_quantize_out(x, torch.empty(3), *good)
