"""Packed codes and scales are torchao's, the swizzled scales cuBLAS's, and torch computes with what to_torch gives."""

import numpy as np
import pytest
import torch
from quantization.packing import codes_of, wild
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize
from torchao.prototype.mx_formats.utils import from_blocked, to_blocked

import lsfast

MX_ELEMENTS = {
    "mxfp8_e4m3": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e3m2": DTYPE_FP6_E3M2,
    "mxfp6_e2m3": DTYPE_FP6_E2M3,
    "mxfp4": torch.float4_e2m1fn_x2,
}


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (128, 4), (127, 5), (129, 3), (300, 17), (256, 8)])
def test_swizzled_scales_are_those_of_torchao_and_come_back(rows, blocks):
    numbers = torch.randint(0, 256, (rows, blocks), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for dtype in (torch.uint8, torch.float8_e4m3fn, torch.float8_e8m0fnu):
        scales = numbers.view(dtype)
        swizzled = lsfast.swizzle_scales(scales)
        assert swizzled.dtype == dtype
        assert torch.equal(swizzled.view(torch.uint8), to_blocked(numbers))
        back = lsfast.unswizzle_scales(swizzled, rows, blocks)
        assert back.dtype == dtype
        assert torch.equal(back.view(torch.uint8), numbers)
        assert torch.equal(from_blocked(swizzled.view(torch.uint8), rows, blocks), numbers)


def test_swizzled_scales_lie_where_the_documented_formula_says():
    numbers = torch.arange(128 * 4).reshape(128, 4) % 251
    swizzled = lsfast.swizzle_scales(numbers.to(torch.uint8))
    for row in range(128):
        for block in range(4):
            assert swizzled[16 * (row % 32) + 4 * (row // 32) + block] == numbers[row, block]


def test_swizzled_scales_take_any_strides():
    numbers = torch.randint(0, 256, (6, 150), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).T
    assert torch.equal(lsfast.swizzle_scales(numbers), lsfast.swizzle_scales(numbers.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("two_levels", [True, False])
def test_nvfp4_codes_and_scales_are_those_of_torchao(dtype, two_levels):
    scheme = lsfast.scheme("nvfp4").replace(compat="torchao", tensor_scale=two_levels)
    for seed in range(5):
        x = wild(64, 160, seed=seed).to(dtype)
        q = lsfast.quantize(x, scheme)
        tensor_scale = x.abs().amax().float() / 2688 if two_levels else None
        scales, codes = nvfp4_quantize(x, per_tensor_scale=tensor_scale)
        assert (q.tensor_scale is None) == (tensor_scale is None)
        assert tensor_scale is None or torch.equal(q.tensor_scale, tensor_scale)
        assert torch.equal(q.scales.view(torch.uint8), scales.reshape(64, 10).view(torch.uint8))
        assert torch.equal(q.codes, codes)


@pytest.mark.parametrize("name", list(MX_ELEMENTS))
@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
def test_mx_codes_and_scales_are_those_of_torchao(name, rule):
    scheme = lsfast.scheme(name).replace(scale_rule=rule, compat="torchao")
    for seed in range(3):
        x = wild(48, 320, seed=seed)
        q = lsfast.quantize(x, scheme)
        scales, values = to_mx(x, MX_ELEMENTS[name], 32, ScaleCalculationMode[rule.upper()])
        assert torch.equal(q.scales.view(torch.uint8), scales.view(torch.uint8))
        codes = torch.from_numpy(codes_of(q).astype(np.uint8)) if "fp6" in name else q.codes
        assert torch.equal(codes, values.view(torch.uint8))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
        ("mxfp8_e4m3", torch.float8_e4m3fn),
        ("mxfp8_e5m2", torch.float8_e5m2),
        ("int8", torch.int8),
    ],
)
def test_an_element_of_to_torch_times_its_scale_is_the_number_meant(name, dtype):
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    q = lsfast.quantize(x, name)
    values, scales = q.to_torch()
    assert values.dtype == dtype
    assert values.shape == x.shape
    wide = scales.float() if scales.dim() == 1 else scales.float().repeat_interleave(96 // scales.shape[-1], dim=-1)
    assert torch.equal(values.float() * wide, q.dequantize())
    assert values.data_ptr() == q.codes.data_ptr()


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "e2m1"])
def test_two_e2m1_codes_make_one_torch_element(name):
    q = lsfast.quantize(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), name, axis=0)
    values, scales = q.to_torch()
    assert values.dtype == torch.float4_e2m1fn_x2
    assert values.shape == (6, 32)
    assert torch.equal(values.view(torch.uint8), q.codes)
    expected = {"nvfp4": torch.float8_e4m3fn, "mxfp4": torch.float8_e8m0fnu}
    assert scales is None if name == "e2m1" else scales.dtype == expected[name]


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_elements_that_are_torch_dtypes_are_the_casts(name):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    values, scales = lsfast.quantize(x, name).to_torch()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    assert scales is None
    assert values.dtype == dtype
    assert torch.equal(values, x.to(dtype))


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e4m3_row"])
def test_scaled_mm_takes_what_to_torch_gives(name):
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(32, 64, generator=generator), torch.randn(48, 64, generator=generator)
    qx, qw = lsfast.quantize(x, name), lsfast.quantize(w, name)
    (left, left_scale), (right, right_scale) = qx.to_torch(), qw.to_torch()
    result = torch._scaled_mm(
        left, right.T, scale_a=left_scale, scale_b=right_scale.reshape(1, -1), out_dtype=torch.float32
    )
    exact = qx.dequantize().double() @ qw.dequantize().double().T
    # Products of two E4M3 numbers are exact; 64 additions, two scales and their products round, in float32.
    limit = 70 * 2.0**-24 * (qx.dequantize().double().abs() @ qw.dequantize().double().abs().T)
    assert ((result.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lsfast.quantize(torch.ones(2, 32), "mxfp6_e3m2").to_torch(), ValueError, "to_torch: scheme must have"),
        (lambda: lsfast.quantize(torch.ones(2, 32), "mxint8").to_torch(), ValueError, "got 'mxint8'"),
        (lambda: lsfast.quantize(torch.ones(2, 64), "nf4_g64").to_torch(), ValueError, "got 'nf4'"),
        (lambda: lsfast.quantize(torch.ones(2, 31), "mxfp4").to_torch(), ValueError, "odd length 31"),
        (lambda: lsfast.swizzle_scales([1]), TypeError, "scales must be a tensor, got list"),
        (lambda: lsfast.swizzle_scales(torch.ones(2, 2)), ValueError, "scales must be uint8, float8_e4m3fn or"),
        (lambda: lsfast.swizzle_scales(torch.ones(2, dtype=torch.uint8)), ValueError, "must be a matrix"),
        (lambda: lsfast.swizzle_scales(torch.ones(0, 2, dtype=torch.uint8)), ValueError, "must be a matrix"),
        (
            lambda: lsfast.unswizzle_scales(torch.ones(512, dtype=torch.uint8), 129, 4),
            ValueError,
            "must have 1024 scales for 129 rows and 4 blocks, got 512",
        ),
        (lambda: lsfast.unswizzle_scales(torch.ones(0, dtype=torch.uint8), 0, 4), ValueError, "for 0 rows"),
        (lambda: lsfast.unswizzle_scales(torch.ones(512), 1, 1), ValueError, "swizzled must be uint8"),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
