"""Products of quantized tensors: exact where arithmetic is exact, else within the bound of float32 accumulation."""

import ml_dtypes
import numpy as np
import pytest
import torch

import lsfast
from lsfast.quantization.matmul import _codes_times_scales

U = 2.0**-24  # half an ulp of float32, relatively
NVFP4 = ("nvfp4", "nvfp4_2d")
COMPATS = [lsfast.scheme("nvfp4").replace(compat=name) for name in ("torchao", "modelopt")]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(*shape, seed=0):
    """Normal numbers of magnitudes that differ from row to row and from block to block."""
    x = normal(*shape, seed=seed)
    return x * torch.exp(3 * normal(*shape[:-1], 1, seed=seed + 1)) * torch.exp(normal(*shape, seed=seed + 2))


def float64_product(a, b):
    """The product and the sum of magnitudes it is bounded by."""
    a, b = a.double(), b.double()
    return a @ b.T, a.abs() @ b.abs().T


def test_every_e2m1_times_e4m3_is_a_bfloat16_number():
    elements = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scales = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    products = np.multiply.outer(elements, scales[np.isfinite(scales)])
    assert products.size == 16 * 254
    assert np.array_equal(products.astype(ml_dtypes.bfloat16).astype(np.float64), products)
    # A product of two is a float32 number: 12 bits, from 2^-20 to 2688^2.
    distinct = np.unique(products)
    squares = np.multiply.outer(distinct, distinct)
    assert np.array_equal(squares.astype(np.float32).astype(np.float64), squares)


@pytest.mark.parametrize("scheme", [*NVFP4, *COMPATS], ids=str)
def test_codes_times_scales_are_exact_and_hold_no_tensor_scale(scheme):
    # The scale of the tensor comes to each number once more, in float32: three roundings and that of 1/2688.
    x = spread(48, 80)
    values, factor = _codes_times_scales(x, lsfast.scheme(scheme), None, 0)
    assert values.dtype == torch.bfloat16
    expected = lsfast.fake_quantize(x, scheme).double()
    assert torch.all((values.double() * factor - expected).abs() <= 4.01 * U * expected.abs())
    # 6 significant bits, none below 2^-10: an odd multiple of no less than 2^-10 that is below 64.
    scaled = values.double().abs() * 2**10
    assert torch.equal(scaled, scaled.round())
    mantissa = torch.frexp(scaled)[0] * 64
    assert torch.equal(mantissa, mantissa.round())


@pytest.mark.parametrize("w_scheme", [*NVFP4, None, *COMPATS], ids=str)
@pytest.mark.parametrize("x_scheme", NVFP4)
def test_nvfp4_is_the_product_of_the_quantized_to_float32_accumulation(x_scheme, w_scheme):
    for k in (16, 40, 512):
        x, w = spread(33, k, seed=1), spread(24, k, seed=5)
        found = lsfast.quantized_matmul(x, w, x_scheme, w_scheme)
        product, magnitude = float64_product(
            lsfast.fake_quantize(x, x_scheme), lsfast.fake_quantize(w, w_scheme or x_scheme)
        )
        # k products, each exact, k - 1 additions in some order; one rounding at the end; and the factors of the
        # operands as fake_quantize rounds them, 4 u each.
        bound = (k + 8) * U * 1.001 * magnitude
        assert torch.all((found.double() - product).abs() <= bound)


@pytest.mark.parametrize("name", [name for name in lsfast.schemes() if name not in NVFP4])
def test_other_schemes_are_the_product_of_the_quantized(name):
    x, w = spread(5, 7, 160, seed=1), spread(24, 160, seed=5)
    if name in ("fp16", "e2m1", "e4m3", "e3m2", "e2m3"):
        x, w = x.clamp(-4, 4), w.clamp(-4, 4)
    for other in (None, "nvfp4"):
        found = lsfast.quantized_matmul(x, w, name, other)
        product, magnitude = float64_product(
            lsfast.fake_quantize(x, name).flatten(0, 1), lsfast.fake_quantize(w, other or name)
        )
        # 160 products and 159 additions, each rounded once.
        bound = 161 * U * 1.001 * magnitude
        assert found.shape == (5, 7, 24)
        assert torch.all((found.double().flatten(0, 1) - product).abs() <= bound)


@pytest.mark.parametrize("scheme", [*NVFP4, *COMPATS, "mxfp4", "int4_g32", "fp32"], ids=str)
def test_small_integers_multiply_exactly(scheme):
    # Of -6 .. 6 E2M1 holds these, and with a 6 in each block its scale is 448, times 6/2688: one. Integers below 2^24.
    generator = torch.Generator().manual_seed(0)
    held = torch.tensor([-6.0, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6])
    x, w = (held[torch.randint(0, 11, (32, 64), generator=generator)] for _ in range(2))
    largest = 6.0
    if lsfast.scheme(scheme).element == "int4":
        largest = 7.0
    for tensor in (x, w):
        tensor[:, ::16] = largest
    assert torch.equal(lsfast.fake_quantize(x, scheme), x)
    assert torch.equal(lsfast.quantized_matmul(x, w, scheme).double(), x.double() @ w.double().T)


def test_the_factor_neither_overflows_nor_vanishes_before_the_product():
    x, w = normal(8, 32), normal(8, 32, seed=1)
    reference = lsfast.quantized_matmul(x, w, "nvfp4")
    for power in (60, 100, 110):
        up, down = 2.0**power, 2.0**-power
        assert torch.equal(lsfast.quantized_matmul(x * up, w * down, "nvfp4"), reference)
        far = lsfast.quantized_matmul(x * up, w * up, "nvfp4", out_dtype=torch.float64)
        assert torch.allclose(far, reference.double() * up * up, rtol=2 * U, atol=0)
        assert torch.equal(lsfast.quantized_matmul(x * up, 0 * w, "nvfp4"), torch.zeros(8, 8))


@pytest.mark.parametrize("scheme", ["nvfp4", "fp8_e4m3", "mxfp8_e4m3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_any_dtype_are_quantized_as_float32(dtype, scheme):
    x, w = normal(8, 64).to(dtype), normal(8, 64, seed=1).to(dtype)
    expected = lsfast.quantized_matmul(x.float(), w.float(), scheme)
    assert lsfast.quantized_matmul(x, w, scheme).dtype == dtype
    assert torch.equal(lsfast.quantized_matmul(x, w, scheme, out_dtype=torch.float32), expected)


def test_the_result_is_rounded_once_to_the_dtype_asked_for():
    x, w = normal(8, 64), normal(8, 64, seed=1)
    exact = lsfast.quantized_matmul(x, w, "nvfp4", out_dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(lsfast.quantized_matmul(x, w, "nvfp4", out_dtype=dtype), exact.to(dtype))


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "fp8_e4m3"])
def test_leading_axes_and_strides_do_not_matter(scheme):
    x, w = normal(6, 4, 32), normal(8, 32, seed=1)
    flat = lsfast.quantized_matmul(x.reshape(24, 32), w, scheme)
    assert torch.equal(lsfast.quantized_matmul(x, w, scheme).reshape(24, 8), flat)
    strided = torch.empty(32, 24).T.copy_(x.reshape(24, 32))
    assert torch.equal(lsfast.quantized_matmul(strided, torch.empty(32, 8).T.copy_(w), scheme), flat)
    one = lsfast.quantized_matmul(x[0, 0], w, scheme)
    assert one.shape == (8,)
    assert torch.equal(one, lsfast.quantized_matmul(x[0, :1], w, scheme)[0])


def test_two_dimensional_blocks_cover_the_last_two_axes_of_x_as_it_is():
    x, w = spread(3, 20, 32), normal(8, 32, seed=1)
    found = lsfast.quantized_matmul(x, w, "nvfp4_2d")
    product = lsfast.fake_quantize(x, "nvfp4_2d").double() @ lsfast.fake_quantize(w, "nvfp4_2d").double().T
    assert torch.allclose(found.double(), product, rtol=1e-4, atol=float(product.abs().max()) * 1e-6)


def test_a_hadamard_transform_of_both_leaves_the_product():
    scheme = lsfast.scheme("nvfp4").replace(hadamard=16)
    x, w = normal(16, 64), normal(8, 64, seed=1)
    found = lsfast.quantized_matmul(x, w, scheme)
    product, magnitude = float64_product(lsfast.fake_quantize(x, scheme), lsfast.fake_quantize(w, scheme))
    assert torch.all((found.double() - product).abs() <= (64 + 8) * U * 1.001 * magnitude)
    # Without rounding the transform, which is orthogonal, would leave the product exactly: only NVFP4's error is left.
    assert float((found - x @ w.T).norm() / (x @ w.T).norm()) < 0.2


def test_each_operand_draws_its_own_numbers():
    scheme = lsfast.scheme("nvfp4").replace(rounding="stochastic")
    x = normal(16, 64)
    found = lsfast.quantized_matmul(x, x, scheme, seed=7)
    assert torch.equal(found, lsfast.quantized_matmul(x, x, scheme, seed=7))
    assert not torch.equal(found, lsfast.quantized_matmul(x, x, scheme, seed=8))
    first, second = (lsfast.fake_quantize(x, scheme, seed=7, stream=stream) for stream in (0, 1))
    product, magnitude = float64_product(first, second)
    assert torch.all((found.double() - product).abs() <= (64 + 8) * U * 1.001 * magnitude)
    plain = lsfast.scheme("int8").replace(rounding="stochastic")
    first, second = (lsfast.fake_quantize(x, plain, seed=7, stream=stream) for stream in (0, 1))
    assert torch.equal(lsfast.quantized_matmul(x, x, plain, seed=7), first @ second.T)


def test_nan_and_infinity_stay_in_their_row_and_column():
    x, w = normal(4, 32), normal(8, 32, seed=1)
    whole = lsfast.quantized_matmul(x, w, "nvfp4")
    x[1, 3], w[6, 20] = float("nan"), float("inf")
    found = lsfast.quantized_matmul(x, w, "nvfp4")
    hit = torch.zeros(4, 8, dtype=torch.bool)
    hit[1], hit[:, 6] = True, True
    assert found[hit].isnan().all()
    assert found[~hit].isfinite().all()
    assert found.shape == whole.shape


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, w: lsfast.quantized_matmul(x.long(), w, "nvfp4"), ValueError, "x must be a floating-point tensor"),
        (lambda x, w: lsfast.quantized_matmul([1.0], w, "nvfp4"), TypeError, "x must be a tensor, got list"),
        (lambda x, w: lsfast.quantized_matmul(x, w.double(), "nvfp4"), ValueError, "w must have dtype torch.float32"),
        (
            lambda x, w: lsfast.quantized_matmul(x, w.T, "nvfp4"),
            ValueError,
            r"w must have shape \[n, 32\], got \[32, 8",
        ),
        (
            lambda x, w: lsfast.quantized_matmul(x, w[0], "nvfp4"),
            ValueError,
            r"w must have shape \[n, 32\], got \[32\]",
        ),
        (lambda x, w: lsfast.quantized_matmul(x, w[:0], "nvfp4"), ValueError, "w must have shape"),
        (lambda x, w: lsfast.quantized_matmul(x[:0], w, "nvfp4"), ValueError, "x must have shape .* and not be empty"),
        (lambda x, w: lsfast.quantized_matmul(x[0, 0], w, "nvfp4"), ValueError, r"x must have shape \[..., k\]"),
        (lambda x, w: lsfast.quantized_matmul(x, w, "nvfp5"), ValueError, "nearest is 'nvfp4'"),
        (lambda x, w: lsfast.quantized_matmul(x, w, "nvfp4", 4), TypeError, "name must be a string"),
        (
            lambda x, w: lsfast.quantized_matmul(x.clone().requires_grad_(), w, "nvfp4"),
            ValueError,
            r"x must not require grad, got one that does; give x.detach\(\)",
        ),
        (
            lambda x, w: lsfast.quantized_matmul(x, w.clone().requires_grad_(), "nvfp4"),
            ValueError,
            "w must not require grad",
        ),
        (
            lambda x, w: lsfast.quantized_matmul(x, w, "nvfp4", out_dtype=torch.int32),
            ValueError,
            "out_dtype must be float32, float64, bfloat16 or float16, got torch.int32",
        ),
        (
            lambda x, w: lsfast.quantized_matmul(x, w, "nvfp4", lsfast.scheme("nvfp4").replace(rounding="stochastic")),
            ValueError,
            "seed must be given",
        ),
        (lambda x, w: lsfast.quantized_matmul(x, w, "nvfp4", seed=-1), ValueError, "seed must be at least 0"),
        (
            lambda x, w: lsfast.quantized_matmul(x, w, "nvfp4", lsfast.scheme("nvfp4").replace(hadamard=16)),
            ValueError,
            "the same Hadamard transform, got sizes 0 and 16",
        ),
        (lambda x, w: lsfast.quantized_matmul(x[0], w, "nvfp4_2d"), ValueError, "16 x 16 needs an axis before"),
        (
            lambda x, w: lsfast.quantized_matmul(x, w / 0, lsfast.scheme("nvfp4").replace(nan="raise")),
            ValueError,
            "of w: x must be finite",
        ),
        (
            lambda x, w: lsfast.quantized_matmul(x[:, :8], w[:, :8], lsfast.scheme("nvfp4").replace(hadamard=16)),
            ValueError,
            "hadamard=16 must divide",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    x, w = normal(4, 32), normal(8, 32, seed=1)
    before = x.clone(), w.clone()
    with pytest.raises(error, match=message) as raised:
        call(x, w)
    assert "\n" not in str(raised.value)
    assert torch.equal(x, before[0])
    assert torch.equal(w, before[1])


def test_inputs_that_require_grad_are_taken_where_grad_is_off():
    x, w = normal(4, 32).requires_grad_(), normal(8, 32, seed=1)
    with torch.no_grad():
        assert not lsfast.quantized_matmul(x, w, "nvfp4").requires_grad
