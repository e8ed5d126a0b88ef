"""`lsfast quantize`: what it measures in a checkpoint, what it leaves out, what it refuses, and what it writes."""

import builtins
import json
import math
import pickle
import weakref

import pytest
import safetensors
import torch
from safetensors.torch import save_file

import lsfast
from lsfast import cli
from lsfast.studies import CheckpointTable, quantize_checkpoint
from lsfast.studies.checkpoint import stored_bits


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


TENSORS = {
    "layers.0.attention.weight": normal(24, 40, seed=1),
    "layers.2.mlp.weight": normal(40, 32, seed=2, dtype=torch.bfloat16),
    "layers.10.mlp.weight": normal(32, 40, seed=3, dtype=torch.float16),
    "stem.conv.weight": normal(8, 3, 5, 5, seed=4),
    "patch_embed.proj.weight": normal(8, 3, 4, 4, seed=5),
    "layers.0.attention.bias": normal(24, seed=6),
    "layers.0.norm.weight": normal(40, seed=7),
    "cls_token": normal(1, 1, 40, seed=8),
    "token_embedding.weight": normal(50, 40, seed=9),
    "lm_head.weight": normal(50, 40, seed=10),
    "attention.bias": normal(1, 1, 16, 16, seed=11),
    "position_ids": torch.arange(16).reshape(2, 8),
    "mask": torch.ones(4, 4, dtype=torch.bool),
    "empty": torch.empty(0, 4),
}
QUANTIZED = [
    "layers.0.attention.weight",
    "layers.2.mlp.weight",
    "layers.10.mlp.weight",
    "patch_embed.proj.weight",
    "stem.conv.weight",
]
REASONS = {
    "attention.bias": "a bias",
    "cls_token": "one dimension",
    "empty": "empty",
    "layers.0.attention.bias": "one dimension",
    "layers.0.norm.weight": "one dimension",
    "lm_head.weight": "the head",
    "mask": "BOOL, not float64, float32, float16 or bfloat16",
    "position_ids": "I64, not float64, float32, float16 or bfloat16",
    "token_embedding.weight": "an embedding",
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "fp8_e4m3", "int8", "nvfp4_2d", "e5m2"])
def test_each_row_is_what_the_scheme_did_to_the_tensor(file, scheme, axis):
    table = quantize_checkpoint(file, [scheme], axis=axis)
    assert list(table.names) == QUANTIZED
    for name in QUANTIZED:
        matrix = TENSORS[name].float().flatten(1)
        matrix = matrix if axis == 1 else matrix.T.contiguous()
        y = lsfast.fake_quantize(matrix, scheme)
        error = (y.double() - matrix.double()).square().sum()
        row = table[name, scheme]
        assert row.shape == tuple(TENSORS[name].shape)
        assert row.count == matrix.numel()
        # Each difference is rounded to float32 before it is squared, by 2^-24 of itself at most.
        assert row.squared_error == pytest.approx(float(error), rel=2.01 * 2.0**-24)
        assert row.sqnr == pytest.approx(10 * math.log10(float(matrix.double().square().sum()) / row.squared_error))
        assert row.flushed == int(((y == 0) & (matrix != 0)).sum())
        assert row.largest == float(matrix.abs().max())


def test_saturation_is_counted(tmp_path):
    weight = normal(16, 32)
    weight[:, 0] = 1000.0
    save_file({"w": weight}, tmp_path / "m.safetensors")
    row = quantize_checkpoint(tmp_path / "m.safetensors", ["e4m3"])["w", "e4m3"]
    assert (row.saturated, row.count) == (16, 512)


def test_a_narrow_tensor_is_measured_by_the_format_and_not_by_how_it_was_stored(file):
    # Rounding to bfloat16 afterwards would add an error of its own: none is added to numbers int8 can hold.
    tensor = TENSORS["layers.2.mlp.weight"]
    stored = lsfast.fake_quantize(tensor, "int8").float()
    exact = lsfast.fake_quantize(tensor.float(), "int8")
    assert not torch.equal(stored, exact)
    error = (exact.double() - tensor.double()).square().sum()
    assert quantize_checkpoint(file, ["int8"])["layers.2.mlp.weight", "int8"].squared_error == pytest.approx(
        float(error), rel=2.01 * 2.0**-24
    )


def test_what_is_left_out_is_listed_with_the_reason(file):
    table = quantize_checkpoint(file, ["nvfp4"])
    assert {each.name: each.reason for each in table.left_out} == REASONS
    assert {each.name: each.shape for each in table.left_out} == {n: tuple(TENSORS[n].shape) for n in REASONS}
    text = str(table)
    assert "left out: 9 tensors" in text
    for name, reason in REASONS.items():
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert line.endswith(reason)


def test_include_takes_the_place_of_names_but_not_of_shapes(file):
    table = quantize_checkpoint(file, ["nvfp4"], include=["lm_*", "layers.0.*"])
    assert table.names == ("layers.0.attention.weight", "lm_head.weight")
    reasons = {each.name: each.reason for each in table.left_out}
    assert reasons["layers.0.attention.bias"] == "one dimension"
    assert reasons["stem.conv.weight"] == "not included"
    small = quantize_checkpoint(file, ["nvfp4"], min_size=700)
    assert small.names == ("layers.0.attention.weight", "layers.2.mlp.weight", "layers.10.mlp.weight")
    assert {each.name: each.reason for each in small.left_out}["stem.conv.weight"] == "fewer than 700 elements"


def test_bits_per_value_count_every_scale():
    by_hand = {
        "fp32": 32, "bf16": 16, "e4m3": 8,
        "fp8_e4m3": 8 + 32 / (20 * 40), "fp8_e4m3_row": 8 + 32 / 40, "int8": 8 + 32 / 40,
        "mxfp4": 4 + 8 * 2 / 40, "mxfp6_e3m2": 6 + 8 * 2 / 40, "int4_g32": 4 + 32 * 2 / 40,
        "nvfp4": 4 + 8 * 3 / 40 + 32 / (20 * 40), "nvfp4_2d": 4 + (8 * 2 * 3 + 32) / (20 * 40),
        "fp8_e4m3_128x128": 8 + 32 / (20 * 40), "nf4_g64": 4 + 32 / 40,
    }  # fmt: skip
    for name, expected in by_hand.items():
        assert stored_bits(lsfast.scheme(name), (20, 40)) / (20 * 40) == pytest.approx(expected, rel=1e-14)


def test_totals_are_of_all_elements_together(file):
    table = quantize_checkpoint(file, ["nvfp4", "mxfp4"])
    for scheme in ("nvfp4", "mxfp4"):
        rows = [table[name, scheme] for name in QUANTIZED]
        total = table.total(scheme)
        signal, error = sum(row.squared_sum for row in rows), sum(row.squared_error for row in rows)
        assert total.sqnr == pytest.approx(10 * math.log10(signal / error))
        assert total.count == sum(row.count for row in rows)
        assert total.flushed == sum(row.flushed for row in rows)
        assert total.bits == pytest.approx(sum(row.bits * row.count for row in rows) / total.count)
        assert total.largest == max(row.largest for row in rows)
    with pytest.raises(KeyError, match="scheme must be one of nvfp4, mxfp4, got 'int8'"):
        table.total("int8")
    with pytest.raises(KeyError, match=r"index by \[tensor, scheme\]"):
        table["lm_head.weight", "nvfp4"]


def test_an_exact_tensor_has_no_noise_and_an_empty_signal_no_ratio(tmp_path):
    nan = normal(4, 32)
    nan[1, 1] = float("nan")
    save_file({"a": torch.ones(4, 32), "b": torch.zeros(4, 32), "c": nan}, tmp_path / "m.safetensors")
    table = quantize_checkpoint(tmp_path / "m.safetensors", ["mxfp4"])
    found = [table[name, "mxfp4"].sqnr for name in "abc"]
    assert found[0] == math.inf
    assert math.isnan(found[1])
    assert math.isnan(found[2])
    table.plot(tmp_path / "error.png")
    assert (tmp_path / "error.png").stat().st_size > 0


def test_stochastic_rounding_takes_a_seed(file):
    scheme = lsfast.scheme("nvfp4").replace(rounding="stochastic")
    first, same, other = (quantize_checkpoint(file, [scheme], seed=seed) for seed in (1, 1, 2))
    assert first == same
    assert first.rows != other.rows
    with pytest.raises(ValueError, match="seed must be given"):
        quantize_checkpoint(file, [scheme])


def test_every_tensor_draws_its_own_numbers(tmp_path):
    save_file({"a": normal(16, 32), "b": normal(16, 32)}, tmp_path / "m.safetensors")
    scheme = lsfast.scheme("nvfp4").replace(rounding="stochastic")
    first, second = quantize_checkpoint(tmp_path / "m.safetensors", [scheme], seed=1).rows
    assert first.squared_sum == second.squared_sum
    assert first.squared_error != second.squared_error


def test_one_tensor_is_held_at_a_time(file, monkeypatch):
    held, most = weakref.WeakSet(), []
    real = safetensors.safe_open

    class Watched:
        def __init__(self, *arguments, **keywords):
            self.file = real(*arguments, **keywords)

        def __enter__(self):
            self.entered = self.file.__enter__()
            return self

        def __exit__(self, *details):
            return self.file.__exit__(*details)

        def __getattr__(self, name):
            return getattr(self.entered, name)

        def get_tensor(self, name):
            most.append(len(held))
            tensor = self.entered.get_tensor(name)
            held.add(tensor)
            return tensor

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    quantize_checkpoint(file, ["nvfp4", "mxfp4"])
    # Those left out are never read, and each is gone before the next is read.
    assert most == [0] * len(QUANTIZED)


def test_a_saved_table_is_read_as_it_was(file, tmp_path):
    table = quantize_checkpoint(file, ["nvfp4", "int8"])
    table.save(tmp_path / "t.json")
    assert CheckpointTable.load(tmp_path / "t.json") == table
    (tmp_path / "t.json").write_text((tmp_path / "t.json").read_text()[:-40])
    with pytest.raises(ValueError, match=r"CheckpointTable\.load: path must be a table of a checkpoint"):
        CheckpointTable.load(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="kind is 'other'"):
        CheckpointTable.load(tmp_path / "t.json")


def test_the_command_prints_an_aligned_table(file, capsys):
    assert cli.main(["quantize", str(file), "--scheme", "nvfp4", "mxfp4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # a bar is for terminals
    lines = captured.out.splitlines()
    assert lines[0].split() == [
        "tensor",
        "shape",
        "scheme",
        "SQNR",
        "dB",
        "saturated",
        "%",
        "flushed",
        "%",
        "bits/value",
    ]
    body = lines[2 : 2 + 2 * len(QUANTIZED)]
    assert [line.split()[0] for line in body[::2]] == QUANTIZED
    assert {line.split()[2] for line in body} == {"nvfp4", "mxfp4"}
    totals = lines[3 + len(body) : 5 + len(body)]
    assert {line.split()[0] for line in totals} == {"total"}
    assert {len(line) for line in (lines[0], *body, *totals)} == {len(lines[0])}
    table = quantize_checkpoint(file, ["nvfp4", "mxfp4"])
    row = table["stem.conv.weight", "nvfp4"]
    assert body[-2].split()[1:] == [
        "8x3x5x5", "nvfp4", f"{row.sqnr:.2f}", f"{100 * row.saturated / 600:.2f}", f"{100 * row.flushed / 600:.2f}",
        f"{row.bits:.3f}",
    ]  # fmt: skip
    assert list(file.parent.iterdir()) == [file]


def test_the_command_writes_a_table_and_a_picture(file, tmp_path, capsys):
    out = tmp_path / "a" / "out"
    assert cli.main(["quantize", str(file), "--scheme", "nvfp4", "int8", "--out", str(out), "--axis", "0"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["error.png", "table.json"]
    assert (out / "error.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert CheckpointTable.load(out / "table.json") == quantize_checkpoint(file, ["nvfp4", "int8"], axis=0)
    content = json.loads((out / "table.json").read_text())
    assert content["totals"][1]["sqnr"] == quantize_checkpoint(file, ["int8"], axis=0).total("int8").sqnr
    assert str(out / "table.json") in capsys.readouterr().out.splitlines()[-1]


def test_the_picture_shows_every_tensor_of_every_scheme(file):
    table = quantize_checkpoint(file, ["nvfp4", "int8"])
    (axes,) = table.plot().axes
    assert [text.get_text() for text in axes.get_yticklabels()] == QUANTIZED
    marks = {line.get_label(): line for line in axes.lines if line.get_label() in table.schemes}
    for scheme, line in marks.items():
        assert list(line.get_xdata()) == [table[name, scheme].sqnr for name in QUANTIZED]
        assert list(line.get_ydata()) == list(range(len(QUANTIZED)))
    assert len(marks) == 2
    many = CheckpointTable("f", ("nvfp4",), tuple(
        lsfast.studies.checkpoint_table.TensorError(f"layers.{i}.w", (4, 4), "nvfp4", 16, 4.5, 0, 0, 1.0, 99.0, 1.0)
        for i in range(300)
    ), ())  # fmt: skip
    (axes,) = many.plot().axes
    assert len(axes.get_yticks()) <= 48


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "m.ckpt", "m.safetensors", "m"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_pickles_are_refused_and_never_read(name, kind, tmp_path, capsys):
    path, harm = tmp_path / name, tmp_path / "harm"
    content = {"w": normal(4, 4), "harm": Harmful(harm)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["harm"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    assert cli.main(["quantize", str(path), "--scheme", "nvfp4"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("lsfast quantize: quantize_checkpoint: path must be a safetensors file, got ")
    assert "a pickle, which can run code when it is read" in captured.err
    assert "weights_only=True), 'm.safetensors')" in captured.err
    assert not harm.exists()


def test_other_and_torn_files_are_refused(file, tmp_path, capsys):
    whole = file.read_bytes()
    contents = {
        "text": b"hello, world",
        "nothing": b"",
        "gguf": b"GGUF" + bytes(40),
        "short": whole[:100],
        "torn": whole[:-100],
        "header": whole[:8] + b"{" + b"x" * (len(whole) - 9),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert cli.main(["quantize", str(path), "--scheme", "nvfp4"]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert f"safetensors file, got '{path}'" in captured.err
        assert "pickle" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "nvfp5"], "got 'nvfp5'; nearest is 'nvfp4'"),
        (["--scheme", "nvfp4", "nvfp4"], "schemes must differ in name, got 'nvfp4' twice"),
        (["--scheme", "nvfp4", "--min-size", "-1"], "min_size must be at least 0, got -1"),
        (["--scheme", "nvfp4", "--min-size", "100000"], "must hold a weight to quantize, got 14 tensors left out"),
        (["--scheme", "nvfp4", "--include", "head.*"], "include pattern 'head.*' must match a tensor, got none of 14"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(arguments, message, file, tmp_path, capsys):
    assert cli.main(["quantize", str(file), *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("lsfast quantize: ")
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_schemes_may_be_given_one_by_one(file, capsys):
    assert cli.main(["quantize", "--scheme", "nvfp4", "--scheme", "int8", "--axis", "1", str(file)]) == 0
    apart = capsys.readouterr().out
    assert cli.main(["quantize", str(file), "--scheme", "nvfp4", "int8"]) == 0
    assert capsys.readouterr().out == apart


def test_an_out_that_is_a_file_is_refused_before_any_work(file, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert cli.main(["quantize", str(file), "--scheme", "nvfp4", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"lsfast quantize: --out must be a folder, got the file {str(tmp_path / 'out')!r}\n"


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert cli.main(["quantize", str(tmp_path / "none.safetensors"), "--scheme", "nvfp4"]) == 2
    captured = capsys.readouterr()
    assert "No such file" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["f"], ["f", "--scheme"], ["f", "--scheme", "nvfp4", "--axis", "2"]])
def test_a_command_that_does_not_parse_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quantize", *arguments])
    assert stopped.value.code == 2
    assert "usage: lsfast quantize" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda file: quantize_checkpoint(file, "nvfp4"), TypeError, "schemes must be a list of schemes, got 'nvfp4'"),
        (lambda file: quantize_checkpoint(file, []), ValueError, "at least one scheme, got none"),
        (lambda file: quantize_checkpoint(file, ["nvfp4"], axis=2), ValueError, "axis must be 0 or 1, .* got 2"),
        (lambda file: quantize_checkpoint(file, ["nvfp4"], axis=True), ValueError, "axis must be 0 or 1, .* got True"),
        (lambda file: quantize_checkpoint(file, ["nvfp4"], seed=-1), ValueError, "seed must be at least 0"),
        (lambda file: quantize_checkpoint(file, ["nvfp4"], include=[]), ValueError, "at least one pattern, got none"),
        (
            lambda file: quantize_checkpoint(file, [lsfast.scheme("nvfp4").replace(hadamard=16)]),
            ValueError,
            "hadamard=16 must divide what is quantized, got 'layers.0.attention.weight' of 40",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message, file):
    with pytest.raises(error, match=message) as raised:
        call(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("missing", "extra"), [("safetensors", "files"), ("matplotlib", "demo")])
def test_a_missing_package_is_said_with_what_installs_it(missing, extra, file, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == missing:
            raise ImportError(f"no {missing}")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["quantize", str(file), "--scheme", "nvfp4", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f'pip install "lsfast[{extra}]"' in captured.err
    assert not (tmp_path / "out").exists()
