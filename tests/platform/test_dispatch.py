"""The choice of instruction set, the equality of their bits, and what a missing build says."""

import subprocess
import sys

import pytest
import torch

# CPU kernels of every room on data that reaches their vector loops and tails.
PROGRAM = """
import lsfast

generator = torch.Generator().manual_seed(0)
wide = torch.randn(37, 1000, generator=generator) * 10 ** torch.randint(-9, 9, (37, 1), generator=generator)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    x = wide.to(dtype)
    for name in ("e4m3", "e5m2", "e2m1", "e8m3", "bf16", "fp8_e4m3", "fp8_e5m2", "nvfp4"):
        for rounding in ("nearest", "stochastic", "toward_zero"):
            scheme = lsfast.scheme(name).replace(rounding=rounding)
            for axis in (0, 1):
                add(lsfast.fake_quantize(x, scheme, axis=axis, seed=1))
for dtype in (torch.float32, torch.float64):
    logits = torch.randn(50, 33, generator=generator, dtype=dtype)
    tangents = torch.randn(3, 50, 33, generator=generator, dtype=dtype)
    scores = logits.clone()[None]
    torch.ops.lsfast.attention_probabilities_(scores, -1)
    add(scores, torch.ops.lsfast.softmax_tangent(scores[0], tangents, 0))
    theta = torch.randn(10007, generator=generator, dtype=dtype)
    directions = torch.randn(2, 10007, generator=generator, dtype=dtype)
    coordinates = torch.randn(5, 2, generator=generator, dtype=dtype)
    add(torch.ops.lsfast.parameter_points(theta, directions, coordinates))
    A = lsfast.aslinearoperator(lambda rows: rows * theta, n=10007, dtype=dtype)
    density = lsfast.spectral_density(A, probes=3, steps=12, seed=0)
    add(density.nodes, density.weights)
"""


def test_every_instruction_set_and_thread_count_gives_the_same_bits(assert_same_bits):
    assert_same_bits(PROGRAM)


def test_unknown_capability_is_refused_at_import(run_python):
    said = run_python("import lsfast", check=False, LSFAST_CPU_CAPABILITY="sse9")
    assert "LSFAST_CPU_CAPABILITY must be baseline, avx2 or avx512, got sse9" in said


def test_a_missing_build_says_the_command_that_builds_it(tmp_path):
    import shutil
    from pathlib import Path

    import lsfast

    shutil.copytree(Path(lsfast.__file__).parent, tmp_path / "lsfast", ignore=shutil.ignore_patterns("*.so"))
    done = subprocess.run(
        [sys.executable, "-c", "import lsfast"], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": ""}
    )
    assert done.returncode != 0
    assert "python setup.py build_ext --inplace" in done.stderr


@pytest.mark.parametrize("kind", range(7))
def test_activation_derivatives_equal_autograds(kind):
    from torch.nn import functional

    from lsfast import _numerics

    functions = [
        functional.relu,
        torch.tanh,
        torch.sigmoid,
        functional.softplus,
        functional.silu,
        functional.gelu,
        lambda x: functional.gelu(x, approximate="tanh"),
    ]
    x = torch.linspace(-12, 12, 481, dtype=torch.float64).requires_grad_()
    y = functions[kind](x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
    value, slope, curvature = map(torch.from_numpy, _numerics.activation(x.detach().numpy(), kind))
    # torch forms 1 - tanh^2, an error of eps, times |x| (d inner / dx)^2 < 12 * 17^2 in the tanh GELU's curvature.
    for ours, theirs in ((value, y), (slope, first), (curvature, second)):
        assert torch.allclose(ours, theirs.detach(), rtol=1e-12, atol=1e-12)
