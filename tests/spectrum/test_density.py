"""Stochastic Lanczos quadrature: exactness, no ghosts, what is read from it, and its files."""

import math

import numpy as np
import pytest
import torch

import lsfast
from lsfast.spectrum import probes as probe_vectors
from lsfast.spectrum import reference
from lsfast.spectrum.basis import plan
from lsfast.spectrum.quadrature import quadrature
from lsfast.spectrum.recurrence import Recurrence

from .cases import NAMES, N, matrix, spectra, starts


@pytest.mark.parametrize("name", NAMES)
def test_quadrature_is_exact_to_degree_2m_minus_1(name):
    m, A = 6, matrix(name)
    A = A / spectra()[name].abs().max()
    start = starts(3)
    T = Recurrence(
        "test", lsfast.aslinearoperator(A), start, m, plan("test", lsfast.aslinearoperator(A), "full", None, None, None)
    )
    T.run()
    nodes, weights = quadrature("test", T.alpha, T.beta, T.steps_taken)
    v = start / start.norm(dim=1, keepdim=True)
    power = v.clone()
    for degree in range(2 * m):
        # |A| = 1: each of at most 2m products and the recurrence are off by about sqrt(N) eps.
        bound = 4 * m * N**0.5 * torch.finfo(torch.float64).eps
        assert ((weights * nodes**degree).sum(1) - (v * power).sum(1)).abs().max() <= bound, degree
        power = power @ A
    degree = 2 * m  # and no further, for a spectrum that six nodes do not hold
    if name == "indefinite":
        assert ((weights * nodes**degree).sum(1) - (v * power).sum(1)).abs().min() > 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["outliers", "indefinite"])
def test_every_node_of_a_full_run_is_an_eigenvalue_of_its_own(name, dtype):
    s = lsfast.spectral_density(matrix(name, dtype), probes=3, steps=N)
    exact = spectra()[name].sort().values
    # The matrix rounded to its dtype moves an eigenvalue by at most eps |A|_F, the recurrence by some sqrt(N) eps |A|.
    bound = 4 * N**0.5 * torch.finfo(dtype).eps * exact.abs().max()
    assert (s.nodes - exact).abs().max() <= bound


@pytest.mark.parametrize("name", NAMES)
def test_nodes_lie_inside_the_spectrum_and_interlace_from_step_to_step(name):
    exact, m = spectra()[name].sort().values, 25
    rounding = 4 * N**0.5 * torch.finfo(torch.float64).eps * exact.abs().max()
    runs = [lsfast.spectral_density(matrix(name), probes=2, steps=steps) for steps in (m, m + 1)]
    for s in runs:
        assert s.nodes.min() >= exact[0] - rounding
        assert s.nodes.max() <= exact[-1] + rounding
    few, many = (s.nodes for s in runs)
    if (runs[1].weights > 0).all():  # Cauchy: between two nodes of T_{m+1} lies one of T_m
        assert (many[:, :-1] <= few + rounding).all()
        assert (few <= many[:, 1:] + rounding).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_measure_of_a_full_depth_run_is_exact_for_any_start(name):
    A, exact = matrix(name), spectra()[name]
    values, vectors = torch.linalg.eigh(A)
    start = starts(3)
    start[1] = vectors[:, 3] + 1e-3 * vectors[:, 70]  # nearly an eigenvector
    start[2] = vectors[:, ::40].sum(1)  # sees three eigenvectors
    operator = lsfast.aslinearoperator(A)
    run = Recurrence("test", operator, start, N, plan("test", operator, "full", None, None, None)).run()
    nodes, weights = quadrature("test", run.alpha, run.beta, run.steps_taken)
    v = start / start.norm(dim=1, keepdim=True)
    for f in (torch.sin, lambda x: 1 / (x + 2 * exact.abs().max()), torch.sigmoid):
        expected = ((v @ vectors) ** 2 * f(values)).sum(1)
        # Perturbing A by N steps of rounding, sqrt(N) eps |A| each, moves f(A) by as much times |f'| <= 1.
        bound = 10 * N**0.5 * torch.finfo(torch.float64).eps * max(1.0, float(exact.abs().max()))
        assert ((weights * f(nodes)).sum(1) - expected).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_outlier_is_one_node_of_every_probe(dtype):
    s = lsfast.spectral_density(matrix("outliers", dtype), probes=4, steps=60)
    accuracy = 1e-10 if dtype == torch.float64 else 1e-5
    for outlier in (20.0, 35.0, 60.0):
        assert ((s.nodes - outlier).abs() < 1.0).sum(1).tolist() == [1, 1, 1, 1]
        assert ((s.nodes - outlier).abs() < accuracy * 60.0).sum(1).tolist() == [1, 1, 1, 1]


def test_rank_5_has_its_five_eigenvalues_once_and_padding_of_weight_zero():
    s = lsfast.spectral_density(matrix("rank5"), probes=3, steps=40)
    # In exact arithmetic a probe ends after 6 steps. Rounding leaves a beta of eps prod_j |A| / beta_j = 1e-12 there,
    # above what may be cut, so a seventh node can share the mass at 0.
    assert (s.weights[:, 7:] == 0).all()
    held = s.weights > 0
    for eigenvalue in range(1, 6):
        assert (held & ((s.nodes - eigenvalue).abs() < 1e-12)).sum(1).tolist() == [1, 1, 1]
    assert (held & (s.nodes.abs() < 1e-12)).sum(1).tolist() == (held.sum(1) - 5).tolist()
    assert s.nodes.isfinite().all()
    torch.testing.assert_close(s.weights.sum(1), torch.ones(3).double(), rtol=0, atol=1e-13)
    # The measure of v is known: the mass at lambda_i is (u_i . v)^2, so every f is exact, f = |x|^(1/2) too.
    A = matrix("rank5")
    eigenvalues, vectors = torch.linalg.eigh(A)
    v = probe_vectors.draw(lsfast.aslinearoperator(A), 0, 3, 0) / N**0.5
    exact = ((v @ vectors) ** 2 * eigenvalues.clamp(min=1e-9).sqrt()).sum(1) * N
    assert s.function_trace(lambda x: x.clamp(min=1e-9).sqrt()).value == pytest.approx(exact.mean().item(), rel=1e-9)


def test_weights_are_those_of_the_reference():
    A = matrix("outliers")
    operator = lsfast.aslinearoperator(A)
    s = lsfast.spectral_density(A, probes=2, steps=10, seed=4)
    for i in range(2):
        alpha, beta, _ = reference.lanczos(lambda v: A @ v, probe_vectors.draw(operator, i, 1, 4)[0], 10)
        nodes, weights = reference.tridiagonal_quadrature(alpha, beta)
        torch.testing.assert_close(s.nodes[i], nodes, rtol=0, atol=1e-10)
        torch.testing.assert_close(s.weights[i], weights, rtol=0, atol=1e-10)


def test_probe_depends_on_seed_and_index_alone():
    A = matrix("indefinite")
    few, many = (lsfast.spectral_density(A, probes=k, steps=8, seed=1) for k in (2, 5))
    # Products of two and of five rows may be summed in another order by the matrix product.
    torch.testing.assert_close(few.nodes, many.nodes[:2], rtol=0, atol=1e-10)
    other = lsfast.spectral_density(A, probes=2, steps=8, seed=2)
    assert (few.nodes - other.nodes).abs().max() > 1e-3
    operator = lsfast.aslinearoperator(A)
    assert torch.equal(probe_vectors.draw(operator, 3, 2, 9), probe_vectors.draw(operator, 0, 5, 9)[3:])


def test_moments_trace_cdf_and_density_of_a_known_spectrum():
    values = torch.tensor([-2.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    # Of a diagonal matrix with distinct entries every sign vector has the weights 1/n: no error at full depth.
    s = lsfast.spectral_density(torch.diag(values), probes=3, steps=4)
    assert s.trace.value == pytest.approx(3.5, abs=1e-12)
    assert s.trace.stderr == pytest.approx(0.0, abs=1e-12)
    assert s.moment(0).value == pytest.approx(1.0, abs=1e-14)
    assert s.moment(2).value == pytest.approx((values**2).mean().item(), abs=1e-12)
    assert s.function_trace(torch.exp).value == pytest.approx(values.exp().sum().item(), rel=1e-12)
    points = torch.tensor([[-3.0, 0.0], [0.75, 5.0]])
    torch.testing.assert_close(s.cdf(points).value, torch.tensor([[0.0, 0.25], [0.5, 1.0]]).double())
    x = torch.linspace(-6, 8, 4001, dtype=torch.float64)
    density = s.density(x, bandwidth=0.3)
    assert torch.trapezoid(density.value, x).item() == pytest.approx(1.0, abs=1e-9)
    at_node = torch.tensor([4.0])
    expected = sum(math.exp(-((4 - v) ** 2) / (2 * 0.06**2)) for v in values) / 4 / (0.06 * math.sqrt(2 * math.pi))
    assert s.density(at_node).value.item() == pytest.approx(expected, rel=1e-9)  # default width 1% of the range 6


def test_density_of_logarithms_of_a_known_spectrum():
    A = torch.diag(torch.logspace(-6, 2, 9, dtype=torch.float64))
    s = lsfast.spectral_density(A, probes=6, steps=9)
    # Signs see every eigenvalue with weight 1/9: a Gaussian at each logarithm, far from the others.
    x = torch.logspace(-6, 2, 9, dtype=torch.float64)
    width = 0.1
    peak = 1 / 9 / (width * math.sqrt(2 * math.pi))
    torch.testing.assert_close(s.log_density(x, width).value, torch.full((9,), peak).double(), rtol=1e-6, atol=0)
    axis = torch.linspace(-16, 7, 4001, dtype=torch.float64)
    assert float(torch.trapezoid(s.log_density(axis.exp(), width).value, axis)) == pytest.approx(1.0, abs=1e-6)


def test_density_of_logarithms_leaves_out_rounding_and_refuses_negative_eigenvalues():
    A = torch.diag(torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    s = lsfast.spectral_density(A, probes=4, steps=4)
    axis = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    assert float(torch.trapezoid(s.log_density(axis.exp(), 0.1).value, axis)) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="log_density: the operator must have no negative eigenvalues, got one at -1"):
        lsfast.spectral_density(A - 1.0 * torch.eye(4).double(), probes=2, steps=4).log_density(axis.exp())
    with pytest.raises(ValueError, match="must have a positive eigenvalue"):
        lsfast.spectral_density(0 * A, probes=2, steps=4).log_density(axis.exp())
    with pytest.raises(ValueError, match="log_density: x must be above 0, got -3"):
        s.log_density(axis)


def test_standard_error_is_the_deviation_over_the_root_of_the_probes():
    s = lsfast.spectral_density(matrix("indefinite"), probes=5, steps=4)
    each = (s.weights * s.nodes).sum(1).numpy() * N
    assert s.trace.value == pytest.approx(each.mean(), rel=1e-12)
    assert s.trace.stderr == pytest.approx(each.std(ddof=1) / math.sqrt(5), rel=1e-12)
    assert math.isnan(lsfast.spectral_density(matrix("indefinite"), probes=1, steps=4).trace.stderr)


def test_criteria_of_a_known_spectrum():
    values = torch.tensor([-2.0, -0.5, 1.0, 4.0, 0.0], dtype=torch.float64)
    c = lsfast.spectral_density(torch.diag(values), probes=2, steps=5).criteria()
    assert (c.smallest, c.largest) == (pytest.approx(-2.0), pytest.approx(4.0))
    assert c.spectral_norm == pytest.approx(4.0)
    assert c.extreme_ratio == pytest.approx(0.5)
    assert c.negative_mass.value == pytest.approx(0.4)
    assert c.negative_ratio.value == pytest.approx((2**0.5 + 0.5**0.5) / (1 + 2))
    assert c.negative_ratio_powered.value == pytest.approx((2**0.5 + 0.5**0.5) / (1 + 2))
    assert c.effective_rank.value == pytest.approx(7.5**2 / 21.25)
    assert c.frobenius_norm.value == pytest.approx(21.25**0.5)
    outliers = lsfast.spectral_density(matrix("outliers"), probes=4, steps=60).criteria()
    assert outliers.outliers.value == 3.0
    assert 1.0 < outliers.bulk_edge < 20.0
    zero = lsfast.spectral_density(torch.zeros(4, 4), probes=2, steps=3).criteria()
    assert zero.negative_mass.value == zero.effective_rank.value == zero.frobenius_norm.value == 0.0


def test_saved_is_loaded_and_a_torn_file_is_refused(tmp_path):
    s = lsfast.spectral_density(matrix("outliers"), probes=2, steps=5)
    path = tmp_path / "density.npz"
    s.save(path)
    back = lsfast.SpectralDensity.load(path)
    assert torch.equal(back.nodes, s.nodes)
    assert torch.equal(back.weights, s.weights)
    assert (back.n, back.epsilon) == (s.n, s.epsilon)
    assert [p.name for p in tmp_path.iterdir()] == ["density.npz"]
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="SpectralDensity.load: path must be a whole file of .*density.npz"):
            lsfast.SpectralDensity.load(path)
    flipped = bytearray(whole)
    flipped[200] ^= 1  # within the data: the checksum of the archive sees it
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="load: path must be"):
        lsfast.SpectralDensity.load(path)
    np.savez(path, nodes=np.zeros((2, 3)), weights=np.zeros((2, 2)), n=4, epsilon=1.0)
    with pytest.raises(ValueError, match="must be a whole file of"):
        lsfast.SpectralDensity.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "density.npz"
    path.write_bytes(b"old")

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        lsfast.spectral_density(torch.eye(3), probes=1, steps=1).save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["density.npz"]


def test_plot_names_its_axes_and_writes_a_file(tmp_path):
    s = lsfast.spectral_density(matrix("outliers"), probes=3, steps=20)
    (axes,) = s.plot(tmp_path / "density.png").axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == (r"eigenvalue $\lambda$", "density", "log")
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    assert len(axes.collections) == 1  # the band


def test_bad_arguments_are_named():
    A = torch.eye(4)
    for changed, message in [
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"steps": -3}, "steps must be at least 1, got -3"),
        ({"seed": -1}, "seed must be at least 0"),
    ]:
        with pytest.raises(ValueError, match="spectral_density: " + message):
            lsfast.spectral_density(A, **changed)
    with pytest.raises(ValueError, match="spectral_density: .*NaN or Inf at step 0 of probe 0"):
        lsfast.spectral_density(A * float("nan"))
    s = lsfast.spectral_density(A, probes=2, steps=2)
    with pytest.raises(ValueError, match="density: bandwidth must be above 0, got -1"):
        s.density(torch.zeros(1), bandwidth=-1.0)
    with pytest.raises(TypeError, match="bandwidth must be a number"):
        s.density(torch.zeros(1), bandwidth="wide")
    with pytest.raises(ValueError, match="density: x must be a floating-point tensor"):
        s.density(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="moment: p must be at least 0"):
        s.moment(-1)
    with pytest.raises(ValueError, match="function_trace: f must return a tensor"):
        s.function_trace(torch.sum)
