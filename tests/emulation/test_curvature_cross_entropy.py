"""The CUDA kernels of cross-entropy, emulated, against the CPU kernels."""

import pytest
import torch

from lsfast._native import ops

from .schedules import assert_same_bits, assert_same_under_schedules

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# [outer, classes, inner]: a warp for a row; a thread for a row; a block for a row, in packs and without.
SHAPES = [(9, 10, 1), (1, 1, 1), (17, 33, 1), (2, 7, 5), (3, 70, 18), (2, 1024, 1), (2, 1031, 1)]
KINDS = ["index", "index, smoothed and weighted", "probabilities", "none"]


def case(shape, dtype, kind, k=5):
    generator = torch.Generator().manual_seed(0)
    outer, classes, inner = shape
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def random(*size, to=real):
        return torch.randn(*size, dtype=torch.float64, generator=generator).to(to)

    logits = 3 * random(*shape, to=dtype)
    target = probabilities = weight = None
    factor = random(outer, inner).abs()
    if kind.startswith("index"):
        target = torch.randint(0, classes, (outer, inner), generator=generator)
        if factor.numel() > 1:
            factor[-1, -1], target[-1, -1] = 0.0, -100
    elif kind == "probabilities":
        probabilities = random(*shape).softmax(1).to(dtype)
    if "weighted" in kind:
        weight = random(classes).abs()
    smoothing = 0.1 if "smoothed" in kind else 0.0
    given = (logits, target, probabilities, weight, factor, smoothing)
    return given, random(k, *shape, to=dtype), random(k, outer, inner)


# Every shape with every kind in one dtype, which takes turns: 28 cases that meet all pairs.
CASES = [(DTYPES[(i + j) % 3], shape, kind) for i, shape in enumerate(SHAPES) for j, kind in enumerate(KINDS)]


@pytest.mark.parametrize(("dtype", "shape", "kind"), CASES, ids=lambda x: str(x))
def test_cross_entropy_is_the_cpus_to_rounding(emulated, dtype, shape, kind):
    given, u, a = case(shape, dtype, kind)
    forward = assert_same_under_schedules(lambda: emulated.cross_entropy_forward(*given))
    expected = ops.cross_entropy_forward(*given)
    # The sums over classes run in another order: at most as many roundings more as one thread has terms, and those of
    # the partial sums; of terms bounded by their sum, or by |u| times it.
    eps = (shape[1] / 8 + 48) * torch.finfo(given[4].dtype).eps
    last = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    mass = expected[1].abs().max()
    for found, wanted in zip(forward, expected, strict=True):
        assert (found - wanted).abs().max() <= eps * (1 + mass) * (1 + wanted.abs().max() + given[0].abs().max())
    log_sum, mass = expected[:2]
    curvature = mass if kind != "none" else given[4]
    scale = (1 + mass.max() + curvature.max()) * (u.abs().max() + a.abs().max())
    results = [
        ("cross_entropy_tangent", (u,)),
        ("cross_entropy_adjoint", (a, None, None)),
        ("cross_entropy_adjoint", (None, curvature, u)),
        ("cross_entropy_adjoint", (a, curvature, u)),
    ]
    for name, more in results:
        arguments = (*given, log_sum, mass, *more)
        found = assert_same_under_schedules(lambda name=name, arguments=arguments: getattr(emulated, name)(*arguments))
        wanted = getattr(ops, name)(*arguments)
        assert found.dtype == wanted.dtype
        assert ((found - wanted).abs() <= 2 * eps * scale + last * wanted.abs()).all(), (name, more)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_place_gives_the_bits_of_the_result(emulated, shape):
    given, u, a = case(shape, torch.float32, "index, smoothed and weighted")
    log_sum, mass, _ = emulated.cross_entropy_forward(*given)
    for adjoints, curvature in ((a, mass), (None, mass), (a, None)):
        tangents = None if curvature is None else u
        expected = emulated.cross_entropy_adjoint(*given, log_sum, mass, adjoints, curvature, tangents)

        def in_place(adjoints=adjoints, curvature=curvature):
            out = u.clone()
            emulated.cross_entropy_adjoint_(*given, log_sum, mass, adjoints, curvature, out)
            return out

        assert_same_bits(assert_same_under_schedules(in_place), expected)


def test_a_target_that_is_no_class_has_a_loss_of_nan(emulated):
    given, _, _ = case((4, 5, 1), torch.float32, "index")
    given[1][1] = 5
    loss = emulated.cross_entropy_forward(*given)[2].flatten()
    assert torch.isnan(loss).tolist() == [False, True, False, False]
