"""Conjugate gradients for k right-hand sides in lockstep."""

import math

import pytest
import torch

import lsfast
from lsfast.spectrum.solve import _System

from .cases import N, matrix, spectra, starts
from .closed_forms import counted, cycle, laplacian, rotated, stencil, toeplitz, toeplitz_eigenvalues, toeplitz_inverse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["outliers", "clusters", "indefinite", "repeated", "rank5"])
def test_solution_is_that_of_a_direct_solver_to_the_tolerance(name, dtype):
    shift = 0.05 - min(spectra()[name].min().item(), 0.0)
    A, b = matrix(name).to(dtype), starts(3).to(dtype)
    found = lsfast.solve(A, b, shift)
    shifted = A.double() + shift * torch.eye(N).double()
    assert found.converged.all()
    tolerance = torch.finfo(dtype).eps ** (2 / 3)
    assert (found.residuals <= tolerance).all()
    true = (b.double() - found.x.double() @ shifted).norm(dim=1) / b.double().norm(dim=1)
    # The product in dtype that the residual is made from is rounded: N epsilon |A| |x|.
    largest = spectra()[name].abs().max().item() + shift
    rounding = N * torch.finfo(dtype).eps * largest * found.x.double().norm(dim=1) / b.double().norm(dim=1)
    assert ((true - found.residuals).abs() <= rounding).all()
    exact = torch.linalg.solve(shifted, b.double().T).T
    error = (found.x.double() - exact).norm(dim=1)
    smallest = (spectra()[name] + shift).min().item()
    # |e| <= |r| / smallest, and what rounding makes of the direct solution.
    assert (error <= (true + rounding) * b.double().norm(dim=1) / smallest).all()
    assert found.x.dtype == dtype
    assert found.iterations.dtype == torch.int64


@pytest.mark.parametrize("distinct", [1, 2, 5, 12])
def test_as_many_steps_as_distinct_eigenvalues_are_enough(distinct):
    values = torch.linspace(1.0, 3.0, distinct).double().repeat_interleave(60 // distinct)
    found = lsfast.solve(rotated(values), starts(4, 60), tolerance=1e-12)
    assert found.iterations.tolist() == [distinct] * 4
    assert found.converged.all()


def test_inverse_of_the_toeplitz_matrix_from_unit_vectors_in_n_steps():
    n = 32
    found = lsfast.solve(stencil(n), torch.eye(n).double(), tolerance=1e-12)
    assert (found.iterations <= n).all()
    # |error| <= tolerance |b| / smallest eigenvalue.
    assert (found.x - toeplitz_inverse(n)).abs().max() <= 1e-12 / toeplitz_eigenvalues(n)[0]


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_error_falls_at_the_rate_of_the_condition(steps):
    A, b = toeplitz(60) + 0.1 * torch.eye(60).double(), starts(2, 60)
    exact = torch.linalg.solve(A, b.T).T
    with pytest.warns(RuntimeWarning, match="2 of 2 right-hand sides did not converge to 1.0e-14 in"):
        found = lsfast.solve(stencil(60), b, 0.1, tolerance=1e-14, max_steps=steps)
    assert found.iterations.tolist() == [steps, steps]
    assert not found.converged.any()
    values = toeplitz_eigenvalues(60) + 0.1
    c = (values[-1] / values[0]).sqrt()

    def norm(e):
        return ((e @ A) * e).sum(1).sqrt()

    assert (norm(found.x - exact) <= 2 * ((c - 1) / (c + 1)) ** steps * norm(exact)).all()


def test_rows_do_not_depend_on_each_other_to_the_bit():
    n = 200
    b = starts(5, n)
    b[1] = torch.ones(n)
    b[2] = 0.0
    b[3] *= 1e-3
    together = lsfast.solve(stencil(n), b, shift=0.02, tolerance=1e-9)
    assert len(set(together.iterations.tolist())) > 2
    for i in range(5):
        alone = lsfast.solve(stencil(n), b[i], shift=0.02, tolerance=1e-9)
        assert torch.equal(alone.x, together.x[i])
        assert alone.iterations == together.iterations[i]
        assert alone.residuals == together.residuals[i]
        assert alone.converged.shape == alone.residuals.shape == alone.iterations.shape == ()


def test_asking_less_often_whether_rows_are_done_changes_nothing():
    b = starts(4, 90)
    results = []
    for interval in (1, 8):  # as on a GPU
        system = _System(stencil(90), 0.05, b, torch.zeros_like(b), 1e-10, 1000)
        system.interval = interval
        system.run(from_zero=True)
        results.append((system.x, system.steps, system.residuals))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    system = _System(lsfast.aslinearoperator(toeplitz(90) - torch.eye(90)), 0.0, b, torch.zeros_like(b), 1e-10, 1000)
    system.interval = 8
    with pytest.raises(ValueError, match=r"at step \d+ of right-hand side \d; shift must"):
        system.run(from_zero=True)


def test_zero_has_the_solution_zero_and_a_good_start_takes_fewer_steps():
    A, b = rotated(torch.linspace(1.0, 9.0, 50).double()), starts(3, 50)
    b[1] = 0.0
    first = lsfast.solve(A, b, tolerance=1e-6)
    assert not first.x[1].any()
    assert (first.iterations[1], first.residuals[1], first.converged[1]) == (0, 0.0, True)
    operator, used = counted(A)
    again = lsfast.solve(operator, b, start=first.x, tolerance=1e-6)
    assert not again.iterations.any()
    assert torch.equal(again.x, first.x)
    assert sum(used) == 2 + 3  # the check of symmetry and the residuals
    more = lsfast.solve(A, b, start=first.x, tolerance=1e-7)
    assert more.iterations[1] == 0
    assert (more.iterations[::2] > 0).all()
    assert (more.iterations[::2] < lsfast.solve(A, b, tolerance=1e-7).iterations[::2]).all()
    assert not lsfast.solve(A, torch.zeros(50).double(), start=torch.ones(50).double()).x.any()


def test_rows_that_are_done_take_no_part_in_the_products():
    b = torch.zeros(2, 60).double()
    b[0] = starts(1, 60)
    values, vectors = torch.linalg.eigh(toeplitz(60))
    b[1] = vectors[:, 3]  # an eigenvector: one step
    operator, used = counted(toeplitz(60))
    found = lsfast.solve(operator, b, tolerance=1e-8)
    assert found.iterations[1] == 1
    torch.testing.assert_close(found.x[1], vectors[:, 3] / values[3], rtol=0, atol=1e-8 / values[0].item())
    assert sum(used) == 2 + int(found.iterations.sum()) + 2


def test_a_new_beginning_reaches_a_tolerance_that_one_recurrence_misses():
    A = rotated(torch.logspace(-4, 0, 80).double()).float()
    b = starts(2, 80).float()
    tolerance = 4e-4  # of the order of epsilon times the condition, 1e4 2^-23 = 1e-3, where rounding stops the residual
    system = _System(lsfast.aslinearoperator(A), 0.0, b, torch.zeros_like(b), tolerance, 10_000)
    system._iterate(torch.arange(2), b.clone())
    once = system._true_residual(slice(None)).norm(dim=1) / b.norm(dim=1)
    found = lsfast.solve(A, b, tolerance=tolerance, max_steps=10_000)
    assert (once > tolerance).any()
    assert found.converged.all()


def test_scale_of_the_right_hand_side_does_not_matter():
    b = starts(1, 20)[0]
    x = lsfast.solve(toeplitz(20), b).x
    for exponent in (-900, -540, 540, 900):  # powers of two: squares of the entries vanish or overflow
        found = lsfast.solve(toeplitz(20), b * 2.0**exponent)
        assert torch.equal(found.x, x * 2.0**exponent)


def test_a_tolerance_below_rounding_ends_with_a_warning():
    with pytest.warns(RuntimeWarning, match="3 of 3 right-hand sides did not converge to 1.0e-17 in"):
        found = lsfast.solve(toeplitz(40), starts(3, 40), tolerance=1e-17)
    assert (found.residuals < 1e-13).all()
    assert (found.iterations < 400).all()  # it does not go on for all 10 n steps


def test_negative_curvature_is_named_with_its_step_and_row():
    A = torch.diag(torch.tensor([1.0, 2.0, -0.5, 3.0]).double())
    b = torch.eye(4).double()
    message = r"solve: A \+ shift I must be positive definite, got the curvature .* = -5.000e-01 at step 0 of "
    with pytest.raises(ValueError, match=message + "right-hand side 2; shift must be above 5.000e-01 at least"):
        lsfast.solve(A, b)
    with pytest.raises(ValueError, match=r"= -2.500e-01 at step 0 of right-hand side 2; shift must be above 5.000e-01"):
        lsfast.solve(A, b, shift=0.25)
    assert lsfast.solve(A, b, shift=0.75).converged.all()
    with pytest.raises(ValueError, match="= 0.000e.00 at step 0 of right-hand side 0"):
        lsfast.solve(torch.zeros(4, 4).double(), b)
    with pytest.raises(ValueError, match="at step 1 of right-hand side 1"):  # the quotient of the sum is positive
        lsfast.solve(A, torch.stack([b[0], b[0] + b[2]]))


def test_the_curvature_named_is_the_rayleigh_quotient_of_the_direction():
    A = toeplitz(30) - 0.5 * torch.eye(30).double()
    directions = []

    def product(rows):
        directions.append(rows.clone())
        return rows @ A

    with pytest.raises(ValueError, match="positive definite") as error:
        lsfast.solve(lsfast.aslinearoperator(product, n=30, dtype=torch.float64), starts(1, 30))
    d = directions[-1][0]
    assert len(directions) > 3
    assert f"= {(d @ A @ d / (d @ d)).item():.3e} at step {len(directions) - 2} of" in str(error.value)


def test_a_consistent_singular_system_is_solved_in_the_range():
    L, b = laplacian(cycle(30)), starts(2, 30)
    b -= b.mean(1, keepdim=True)
    found = lsfast.solve(L, b)
    assert found.converged.all()
    exact = (torch.linalg.pinv(L) @ b.T).T
    smallest = 2 - 2 * math.cos(2 * math.pi / 30)  # but 0
    bound = 2.0 ** (-52 * 2 / 3) * b.norm(dim=1, keepdim=True) / smallest
    assert ((found.x - found.x.mean(1, keepdim=True) - exact).abs() <= bound).all()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_products_that_are_not_finite_are_named(value):
    calls = []

    def product(rows):
        calls.append(rows.shape[0])
        result = rows @ toeplitz(30)
        if len(calls) == 5:  # the first checks symmetry
            result[1, 3] = value
        return result

    operator = lsfast.aslinearoperator(product, n=30, dtype=torch.float64)
    with pytest.raises(
        ValueError, match="solve: A must give finite products, got NaN or Inf at step 3 of right-hand s"
    ):
        lsfast.solve(operator, starts(3, 30))
    with pytest.raises(ValueError, match="got NaN or Inf at step 0 of right-hand side 0"):
        lsfast.solve(toeplitz(30) * float("nan"), starts(3, 30))
    with pytest.raises(ValueError, match="got NaN or Inf at step 0 of right-hand side 0"):
        lsfast.solve(toeplitz(30) * float("nan"), starts(3, 30), start=starts(3, 30))


def test_bad_arguments_are_named():
    A, b = toeplitz(6), torch.ones(6).double()
    cases = [
        ({"b": torch.ones(5).double()}, r"b must have shape \[6\] or \[k, 6\] with k of 1 or more, got \[5\]"),
        ({"b": torch.ones(0, 6).double()}, r"b must .* with k of 1 or more, got \[0, 6\]"),
        ({"b": b.float()}, "b must have dtype torch.float64, got torch.float32"),
        ({"b": b * float("nan")}, "b must be finite, got NaN or Inf in row 0"),
        ({"start": b[:5]}, r"start must have the shape \[6\] of b, got \[5\]"),
        ({"start": b / 0}, "start must be finite, got NaN or Inf in row 0"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1, got 0.0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"shift": float("inf")}, "shift must be finite, got inf"),
        ({"A": A + torch.diag(torch.ones(5).double(), 1)}, "A must be symmetric"),
        ({"A": A.half()}, "A must be an operator in float32 or float64"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match="solve: " + message):
            lsfast.solve(**({"A": A, "b": b} | changed))
    with pytest.raises(TypeError, match="solve: shift must be a number, got True"):
        lsfast.solve(A, b, True)
