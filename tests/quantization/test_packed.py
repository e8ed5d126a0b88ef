"""Packed tensors: the bits of fake_quantize in as few bytes as the format has, and files that are whole or refused."""

import dataclasses

import numpy as np
import pytest
import torch
from quantization.packing import codes_of, independent_dequantize, wild

import lsfast

ROUNDINGS = ["nearest", "stochastic", "toward_zero"]
UNSCALED = ["e2m2", "e3m3", "e4m2", "e5m0", "e8m3", "e8m7", "e5m12", "e8m16", "e3m0"]


def same(a, b):
    """Equal values with equal signs of zeros, NaN where NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and same_bits(a, b)


def same_bits(a, b):
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(a[~nan].signbit(), b[~nan].signbit()) and equal(a, b, ~nan)


def equal(a, b, where):
    return torch.equal(a[where], b[where])


def two_dimensional(scheme):
    return isinstance(scheme.block, tuple)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", [*lsfast.schemes(), *UNSCALED])
def test_dequantize_has_the_bits_of_fake_quantize(name, rounding):
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    for shape in [(40, 256), (7, 133), (3, 5, 17), (1, 1), (2, 3, 2, 33)]:
        x = wild(int(np.prod(shape[:-1])), shape[-1], seed=len(shape)).reshape(shape)
        expected = lsfast.fake_quantize(x, scheme, seed=5, stream=2)
        q = lsfast.quantize(x, scheme, seed=5, stream=2)
        assert same(q.dequantize(), expected)
        assert same(lsfast.dequantize(q), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", lsfast.schemes())
def test_every_dtype_comes_back(name, dtype):
    x = wild(18, 70).to(dtype)
    q = lsfast.quantize(x, name)
    assert q.dtype == dtype
    assert same(q.dequantize(), lsfast.fake_quantize(x, name))
    wide = q.dequantize(torch.float32)
    assert wide.dtype == torch.float32
    assert same(wide.to(dtype), q.dequantize())
    assert same(q.dequantize(torch.float64), wide.double())


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", lsfast.schemes())
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_blocks_along_any_axis_and_any_strides(name, axis, rounding):
    scheme = lsfast.scheme(name).replace(rounding=rounding)
    if two_dimensional(scheme) and axis in (0, -3):
        return
    x = wild(20, 35 * 18).reshape(20, 35, 18).permute(2, 0, 1)
    before = x.clone()
    q = lsfast.quantize(x, scheme, axis=axis, seed=3)
    assert same(q.dequantize(), lsfast.fake_quantize(x, scheme, axis=axis, seed=3))
    assert q.dequantize().is_contiguous()
    assert q.axis == axis % 3
    assert same(x, before)
    last = [q.axis - 1, q.axis] if two_dimensional(scheme) else [q.axis]
    order = [d for d in range(3) if d not in last] + last
    assert q.codes.shape[:-1] == x.permute(order).shape[:-1]


@pytest.mark.parametrize("name", ["nvfp4", "mxfp6_e2m3", "int4_g32", "fp8_e4m3", "e5m2"])
def test_a_number_is_a_line_of_one(name):
    x = torch.tensor(-1.3)
    q = lsfast.quantize(x, name)
    assert q.shape == ()
    assert same(q.dequantize(), lsfast.fake_quantize(x, name))


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "fp8_e4m3", "e4m3", "nvfp4_2d"])
@pytest.mark.parametrize("seed", [None, 4])
def test_with_a_transform_the_values_are_the_transformed(size, name, seed):
    scheme = lsfast.scheme(name).replace(hadamard=size, hadamard_seed=seed, rounding="stochastic")
    x = wild(6, 256)
    assert same(lsfast.quantize(x, scheme, seed=1).dequantize(), lsfast.fake_quantize(x, scheme, seed=1))
    columns = x.T.contiguous()
    if not two_dimensional(scheme):
        q = lsfast.quantize(columns, scheme, axis=0, seed=1)
        assert same(q.dequantize(), lsfast.fake_quantize(columns, scheme, axis=0, seed=1))


@pytest.mark.parametrize("compat", ["torchao", "modelopt"])
def test_other_libraries_arithmetic_comes_back(compat):
    for name in ("nvfp4", "nvfp4_2d"):
        scheme = lsfast.scheme(name).replace(compat=compat)
        for x in (wild(40, 100), torch.zeros(4, 40)):
            assert same(lsfast.quantize(x, scheme).dequantize(), lsfast.fake_quantize(x, scheme))


@pytest.mark.parametrize("name", ["fp8_e4m3_row", "mxfp6_e3m2", "mxfp4", "nvfp4", "nvfp4_2d", "mxint8"])
def test_nan_and_inf_stay_in_their_block(name):
    x = wild(20, 64)
    x[3, 40] = torch.nan
    x[11, 5] = torch.inf
    assert same(lsfast.quantize(x, name).dequantize(), lsfast.fake_quantize(x, name))


def test_nan_in_a_format_without_it_becomes_the_largest_code():
    x = torch.tensor([torch.nan, -torch.nan, 1.0, torch.inf, -torch.inf])
    for name, largest in (("e2m1", 6.0), ("e3m2", 28.0), ("e2m3", 7.5)):
        values = lsfast.quantize(x, name).dequantize()
        assert values[:2].abs().tolist() == [largest] * 2
        assert values[2:].tolist() == [1.0, largest, -largest]
    for name in ("e4m3", "e5m2", "bf16", "e8m3"):
        assert same(lsfast.quantize(x, name).dequantize(), lsfast.fake_quantize(x, name))
    # Neither int8 nor a float32 scale can say NaN: its row is scaled by 1, as fake_quantize does.
    x = torch.tensor([[3.0, torch.nan, -200.0], [1.0, 2.0, 127.0]])
    assert lsfast.quantize(x, "int8").dequantize().tolist() == [[3.0, 127.0, -127.0], [1.0, 2.0, 127.0]]
    assert lsfast.fake_quantize(x, "int8")[0, ::2].tolist() == [3.0, -127.0]


@pytest.mark.parametrize("name", lsfast.schemes())
@pytest.mark.parametrize("shape", [(33, 200), (16, 128), (5, 31)])
def test_codes_and_scales_mean_what_the_formats_say(name, shape):
    q = lsfast.quantize(wild(*shape), name)
    assert same(independent_dequantize(q), q.dequantize())
    if len(shape) == 2 and not two_dimensional(q.scheme):
        turned = lsfast.quantize(wild(*shape).T, name, axis=0)
        assert torch.equal(turned.codes, q.codes)


def test_two_4_bit_codes_make_a_byte_the_low_nibble_first():
    x = torch.tensor([[0.0, 0.5, 1.0, 1.5, -2.0], [3.0, 4.0, 6.0, -6.0, -0.0]])
    codes = lsfast.quantize(x, "e2m1").codes
    assert codes.tolist() == [[0x10, 0x32, 0x0C], [0x65, 0xF7, 0x08]]


def test_four_6_bit_codes_make_three_bytes():
    x = torch.tensor([0.125, 1.0, -7.5, 7.5, -0.0, 0.25])  # codes 1, 8, 63, 31, 32, 2
    packed = 1 | 8 << 6 | 63 << 12 | 31 << 18 | 32 << 24 | 2 << 30
    assert bytes(lsfast.quantize(x, "e2m3").codes.tolist()) == packed.to_bytes(5, "little")


@pytest.mark.parametrize(
    ("name", "codes", "scales", "amax"),
    [
        ("nvfp4", 5 * 20, 5 * 3, 4),
        ("nvfp4_2d", 5 * 20, 1 * 3, 4),
        ("mxfp4", 5 * 20, 5 * 2, 0),
        ("mxfp6_e3m2", 5 * 30, 5 * 2, 0),
        ("mxfp8_e4m3", 5 * 40, 5 * 2, 0),
        ("fp8_e4m3", 5 * 40, 4, 4),
        ("fp8_e4m3_row", 5 * 40, 5 * 4, 0),
        ("int4_g32", 5 * 20, 5 * 2 * 4, 0),
        ("e2m2", 5 * 25, 0, 0),
        ("e5m10", 5 * 80, 0, 0),
        ("e8m10", 5 * 160, 0, 0),
    ],
)
def test_bytes_are_those_of_codes_scales_and_amax(name, codes, scales, amax):
    q = lsfast.quantize(torch.randn(5, 40), name)
    assert q.codes.nbytes == codes
    assert (0 if q.scales is None else q.scales.nbytes) == scales
    assert (0 if q.amax is None else q.amax.nbytes) == amax
    assert q.nbytes == codes + scales + amax
    assert "nbytes=" in repr(q)
    assert "tensor(" not in repr(q)


def test_the_tensor_scale_is_amax_over_2688():
    x = wild(8, 64)
    q = lsfast.quantize(x, "nvfp4")
    assert torch.equal(q.amax, x.abs().max())
    assert torch.equal(q.tensor_scale, x.abs().max() / 2688)
    assert q.tensor_scale.shape == ()
    for name in ("fp8_e4m3", "mxfp4", "e2m1"):
        assert lsfast.quantize(x, name).tensor_scale is None


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_2d", "fp8_e4m3", "fp8_e5m2"])
def test_a_given_amax_takes_the_place_of_the_tensors(name):
    x = wild(8, 64)
    largest = x.abs().max()
    for amax in (largest * 3, float(largest) * 3, (largest / 5).double(), torch.tensor([7.0]), 0.0):
        q = lsfast.quantize(x, name, amax=amax)
        assert float(q.amax) == float(torch.tensor(float(amax)))
        assert same(q.dequantize(), lsfast.fake_quantize(x, name, amax=amax))
    given = largest.clone()
    q = lsfast.quantize(x, name, amax=given)
    given.fill_(0.0)
    assert torch.equal(q.amax, largest)
    assert torch.equal(lsfast.quantize(x, name, amax=largest).codes, lsfast.quantize(x, name).codes)
    assert not torch.equal(lsfast.quantize(x, name, amax=largest * 3).codes, lsfast.quantize(x, name).codes)


def test_draws_depend_on_seed_and_stream():
    scheme = lsfast.scheme("mxfp4").replace(rounding="stochastic")
    x = wild(8, 64)
    codes = [lsfast.quantize(x, scheme, seed=a, stream=b).codes for a, b in [(0, 0), (1, 0), (0, 1), (0, 0)]]
    assert torch.equal(codes[0], codes[3])
    assert not torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_bits_do_not_depend_on_the_number_of_threads():
    x = wild(300, 515)
    for name in ("nvfp4", "nvfp4_2d", "mxfp6_e2m3", "fp8_e4m3_128x128", "e2m2"):
        torch.set_num_threads(1)
        one = lsfast.quantize(x, name)
        value = one.dequantize()
        torch.set_num_threads(2)
        two = lsfast.quantize(x, name)
        assert torch.equal(one.codes, two.codes)
        assert one.scales is None or torch.equal(one.scales.view(torch.uint8), two.scales.view(torch.uint8))
        assert torch.equal(two.dequantize(), value)


def test_a_tensor_that_requires_a_gradient_is_quantized_without_one():
    x = torch.randn(4, 32, requires_grad=True)
    q = lsfast.quantize(x, "nvfp4")
    assert not q.dequantize().requires_grad
    assert same(q.dequantize(), lsfast.fake_quantize(x, "nvfp4").detach())


def test_torch_compile_takes_it_whole():
    x = wild(8, 100)

    def there_and_back(x):
        return lsfast.quantize(x, "nvfp4").dequantize() * 2

    assert torch.equal(torch.compile(there_and_back, fullgraph=True)(x), there_and_back(x))


@pytest.mark.parametrize("name", lsfast.schemes())
def test_operators_pass_opcheck(name):
    from lsfast.scheme_numbers import scheme_numbers

    x, numbers = wild(18, 70), scheme_numbers(lsfast.scheme(name))
    torch.library.opcheck(torch.ops.lsfast.quantize.default, (x, None, numbers, 1, 0, 0))
    codes, scales, amax = torch.ops.lsfast.quantize(x, None, numbers, 1, 0, 0)
    if amax.numel():
        torch.library.opcheck(torch.ops.lsfast.quantize.default, (x, amax, numbers, 1, 0, 0))
    out = torch.empty_like(x)
    torch.library.opcheck(torch.ops.lsfast.dequantize_out.default, (codes, scales, amax, out, numbers))


@pytest.mark.parametrize("name", [*lsfast.schemes(), "e2m2", "e8m3"])
def test_a_file_gives_back_what_was_saved(name, tmp_path):
    x = wild(18, 70).to(torch.bfloat16)
    scheme = lsfast.scheme(name).replace(rounding="stochastic", random_bits=8)
    q = lsfast.quantize(x.reshape(2, 9, 70), scheme, axis=1, seed=0)
    q.save(tmp_path / "q.safetensors")
    back = lsfast.QuantizedTensor.load(tmp_path / "q.safetensors")
    assert same(back.dequantize(), q.dequantize())
    for field in dataclasses.fields(q):
        ours, theirs = getattr(q, field.name), getattr(back, field.name)
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))
        else:
            assert ours == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]


def test_a_file_of_several_is_read_by_name_by_us_and_by_safetensors(tmp_path):
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    tied = lsfast.quantize(wild(8, 64), "nvfp4")
    saved = {"embed.weight": tied, "head.weight": tied, "norm": lsfast.quantize(torch.randn(9), "bf16")}
    lsfast.save_quantized(path, saved)
    loaded = lsfast.load_quantized(path)
    assert list(loaded) == list(saved)
    for name, q in saved.items():
        assert same(loaded[name].dequantize(), q.dequantize())
    plain = safetensors.torch.load_file(path)
    assert torch.equal(plain["head.weight.codes"], tied.codes)
    assert set(plain) == {f"{n}.{p}" for n in ("embed.weight", "head.weight") for p in ("codes", "scales", "amax")} | {
        "norm.codes"
    }
    with pytest.raises(ValueError, match="must hold one tensor, got 3"):
        lsfast.QuantizedTensor.load(path)
    lsfast.save_quantized(path, {})
    assert lsfast.load_quantized(path) == {}


def test_a_torn_or_damaged_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "q.safetensors"
    lsfast.quantize(wild(2, 40), "nvfp4").save(path)
    whole = path.read_bytes()
    torn = [whole[:end] for end in range(0, len(whole), 7)]
    damaged = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for contents in [*torn, *damaged, whole + b"\0", b"PK\3\4", b"[1, 2]"]:
        path.write_bytes(contents)
        with pytest.raises(ValueError, match="QuantizedTensor.load: path must be a whole file") as raised:
            lsfast.QuantizedTensor.load(path)
        assert "\n" not in str(raised.value)
    path.write_bytes(whole)
    lsfast.QuantizedTensor.load(path)


def test_another_programs_or_a_newer_file_is_refused(tmp_path):
    import safetensors.torch

    path = tmp_path / "q.safetensors"
    for metadata, message in [
        (None, "another program's safetensors file"),
        ({"format": "pt"}, "another program's safetensors file"),
        ({"format": "lsfast.quantized", "version": "2"}, "its version is '2'"),
    ]:
        safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata)
        with pytest.raises(ValueError, match=message):
            lsfast.load_quantized(path)
    with pytest.raises(FileNotFoundError):
        lsfast.load_quantized(tmp_path / "none.safetensors")


def test_parts_that_do_not_fit_are_refused():
    q = lsfast.quantize(wild(8, 64), "nvfp4")
    for change, message in [
        ({"codes": q.codes[:, 1:]}, r"codes of 'nvfp4' must be \[8, 32\] torch.uint8, got \[8, 31\]"),
        ({"codes": q.codes.int()}, "got .* torch.int32"),
        ({"scales": q.scales.view(torch.uint8)}, r"scales of 'nvfp4' must be \[8, 4\] torch.float8_e4m3fn"),
        ({"scales": None}, "got None"),
        ({"amax": None}, r"amax of 'nvfp4' must be \[\] torch.float32, got None"),
        ({"scheme": lsfast.scheme("mxfp4")}, "scales of 'mxfp4' must be"),
        ({"shape": torch.Size([8, 66])}, "codes of 'nvfp4'"),
        ({"axis": 2}, "axis must be one of shape"),
        ({"axis": -1}, "axis must be one of shape"),
        ({"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(q, **change)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: lsfast.quantize([1.0], "nvfp4"), TypeError, "x must be a tensor, got list"),
        (lambda x: lsfast.quantize(x.long(), "nvfp4"), ValueError, "x must be a floating-point tensor"),
        (lambda x: lsfast.quantize(x.to(torch.complex64), "e4m3"), ValueError, "x must be a floating-point tensor"),
        (lambda x: lsfast.quantize(x.double(), "nvfp4"), ValueError, "got torch.float64; fake_quantize takes"),
        (lambda x: lsfast.quantize(x.to(torch.float8_e5m2), "nvfp4"), ValueError, "x must be float32, bfloat16"),
        (lambda x: lsfast.quantize(x[:0], "nvfp4"), ValueError, "x must not be empty"),
        (lambda x: lsfast.quantize(x, "nvfp5"), ValueError, "nearest is 'nvfp4'"),
        (lambda x: lsfast.quantize(x, 4), TypeError, "name must be a string"),
        (lambda x: lsfast.quantize(x, "nvfp4", axis=2), ValueError, r"axis must lie in -2..1, got 2"),
        (lambda x: lsfast.quantize(x, "nvfp4", axis=1.0), TypeError, "axis must be an integer"),
        (lambda x: lsfast.quantize(x[0], "nvfp4_2d"), ValueError, "a block of 16 x 16 needs an axis before"),
        (lambda x: lsfast.quantize(x, "nvfp4_2d", axis=0), ValueError, "a block of 16 x 16 needs an axis before"),
        (
            lambda x: lsfast.quantize(x, lsfast.scheme("nvfp4").replace(rounding="stochastic")),
            ValueError,
            "seed must be given",
        ),
        (lambda x: lsfast.quantize(x, "nvfp4", seed=-1), ValueError, "seed must be at least 0"),
        (lambda x: lsfast.quantize(x, "nvfp4", stream=-1), ValueError, "stream must be at least 0"),
        (lambda x: lsfast.quantize(x, "mxfp4", amax=1.0), ValueError, "amax is for schemes with one scale for"),
        (lambda x: lsfast.quantize(x, "nvfp4", amax="1"), TypeError, "amax must be a number or a tensor of one"),
        (lambda x: lsfast.quantize(x, "nvfp4", amax=-1.0), ValueError, "amax must be finite and not negative"),
        (lambda x: lsfast.quantize(x, "nvfp4", amax=float("nan")), ValueError, "amax must be finite"),
        (lambda x: lsfast.quantize(x, "nvfp4", amax=x), ValueError, "amax must be one number, got shape"),
        (
            lambda x: lsfast.quantize(x, lsfast.scheme("nvfp4").replace(hadamard=16)),
            ValueError,
            "hadamard=16 must divide the axis, got one of 40",
        ),
        (
            lambda x: lsfast.quantize(x / 0, lsfast.scheme("nvfp4").replace(nan="raise")),
            ValueError,
            "x must be finite",
        ),
        (lambda x: lsfast.quantize(x, "nvfp4").dequantize(torch.int8), ValueError, "dtype must be float32"),
        (lambda x: lsfast.dequantize(x), TypeError, "q must be a QuantizedTensor, got Tensor"),
        (lambda x: lsfast.save_quantized("none", {"x": x}), TypeError, "must map names to QuantizedTensors"),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with pytest.raises(error, match=message) as raised:
        call(x)
    assert "\n" not in str(raised.value)
    assert torch.equal(x, before)


def test_codes_of_stochastic_rounding_are_next_to_each_other():
    x = wild(4, 64)[1:3]
    scheme = lsfast.scheme("e4m3").replace(rounding="stochastic")
    down = codes_of(lsfast.quantize(x, lsfast.scheme("e4m3").replace(rounding="toward_zero"))).astype(int)
    drawn = codes_of(lsfast.quantize(x, scheme, seed=0)).astype(int)
    assert set(np.unique(drawn - down)) == {0, 1}
