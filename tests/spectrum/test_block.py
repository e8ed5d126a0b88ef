"""The operators on a block of vectors and a basis: against plain torch, their schemas, and bits that do not change."""

import pytest
import torch

from lsfast._native import ops

from .cases import starts

DTYPES = (torch.float32, torch.float64)
SIZES = (1, 15, 17, 1024, 1025, 4096, 9001)  # around lanes, tiles and units


def problem(n, dtype, s=7, b=3):
    """Rows that are two apart in memory, a block, and coefficients."""
    Q = starts(2 * s, n, dtype, seed=n).reshape(s, 2, n)[:, 1]
    return Q, starts(b, n, dtype, seed=n + 1), torch.linspace(-1, 1, b * s).reshape(b, s).double()


def project(Q, W):
    """The projections, and a bound on the error of the kernel: see block_dots in csrc/spectrum/block_cpu.inl."""
    exact, magnitude = W.double() @ Q.double().T, W.double().abs() @ Q.double().abs().T
    return exact, (130 + 1) * torch.finfo(Q.dtype).eps / 2 * magnitude + Q.shape[1] * 2.0**-52 * magnitude


def combined(S, Q):
    """S Q in float64, and a bound on the error of sums of s rounded products, there and here."""
    exact, magnitude = S @ Q.double(), S.abs() @ Q.double().abs()
    return exact, (Q.shape[0] + 3) * (torch.finfo(Q.dtype).eps / 2 + 2.0**-53) * magnitude


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("s", "b"), [(1, 1), (3, 9), (7, 3), (8, 1)])
def test_projections_subtraction_and_combination_are_those_of_plain_torch(s, b, n, dtype):
    Q, W, C = problem(n, dtype, s, b)
    sums = ops.block_project(Q, W)
    exact, bound = project(Q, W)
    assert ((sums - exact).abs() <= bound).all()

    new = W.clone()
    assert ops.block_subtract(Q, new, C) is None
    change, bound = combined(C, Q)
    rounding = (torch.finfo(dtype).eps / 2 + 2.0**-53) * (W.double().abs() + change.abs() + bound)  # of the difference
    assert ((new.double() - (W.double() - change)).abs() <= bound + rounding).all()

    fused = W.clone()
    sums = ops.block_subtract_project(Q, fused, C)
    assert torch.equal(fused, new)
    assert torch.equal(sums, ops.block_project(Q, new))

    out = torch.empty(b, n, dtype=dtype)
    ops.block_combine(Q, C, out)
    assert ((out.double() - change).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_a_basis_is_combined_in_place_with_the_same_bits(n, dtype):
    Q, _, C = problem(n, dtype)
    kept, out = Q.clone(), torch.empty(3, n, dtype=dtype)
    ops.block_combine(Q, C, out)
    ops.block_combine(Q, C, Q[:3])
    assert torch.equal(Q[:3], out)
    assert torch.equal(Q[3:], kept[3:])


def test_combining_with_rows_of_the_identity_copies_rows():
    Q, _, _ = problem(1025, torch.float32)
    out = torch.empty(2, 1025)
    ops.block_combine(Q, torch.eye(7, dtype=torch.float64)[[5, 2]].contiguous(), out)
    assert torch.equal(out, Q[[5, 2]])


def test_rows_of_a_larger_block_are_written_alone():
    Q, W, C = problem(40, torch.float64)
    whole = torch.full((6, 50), 7.0, dtype=torch.float64)
    part = whole[1:4, 5:45]
    part.copy_(W)
    ops.block_subtract(Q, part, C)
    expected = W.clone()
    ops.block_subtract(Q, expected, C)
    assert torch.equal(part, expected)
    part.fill_(7.0)
    assert (whole == 7.0).all()


def test_empty_bases_and_blocks():
    Q, W, _ = problem(20, torch.float32)
    assert ops.block_project(Q[:0], W).shape == (3, 0)
    assert ops.block_project(Q, W[:0]).shape == (0, 7)
    new = W.clone()
    ops.block_subtract(Q[:0], new, torch.empty(3, 0, dtype=torch.float64))
    assert torch.equal(new, W)
    ops.block_combine(Q[:0], torch.empty(3, 0, dtype=torch.float64), new)
    assert not new.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [17, 1200])
def test_operators_pass_opcheck(n, dtype):
    Q, W, C = problem(n, dtype)
    torch.library.opcheck(ops.block_project.default, (Q, W))
    torch.library.opcheck(ops.block_subtract.default, (Q, W.clone(), C))
    torch.library.opcheck(ops.block_subtract_project.default, (Q, W.clone(), C))
    torch.library.opcheck(ops.block_combine.default, (Q, C, W.clone()))


def test_operators_name_what_is_wrong():
    Q, W, C = problem(40, torch.float32)
    basis = starts(9, 40, torch.float32)
    cases = [
        (lambda: ops.block_project(Q, W.double()), "block_project: W must have the dtype of Q"),
        (lambda: ops.block_project(Q.half(), W), "block_project: Q must be float32 or float64, got torch.Half"),
        (lambda: ops.block_project(Q, W[:, :39]), "block_project: W must have rows of length 40, got 39"),
        (lambda: ops.block_project(Q[0], W), r"block_project: Q must have 2 dimensions, got shape \[40\]"),
        (lambda: ops.block_project(Q, W.T.contiguous().T), "W must have contiguous rows, got strides"),
        (lambda: ops.block_project(W[:1].expand(3, 40), W), r"Q must have contiguous rows, got strides \[0, 1\]"),
        (lambda: ops.block_subtract(Q, W, C.float()), "C must be contiguous float64, got torch.Float"),
        (lambda: ops.block_subtract(Q, W, C[:2]), r"C must have shape \[3, 7\], got \[2, 7\]"),
        (lambda: ops.block_subtract_project(basis[:6], basis[5:8], C[:, :6].contiguous()), "W must not overlap Q"),
        (lambda: ops.block_combine(Q, C[:, :4].contiguous(), W), r"S must have shape \[3, 7\], got \[3, 4\]"),
        (lambda: ops.block_combine(basis[:7], C, basis[1:4]), "out must be the first rows of Q or not overlap it"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
