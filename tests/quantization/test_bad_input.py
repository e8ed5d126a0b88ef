"""What fake_quantize and the schemes refuse, in one line that names the argument."""

import pytest
import torch

import lsfast
from lsfast.scheme_numbers import scheme_numbers


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
        (lambda x: lsfast.fake_quantize(x[0], "nvfp4_2d"), ValueError, "needs an axis before axis -1"),
        (lambda x: lsfast.fake_quantize(x, "nvfp4_2d", axis=0), ValueError, "needs an axis before axis 0"),
        (
            lambda x: lsfast.fake_quantize(x, lsfast.scheme("nvfp4").replace(hadamard=16)),
            ValueError,
            "hadamard=16 must divide the axis, got one of 40",
        ),
        (lambda x: lsfast.fake_quantize(x, "mxfp4", amax=1.0), ValueError, "amax is for schemes with one scale"),
        (lambda x: lsfast.fake_quantize(x, "nvfp4", amax=-1.0), ValueError, "amax must be finite and not negative"),
        (
            lambda x: lsfast.fake_quantize(x, "nvfp4", amax=x),
            ValueError,
            r"amax must be one number, got shape \[3, 40\]",
        ),
        (lambda x: lsfast.fake_quantize(x, "nvfp4", amax="1"), TypeError, "amax must be a number"),
        (lambda x: lsfast.fake_quantize(x, "nvfp4", statistics="column"), ValueError, "statistics must be one of"),
        (lambda x: lsfast.fake_quantize(x, "e4m3", statistics="block"), ValueError, "needs a scheme with blocks"),
        (
            lambda x: lsfast.fake_quantize(x.clone().requires_grad_(), "e4m3", statistics=True),
            ValueError,
            "statistics have no derivative",
        ),
        (
            lambda x: lsfast.fake_quantize(x / (x == x[0, 0]), lsfast.scheme("mxfp4").replace(nan="raise")),
            ValueError,
            r"x must be finite for nan='raise', got 119 NaN or Inf, first at \[0, 1\]",
        ),
        (lambda x: lsfast.scheme("nvfp4").replace(block=48), ValueError, "block must be None, 'tensor', 'row', one of"),
        (lambda x: lsfast.scheme("nvfp4").replace(block="row"), ValueError, "needs a block of fixed size"),
        (lambda x: lsfast.scheme("mxfp4").replace(scale_rule="round"), ValueError, "scale_rule of an e8m0 scale"),
        (lambda x: lsfast.scheme("mxfp4").replace(tensor_scale=True), ValueError, "tensor_scale goes with an e4m3"),
        (lambda x: lsfast.scheme("mxfp4").replace(element="bf16"), ValueError, "have at most 8 bits"),
        (lambda x: lsfast.scheme("int8").replace(element="mxint8"), ValueError, "mxint8 needs an e8m0 scale"),
        (lambda x: lsfast.scheme("mxfp4").replace(compat="modelopt"), ValueError, "compat with an e8m0 scale"),
        (lambda x: lsfast.scheme("mxfp4").replace(compat="marlin"), ValueError, "compat must be None"),
        (lambda x: lsfast.scheme("mxfp4").replace(overflow="inf"), ValueError, "a scaled scheme saturates"),
        (lambda x: lsfast.scheme("mxfp4").replace(hadamard=8), ValueError, "hadamard must be 0, 16, 32, 64 or 128"),
        (lambda x: lsfast.scheme("mxfp4").replace(hadamard_seed=-1), ValueError, "seed must be at least 0"),
        (lambda x: lsfast.scheme("e4m3").replace(scale="fp32"), ValueError, "without a block"),
        (lambda x: lsfast.scheme("e4m3").replace(element="int8"), ValueError, "int8 needs a block and a scale"),
        (lambda x: lsfast.scheme("nvfp4").replace(blocks=32), TypeError, "no attribute 'blocks'"),
        (lambda x: lsfast.scheme("e4m3").replace(random_bits=0), ValueError, "random_bits must be at least 1"),
        (lambda x: lsfast.scheme("e4m3").replace(rounding="up"), ValueError, "rounding must be one of"),
        (lambda x: lsfast.scheme("nvfp4").replace(element="e4m3"), ValueError, "hold e2m1, got"),
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
    good = scheme_numbers(lsfast.scheme("nvfp4"))
    where = (1, False, False, 0, 0)
    x = torch.randn(2, 16)
    with pytest.raises(RuntimeError, match="x must be float32"):
        torch.ops.lsfast.fake_quantize(x.long(), None, good, *where)
    with pytest.raises(RuntimeError, match="axis must lie in"):
        torch.ops.lsfast.fake_quantize(x, None, good, 2, *where[1:])
    with pytest.raises(RuntimeError, match="a scheme has 16 numbers, got 15"):
        torch.ops.lsfast.fake_quantize(x, None, good[:-1], *where)
    with pytest.raises(RuntimeError, match="out must have the shape of x"):
        torch.ops.lsfast.fake_quantize_out(x, None, torch.empty(3), None, 0, good, *where)
    with pytest.raises(RuntimeError, match="statistics must be a contiguous float64 tensor of 2 x 5"):
        torch.ops.lsfast.fake_quantize_out(x, None, torch.empty(2, 16), torch.zeros(3, 5), 2, good, *where)
    codes, scales, amax = torch.ops.lsfast.quantize(x, None, good, 1, 0, 0)
    with pytest.raises(RuntimeError, match="codes must be contiguous uint8 with 8 bytes a line"):
        torch.ops.lsfast.dequantize_out(codes[:, :4].contiguous(), scales, amax, torch.empty(2, 16), good)


@pytest.mark.parametrize("position", range(16))
def test_no_scheme_number_out_of_range_reaches_a_kernel(position):
    numbers = scheme_numbers(lsfast.scheme("nvfp4"))
    numbers = [1 << 40 if i == position else number for i, number in enumerate(numbers)]
    if position not in (7, 12, 13, 14, 15):  # a flag, and words of 32 bits
        with pytest.raises(RuntimeError, match="fake_quantize: "):
            torch.ops.lsfast.fake_quantize(torch.randn(2, 16), None, numbers, 1, False, False, 0, 0)
