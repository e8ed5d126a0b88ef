"""The operators themselves: against plain torch, their schemas, and bits that threads and instruction sets keep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lsfast._native import ops

from .cases import starts

DTYPES = (torch.float32, torch.float64)
SIZES = (1, 15, 16, 17, 1000, 1025, 8192, 20011)  # around lanes, chunks and units


def problem(k, m, n, dtype):
    basis = starts(k * m, n, dtype, seed=n).reshape(k, m, n)
    return basis, starts(k, n, dtype, seed=n + 1), torch.linspace(-1, 1, k * m).reshape(k, m).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_projections_and_subtraction_are_those_of_plain_torch(n, dtype):
    k, m = 2, 7
    basis, w, c = problem(k, m, n, dtype)
    epsilon = torch.finfo(dtype).eps / 2

    def project(rows, v):  # with the bound on the error of the kernel: see kChunk in csrc/spectrum/cpu.inl
        exact = (rows.double() * v[:, None].double()).sum(2)
        magnitude = (rows.double() * v[:, None].double()).abs().sum(2)
        return exact, (130 + 1) * epsilon * magnitude + n * 2.0**-52 * magnitude

    for count in range(1, m + 1):
        result = ops.basis_project(basis, w, count)
        exact, bound = project(basis[:, :count], w)
        assert result.shape == (k, count)
        assert ((result - exact).abs() <= bound).all()

        part, new = c[:, :count].contiguous(), torch.empty_like(w)
        second = ops.basis_subtract_project(basis, w, part, new)
        exact_new = w.double() - (part[:, :, None] * basis[:, :count].double()).sum(1)
        # Each of `count` products, sums and coefficients is rounded, and the difference.
        terms = (part[:, :, None] * basis[:, :count].double()).abs().sum(1) + w.double().abs()
        assert ((new.double() - exact_new).abs() <= (count + 3) * epsilon * terms).all()
        exact, bound = project(basis[:, :count], new)
        assert ((second - exact).abs() <= bound).all()

        same = w.clone()
        norm_squared = ops.basis_subtract_norm(basis, same, part)
        assert torch.equal(same, new)
        torch.testing.assert_close(norm_squared, (new.double() ** 2).sum(1), rtol=n * 2.0**-52, atol=0)


def advance_arguments(k=3, n=50, m=4, dtype=torch.float32, step=1):
    alpha, beta, scale = (torch.full((k, m), 2.0, dtype=torch.float64) for _ in range(3))
    tensors = (starts(k, n, dtype), torch.zeros(k, m, n, dtype=dtype), alpha, beta, scale, torch.full((k,), step))
    norms = (tensors[0].double() ** 2).sum(1)
    coefficients = torch.arange(1.0, 2 * k + 1, dtype=torch.float64).reshape(k, 2)
    return (*tensors, norms, coefficients, 0.1 * coefficients, 1, step, 2, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_advance_normalizes_ends_and_skips_probes(dtype):
    arguments = advance_arguments(dtype=dtype)
    w, basis, alpha, beta, scale, steps, norms, first, second = arguments[:9]
    before = w.clone()
    beta[1, 0] = 0.0  # ended at the step before
    norms[2] = 1e-12 * 1e-12  # ends now
    ops.lanczos_advance(*arguments)
    assert steps.tolist() == [2, 1, 2]
    torch.testing.assert_close(alpha[:, 1], torch.tensor([2.2, 0.0, 6.6]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(beta[:, 1], torch.stack([norms[0].sqrt(), norms[1] * 0, norms[1] * 0]))
    assert scale[0, 1].item() == pytest.approx(2.2 + 2.0 + norms[0].sqrt().item())
    torch.testing.assert_close(w[0].double(), before[0].double() / norms[0].sqrt(), rtol=2e-7, atol=0)
    assert not w[1:].any()
    assert torch.equal(basis[:, 2], w)
    assert not basis[:, [0, 1, 3]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [17, 1200])
def test_operators_pass_opcheck(n, dtype):
    k, m = 2, 3
    basis, w, c = problem(k, m, n, dtype)
    torch.library.opcheck(ops.basis_project.default, (basis, w, 2))
    torch.library.opcheck(ops.basis_subtract_project.default, (basis, w, c, torch.empty_like(w)))
    torch.library.opcheck(ops.basis_subtract_norm.default, (basis, w.clone(), c))
    torch.library.opcheck(ops.lanczos_advance.default, advance_arguments(n=n, dtype=dtype))
    torch.library.opcheck(
        ops.tridiagonal_eigen.default,
        (torch.randn(k, m).double(), torch.rand(k, m).double(), torch.tensor([m, m - 1])),
    )


def test_operators_name_what_is_wrong():
    basis, w, c = problem(2, 3, 40, torch.float32)
    cases = [
        (lambda: ops.basis_project(basis, w, 4), r"basis_project: count must lie in 0\.\.3, got 4"),
        (lambda: ops.basis_project(basis, w.double(), 1), "basis_project: basis must have the dtype of w"),
        (lambda: ops.basis_project(basis[:, :, ::2], w[:, ::2], 1), "basis_project: w must be contiguous"),
        (lambda: ops.basis_project(basis, w.half(), 1), "basis_project: w must be float32 or float64"),
        (lambda: ops.basis_subtract_norm(basis, w, c.float()), "coefficients must be torch.Double, got torch.Float"),
        (lambda: ops.basis_subtract_project(basis, w, c, w[:1]), "out must have the shape of w"),
        (lambda: ops.lanczos_advance(*advance_arguments(step=4)), r"step must lie in 0\.\.3, got 4"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


DIGEST = """
import hashlib, torch, lsfast
torch.set_num_threads({threads})
for dtype in (torch.float32, torch.float64):
    diagonal = torch.linspace(-1, 3, 30011, dtype=dtype)
    A = lsfast.aslinearoperator(lambda rows: rows * diagonal, n=30011, dtype=dtype)
    s = lsfast.spectral_density(A, probes=3, steps=9)
    start = torch.randn(2, 30011, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for tensor in (
        s.nodes, s.weights, *vars(lsfast.lanczos(A, start, 6)).values(), lsfast.lanczos(A, start, 6, "none").residual,
        torch.tensor(lsfast.trace(A, num_products=3, distribution="gaussian").value),
    ):
        print(hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def digest(capability, threads):
    environment = os.environ | {"LSFAST_CPU_CAPABILITY": capability, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", DIGEST.format(threads=threads)], env=environment, capture_output=True, text=True
    )
    if "this processor lacks it" in result.stderr or not result.stdout:
        assert "lacks it" in result.stderr, result.stderr
        return None
    return result.stdout


def test_bits_do_not_depend_on_threads_or_instruction_set():
    first = digest("baseline", 1)
    assert len(first.split()) == 18
    assert digest("baseline", 2) == first
    for capability in ("avx2", "avx512"):
        assert digest(capability, 2) in (first, None)
