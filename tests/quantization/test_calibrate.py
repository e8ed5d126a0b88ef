"""Static scales of activations: what they are, that batches do not matter, and that the model is as before."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lsfast
from lsfast.quantization.hadamard import hadamard

INT4 = lsfast.QuantScheme("int4_tensor", "int4", block="tensor", scale="fp32", scale_rule="fp32")
METHODS = ("max", "percentile", "mse")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mlp(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)


def objective_of(x, model=None, splits=None, **keywords):
    model = mlp(x.dtype) if model is None else model
    y = torch.arange(len(x)) % 5
    data = (x, y) if splits is None else list(zip(x.split(splits), y.split(splits), strict=True))
    return lsfast.Objective(model, nn.CrossEntropyLoss(), data, **keywords)


def layer_inputs(objective):
    """The inputs of the two linear layers of `mlp`, by walking through it."""
    x = objective.data[0]
    return {"0": x, "2": torch.tanh(objective.model[0](x)).detach()}


def heavy_tailed(seed=0):
    return normal(64, 32, seed=seed) / normal(64, 32, seed=seed + 1).abs().sqrt()


def test_max_is_the_largest_magnitude_of_each_input():
    objective = objective_of(heavy_tailed())
    found = lsfast.calibrate(objective, "fp8_e4m3")
    assert found.method == "max"
    assert found.scheme == lsfast.scheme("fp8_e4m3")
    expected = {name: x.abs().max() for name, x in layer_inputs(objective).items()}
    assert list(found.amax) == ["0", "2"]
    for name, value in expected.items():
        assert found[name].shape == ()
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("method", METHODS)
def test_infinite_inputs_are_left_out(method):
    x = normal(64, 32)
    x[:, 1:3] = float("inf")
    x[:, 3] = float("-inf")  # tanh of infinite numbers is 1 or -1: the loss is finite
    model = mlp()
    model[0].weight.data[:, 1:4] = model[0].weight.data[:, 1:4].abs() * torch.tensor([1.0, 1.0, -1.0])
    kept = x[x.isfinite()].reshape(64, 29)
    found = lsfast.calibrate(objective_of(x, model), INT4, method, percentile=50)["0"]
    assert torch.equal(found, lsfast.calibrate(objective_of(kept, nn.Linear(29, 5)), INT4, method, percentile=50)[""])
    assert method == "max" or found < kept.abs().max()


INPUTS = {
    "normal": lambda: normal(64, 32),
    "heavy tails": heavy_tailed,
    "half zeros": lambda: normal(64, 32).relu(),
    "one value": lambda: torch.full((64, 32), 0.1),
    "subnormal": lambda: normal(64, 32) * 2.0**-130,
    "powers of two": lambda: torch.exp2(normal(64, 32).mul(20).round()),
}


@pytest.mark.parametrize("percentile", [0.001, 10.0, 50, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("name", INPUTS)
def test_the_percentile_is_the_order_statistic_rounded_up_to_nine_bits(name, percentile):
    x = INPUTS[name]()
    magnitudes = np.sort(x.abs().numpy(), axis=None)
    rank = -(-Fraction(str(percentile)) * magnitudes.size // 100)
    exact = magnitudes[max(1, int(rank)) - 1]
    found = lsfast.calibrate(objective_of(x), "fp8_e4m3", "percentile", percentile=percentile)["0"].numpy()
    # Rounded up to a multiple of 2^15 units in the last place, and cut off at the largest.
    up = np.minimum(-(-exact.view(np.int32) // 2**15) * 2**15, magnitudes[-1].view(np.int32))
    assert found.view(np.int32) == up
    assert exact <= found <= max(float(exact) * (1 + 2.0**-8), float(exact) + 2.0**-134)


def test_a_percentile_is_the_decimal_number_that_is_written():
    # As a binary fraction 99.9 is a little more: of 1000 it would be the last and not the 999-th.
    x = torch.arange(1.0, 21.0).reshape(20, 1)
    model = nn.Sequential(nn.Linear(1, 5))
    for percentile, rank in ((55.0, 11), (55.1, 12), (5, 1), (100, 20), (99.99, 20), (35.0, 7)):
        found = lsfast.calibrate(objective_of(x, model), "fp8_e4m3", "percentile", percentile=percentile)
        assert float(found["0"]) == rank
    x = torch.ones(1000, 1)
    x[7] = 2.0
    found = lsfast.calibrate(objective_of(x, model), "fp8_e4m3", "percentile", percentile=99.9)
    assert float(found["0"]) == 1.0


@pytest.mark.parametrize("scheme", ["fp8_e4m3", "fp8_e5m2", "nvfp4", INT4], ids=str)
def test_mse_is_the_candidate_of_least_error(scheme):
    for seed in range(3):
        objective = objective_of(heavy_tailed(seed))
        found = lsfast.calibrate(objective, scheme, "mse")
        for name, x in layer_inputs(objective).items():
            candidates = [x.abs().max().double() * 2.0 ** (-k / 8) for k in range(41)]
            errors = []
            for candidate in candidates:
                rounded = lsfast.fake_quantize(x, scheme, amax=candidate.float())
                errors.append(float((rounded.double() - x.double()).square().sum()))
            assert torch.equal(found[name], candidates[int(np.argmin(errors))].float())


def test_mse_clips_where_the_step_costs_more_than_the_tail():
    # Uniform rounding to 15 levels: for a normal variable the best range is near 2.5 standard deviations.
    x = normal(512, 32)
    found = lsfast.calibrate(objective_of(x), INT4, "mse")["0"]
    assert 2.2 < float(found) < 3.1 < float(x.abs().max())


def test_mse_of_a_convolution_quantizes_along_channels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(16, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    differs = 0
    for seed in range(8):
        x = normal(4, 16, 4, 4, seed=seed)
        found = lsfast.calibrate(objective_of(x, model), "nvfp4", "mse")["0"]
        best = {}
        for axis in (1, -1):
            candidates = (x.abs().max().double() * torch.exp2(-torch.arange(41.0).double() / 8)).float()
            errors = [
                float((lsfast.fake_quantize(x, "nvfp4", axis, amax=c).double() - x.double()).square().sum())
                for c in candidates
            ]
            best[axis] = candidates[int(np.argmin(errors))]
        assert torch.equal(found, best[1])
        differs += bool(best[1] != best[-1])
    assert differs  # else nothing was told apart


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["fp8_e4m3", "nvfp4"])
def test_the_split_into_batches_does_not_matter(scheme, method):
    x = heavy_tailed()
    whole = lsfast.calibrate(objective_of(x), scheme, method, percentile=97)
    for splits in (1, 7, 32):
        # A product of another number of rows may round differently, so only the first layer sees the same numbers.
        parts = lsfast.calibrate(objective_of(x, splits=splits), scheme, method, percentile=97)
        assert torch.equal(parts["0"], whole["0"])
        assert parts["2"].isclose(whole["2"], rtol=2.0**-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_shuffled_loader_gives_the_same(method):
    x = heavy_tailed()
    whole = lsfast.calibrate(objective_of(x), "nvfp4", method)
    data = torch.utils.data.TensorDataset(x, torch.arange(64) % 5)
    loader = torch.utils.data.DataLoader(data, batch_size=10, shuffle=True)
    objective = lsfast.Objective(mlp(), nn.CrossEntropyLoss(), loader)
    assert torch.equal(lsfast.calibrate(objective, "nvfp4", method)["0"], whole["0"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_seen_in_float32(dtype):
    x = heavy_tailed().to(dtype)
    found = lsfast.calibrate(objective_of(x), "fp8_e4m3")["0"]
    assert found.dtype == torch.float32
    assert torch.equal(found, x.float().abs().max())


def test_the_hadamard_transform_comes_before():
    scheme = lsfast.scheme("nvfp4").replace(hadamard=16)
    x = heavy_tailed()
    found = lsfast.calibrate(objective_of(x), scheme)["0"]
    assert torch.equal(found, hadamard(x, 16).abs().max())
    assert found != x.abs().max()


def test_mse_is_of_the_transformed():
    scheme = lsfast.scheme("nvfp4").replace(hadamard=16)
    for seed in range(4):
        x = normal(64, 32, seed=seed)
        transformed = hadamard(x, 16)
        errors = {}
        for k in range(41):
            candidate = (transformed.abs().max().double() * 2.0 ** (-k / 8)).float()
            rounded = lsfast.fake_quantize(x, scheme, amax=candidate)
            errors[float(candidate)] = float((rounded.double() - transformed.double()).square().sum())
        assert float(lsfast.calibrate(objective_of(x), scheme, "mse")["0"]) == min(errors, key=errors.get)


class Twice(nn.Module):
    """One layer used twice, given its input by name, another one never."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.layer(input=3 * self.layer(input=x)))


def test_a_layer_used_twice_is_given_the_larger():
    x = normal(64, 32)
    model = Twice()
    found = lsfast.calibrate(objective_of(x, model), "fp8_e4m3")
    assert list(found.amax) == ["layer", "head"]
    assert torch.equal(found["layer"], torch.maximum(x.abs().max(), (3 * model.layer(x)).detach().abs().max()))


def test_modules_are_picked_by_pattern():
    objective = objective_of(normal(64, 32), Twice())
    assert list(lsfast.calibrate(objective, "nvfp4", modules="h*").amax) == ["head"]
    assert list(lsfast.calibrate(objective, "nvfp4", modules=["head", "layer"]).amax) == ["layer", "head"]


class Fails(nn.Module):
    """A model that fails at its third batch."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = mlp(), 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 4:  # the objective's own look at the first batch is one
            raise RuntimeError("the third batch")
        return self.body(x)


def state_of(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    return tensors, hooks, [m.training for m in model.modules()], [p.grad for p in model.parameters()]


def same_state(before, after):
    return all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[1:] == after[1:]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_generators_are_as_before(method):
    model = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
    objective = objective_of(normal(64, 32), model, splits=16)
    before, generator = state_of(model), torch.get_rng_state()
    lsfast.calibrate(objective, "nvfp4", method)
    assert same_state(before, state_of(model))
    assert torch.equal(generator, torch.get_rng_state())


def test_an_exception_leaves_the_model_as_before():
    objective = objective_of(normal(64, 32), Fails(), splits=16)
    before, generator = state_of(objective.model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the third batch"):
        lsfast.calibrate(objective, "nvfp4")
    assert same_state(before, state_of(objective.model))
    assert torch.equal(generator, torch.get_rng_state())


def test_the_objective_is_taken_where_it_is():
    objective = objective_of(normal(64, 32))
    moved = objective.at(2 * objective.parameters)
    expected = torch.tanh(2 * objective.model[0](objective.data[0])).detach().abs().max()
    assert torch.equal(lsfast.calibrate(moved, "nvfp4")["2"], expected)


def test_a_calibrated_scale_is_used_in_place_of_the_tensors_own():
    x = heavy_tailed()
    found = lsfast.calibrate(objective_of(x), "fp8_e4m3")
    part = x[:8]
    assert torch.equal(lsfast.fake_quantize(part, "fp8_e4m3", amax=found["0"]), lsfast.fake_quantize(x, "fp8_e4m3")[:8])


@pytest.mark.parametrize("scheme", ["nvfp4", "nvfp4_2d", INT4], ids=str)
def test_a_saved_calibration_is_read_as_it_was(scheme, tmp_path):
    found = lsfast.calibrate(objective_of(heavy_tailed()), scheme, "percentile")
    found.save(tmp_path / "c.json")
    read = lsfast.Calibration.load(tmp_path / "c.json")
    assert (read.scheme, read.method) == (found.scheme, found.method)
    assert list(read.amax) == list(found.amax)
    assert all(torch.equal(read[name], found[name]) and read[name].dtype == torch.float32 for name in found.amax)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "other"}', '{"kind": "lsfast.Calibration"}'])
def test_a_torn_or_foreign_file_is_refused(content, tmp_path):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=r"Calibration\.load: path must be a calibration") as raised:
        lsfast.Calibration.load(tmp_path / "c.json")
    assert "\n" not in str(raised.value)


def test_an_unknown_name_says_the_nearest():
    with pytest.raises(KeyError, match="got '1'; nearest is"):
        lsfast.calibrate(objective_of(normal(64, 32)), "nvfp4")["1"]


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("mxfp4",), {}, ValueError, "got 'mxfp4', which scales each block by itself"),
        (("fp8_e4m3_row",), {}, ValueError, "got 'fp8_e4m3_row', which scales each block by itself"),
        (("e4m3",), {}, ValueError, "got 'e4m3', which has no scale"),
        (("nvfp5",), {}, ValueError, "nearest is 'nvfp4'"),
        (("nvfp4", "mean"), {}, ValueError, "method must be one of 'max', 'percentile', 'mse', got 'mean'"),
        (("nvfp4", "percentile"), {"percentile": 0}, ValueError, r"percentile must lie in \(0, 100\], got 0"),
        (("nvfp4", "percentile"), {"percentile": 101.0}, ValueError, "percentile must lie in"),
        (("nvfp4", "percentile"), {"percentile": float("nan")}, ValueError, "percentile must lie in"),
        (("nvfp4", "percentile"), {"percentile": "99"}, TypeError, "percentile must be a number, got '99'"),
        (("nvfp4",), {"modules": "layers.*"}, ValueError, "pattern 'layers.*' must match a Linear or Conv module"),
        (("nvfp4",), {"modules": ["0", "1"]}, ValueError, "pattern '1' must match"),
        (("nvfp4",), {"modules": []}, ValueError, "at least one name or pattern, got none"),
        (("nvfp4_2d", "mse"), {}, ValueError, "needs blocks within a row, got 'nvfp4_2d'"),
        ((lsfast.scheme("nvfp4").replace(rounding="stochastic"), "mse"), {}, ValueError, "rounds without chance"),
    ],
)
def test_bad_input_is_named_in_one_line_before_any_work(arguments, keywords, error, message):
    objective = objective_of(normal(64, 32))
    objective.model[0].register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=message) as raised:
        lsfast.calibrate(objective, *arguments, **keywords)
    assert str(raised.value).count("\n") == 0


def test_models_that_cannot_be_calibrated_are_refused():
    with pytest.raises(TypeError, match=r"objective must be an lsfast\.Objective, got Sequential"):
        lsfast.calibrate(mlp(), "nvfp4")
    with pytest.raises(ValueError, match="must be run by the objective's data, got 'unused'"):
        lsfast.calibrate(objective_of(normal(8, 32), Twice()), "nvfp4", modules="*")
    with pytest.raises(ValueError, match="must have a Linear or Conv module, got none"):
        lsfast.calibrate(objective_of(normal(8, 5), nn.LayerNorm(5)), "nvfp4")


def test_progress_counts_every_batch_of_every_pass(monkeypatch):
    import tqdm

    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    objective = objective_of(normal(64, 32), splits=20)
    lsfast.calibrate(objective, "nvfp4", progress=True)
    lsfast.calibrate(objective, "nvfp4", "mse", progress=True)
    lsfast.calibrate(objective, "nvfp4")
    assert [(bar.n, bar.total) for bar in bars] == [(4, 4), (8, 8)]
