"""Sharpness: closed forms, and what it does not depend on."""

import itertools
import math

import pytest
import torch

import lsfast

from .problems import of_network, of_parameters


def quadratic(dtype=torch.float64):
    hessian = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 4.0]], dtype=dtype)
    theta = torch.tensor([0.5, -2.0, 1.0], dtype=dtype)
    return of_parameters(lambda x: 0.5 * x @ hessian @ x, theta), hessian, theta


@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_sam_of_a_quadratic_is_its_closed_form(radius):
    objective, hessian, theta = quadratic()
    gradient = hessian @ theta
    unit = gradient / gradient.norm()
    expected = radius * gradient.norm() + 0.5 * radius**2 * unit @ hessian @ unit
    found = lsfast.sharpness(objective, radius=radius)
    assert (found.dtype, found.shape) == (torch.float64, ())
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_asam_of_a_quadratic_is_its_closed_form():
    objective, hessian, theta = quadratic()
    gradient = hessian @ theta
    step = 0.1 * theta**2 * gradient / (theta.abs() * gradient).norm()
    expected = gradient @ step + 0.5 * step @ hessian @ step
    torch.testing.assert_close(lsfast.sharpness(objective, "asam", 0.1), expected, rtol=1e-13, atol=1e-13)


def test_asam_does_not_change_when_layers_are_rescaled():
    def product(theta):  # a network of two layers: scaling one and unscaling the other leaves it the same
        return (theta[0] * theta[1] - 3.0) ** 2

    one = of_parameters(product, torch.tensor([1.0, 2.0], dtype=torch.float64))
    other = of_parameters(product, torch.tensor([8.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(lsfast.sharpness(one, "asam"), lsfast.sharpness(other, "asam"), rtol=1e-12, atol=0)
    assert abs(lsfast.sharpness(one, "sam") - lsfast.sharpness(other, "sam")) > 0.1


@pytest.mark.parametrize("method", ["sam", "asam"])
def test_zero_gradient_has_zero_sharpness(method):
    flat = of_parameters(lambda theta: (theta * 0.0).sum() + 2.0, torch.ones(4))
    assert lsfast.sharpness(flat, method).item() == 0.0
    at_zero = of_parameters(lambda theta: theta.sum(), torch.zeros(4))
    assert (lsfast.sharpness(at_zero, "asam").item(), lsfast.sharpness(at_zero, "sam").item() > 0) == (0.0, True)


def test_loss_that_is_infinite_uphill_gives_infinity():
    wall = of_parameters(lambda theta: -torch.log(1.0 - theta[0]), torch.tensor([0.5]))
    assert lsfast.sharpness(wall, radius=0.5).item() == float("inf")


def test_sam_of_float32_is_its_closed_form_to_rounding():
    objective, hessian, theta = quadratic(torch.float32)
    expected = lsfast.sharpness(quadratic(torch.float64)[0], radius=0.5)
    # Of each term of the double sum: x rounds twice (the step, the sum) and enters twice, and each of the two products
    # with a vector rounds a term at most 3 times. 10 roundings of 2^-24 in each of the two losses.
    x = theta.double().abs() + 0.5
    bound = 2 * 10 * 2.0**-24 * 0.5 * (x @ hessian.double().abs() @ x)
    assert abs(lsfast.sharpness(objective, radius=0.5) - expected) <= bound


def drawn(n=5, lowest=-1.0, highest=4.0, seed=0):
    """A quadratic 1/2 (w - w*)' H (w - w*) with eigenvalues from lowest to highest; w, H and g."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    basis = torch.linalg.qr(draw(n, n)).Q
    hessian = basis @ torch.diag(torch.linspace(lowest, highest, n, dtype=torch.float64)) @ basis.T
    minimum, theta = draw(n), draw(n)
    objective = of_parameters(lambda x: 0.5 * (x - minimum) @ hessian @ (x - minimum), theta)
    return objective, theta, hessian, hessian @ (theta - minimum)


def trust_region_maximum(hessian, gradient, radius):
    """Max of g'd + d'Hd/2 over |d| <= radius, by bisection of the secular equation |(mu - H)^-1 g| = radius."""
    values, vectors = torch.linalg.eigh(hessian)
    g = vectors.T @ gradient
    low, high = float(values[-1]), float(values[-1].clamp(min=0)) + float(g.norm()) / radius + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (g / (middle - values)).norm() > radius else (low, middle)
    d = g / (high - values)
    return g @ d + 0.5 * (values * d * d).sum()


@pytest.mark.parametrize("lowest", [0.5, -1.0, -8.0])
@pytest.mark.parametrize(("radius", "adaptive"), [(0.05, False), (2.0, False), (0.5, True)])
def test_worst_in_a_ball_is_the_trust_region_maximum(radius, adaptive, lowest):
    for seed in range(3):
        objective, theta, hessian, gradient = drawn(6, lowest, 4.0, seed)
        c = theta.abs() if adaptive else torch.ones_like(theta)
        expected = trust_region_maximum(c[:, None] * hessian * c, c * gradient, radius)
        found = lsfast.sharpness(objective, "worst", radius, adaptive=adaptive, steps=60)
        assert (found.dtype, found.shape) == (torch.float64, ())
        # It converges linearly, slowly where the most negative curvature is twice the largest; nothing exceeds the
        # maximum but by rounding of losses below 100.
        assert -1e-12 <= expected - found <= (1e-3 if lowest == -8.0 else 1e-6) * expected
        in_20 = lsfast.sharpness(objective, "worst", radius, adaptive=adaptive)
        assert -1e-12 <= expected - in_20 <= 0.01 * expected
        assert in_20 >= lsfast.sharpness(objective, "asam" if adaptive else "sam", radius) - 1e-12


def vertices(n):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def test_worst_in_a_box_and_keskar_are_found_at_a_vertex_of_a_convex_quadratic():
    for seed in range(6):
        objective, theta, hessian, gradient = drawn(6, 0.1, 4.0, seed)
        for name, options, c in (
            ("worst", {"p": math.inf}, torch.ones_like(theta)),
            ("worst", {"p": math.inf, "adaptive": True}, theta.abs()),
            ("keskar", {}, theta.abs() + 1.0),
        ):
            # Up to this radius no entry of the gradient changes its sign in the box: its vertex is the best. In larger
            # boxes that takes a search of all vertices, and one is found to which its own gradient points.
            sure = float((gradient.abs() / (hessian.abs() @ c)).min())
            for radius, share in ((sure, 1.0), (0.3, 0.9)):
                d = radius * c * vertices(6)
                rises = d @ gradient + 0.5 * ((d @ hessian) * d).sum(1)
                if name == "keskar":
                    rises = 100.0 * rises / (1.0 + objective.loss())
                found = lsfast.sharpness(objective, name, radius, **options)
                # The losses, below 100, are subtracted.
                assert (rises - found).abs().min() <= 1e-11 * rises.max() + 1e-12
                assert found >= share * rises.max() - 1e-12


def test_box_around_a_saddle_is_searched_to_a_stationary_point():
    objective, _, hessian, gradient = drawn(6, -8.0, 4.0)
    found = lsfast.sharpness(objective, "worst", 1.0, p=math.inf)
    inside = 2.0 * torch.rand(20000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1.0
    rises = inside @ gradient + 0.5 * ((inside @ hessian) * inside).sum(1)
    assert found >= rises.max()


@pytest.mark.parametrize("p", [2, math.inf])
def test_worst_at_a_minimum_leaves_it(p):
    hessian = torch.diag(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    objective = of_parameters(lambda x: 0.5 * x @ hessian @ x, torch.zeros(3, dtype=torch.float64))
    found = lsfast.sharpness(objective, "worst", 0.5, p=p, seed=3)
    expected = 0.5 * 6.0 * 0.5**2 if p == 2 else 0.5 * 9.0 * 0.5**2
    assert abs(found.item() - expected) <= 1e-6 * expected
    assert lsfast.sharpness(objective, "worst", 0.5, p=p, adaptive=True).item() == 0.0  # 0 does not move


def test_worst_of_a_loss_that_is_nowhere_higher_is_0_and_of_one_that_is_infinite_is_infinite():
    top = of_parameters(lambda x: -(x @ x), torch.zeros(3))
    assert lsfast.sharpness(top, "worst").item() == 0.0
    wall = of_parameters(lambda theta: -torch.log(1.0 - theta[0]), torch.tensor([0.5]))
    assert lsfast.sharpness(wall, "worst", 0.5).item() == math.inf


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_is_half_the_trace_within_its_error(adaptive):
    objective, theta, hessian, _ = drawn()
    c = theta.abs() if adaptive else torch.ones_like(theta)
    found = lsfast.sharpness(objective, "average", 0.1, adaptive=adaptive, samples=400, seed=1)
    expected = 0.5 * 0.1**2 * (hessian.diagonal() * c**2).sum()
    # d'Hd / 2 has the variance rho^4 |cHc|^2 / 2: pairs of opposite sign have no share of the gradient.
    scaled = c[:, None] * hessian * c
    deviation = 0.1**2 * math.sqrt(0.5) * scaled.norm()
    assert abs(found.value - expected) <= 4.0 * found.stderr
    assert 0.8 * deviation <= found.stderr * math.sqrt(400) <= 1.25 * deviation
    again = lsfast.sharpness(objective, "average", 0.1, adaptive=adaptive, samples=400, seed=1)
    assert torch.equal(again.value, found.value)
    assert lsfast.sharpness(objective, "average", 0.1, samples=1).stderr.isnan()


def test_average_does_not_depend_on_how_many_draws_are_taken_at_once():
    objective = drawn()[0]
    small = lsfast.Objective(objective.model, objective.loss_fn, objective.data, memory_limit=1)
    one, other = (lsfast.sharpness(x, "average", samples=7) for x in (objective, small))
    torch.testing.assert_close(one.value, other.value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_critical_of_a_quadratic_is_its_closed_form(scale):
    objective, _, hessian, gradient = drawn(5, 0.5, 4.0)
    stretched = of_parameters(lambda x: scale * objective.loss_fn(x, None), objective.parameters)
    expected = scale * gradient @ hessian @ gradient / gradient.square().sum()
    assert abs(lsfast.sharpness(stretched, "critical") / expected - 1.0) <= 4.0**-7
    steep = torch.tensor([1.0, 1e4], dtype=torch.float64)  # 2500 times steeper than the first guess allows for
    valley = of_parameters(lambda x: 0.5 * scale * (steep * x * x).sum(), torch.tensor([100.0, 0.01]).double())
    assert abs(lsfast.sharpness(valley, "critical") / (0.5 * scale * (1.0 + 1e4)) - 1.0) <= 4.0**-7
    along = gradient + 0.3
    # The loss along -d is L - eta g'd + eta^2 d'Hd / 2, which is back at L for eta = 2 g'd / d'Hd.
    expected = scale * (along @ hessian @ along) / (scale * (gradient @ along))
    found = lsfast.sharpness(stretched, "critical", direction=along)
    assert abs(found / expected - 1.0) <= 4.0**-7


def test_critical_is_infinite_uphill_0_without_a_rise_and_stops_at_the_first_one():
    objective, _, _, gradient = drawn(5, 0.5, 4.0)
    assert lsfast.sharpness(objective, "critical", direction=-gradient).item() == math.inf
    line = of_parameters(lambda x: 3.0 * x.sum(), torch.ones(2, dtype=torch.float64))
    with pytest.warns(RuntimeWarning, match="sharpness: the loss does not rise up to a step of"):
        assert lsfast.sharpness(line, "critical").item() == 0.0
    # sin at -pi / 4 falls to -1 and is back at -3 pi / 4, a step down of pi / 2; it is higher again in every period.
    wave = of_parameters(lambda x: x.sin().sum(), torch.tensor([-0.25 * math.pi], dtype=torch.float64))
    step = 0.5 * math.pi / math.cos(0.25 * math.pi)
    assert abs(lsfast.sharpness(wave, "critical").item() * step / 2.0 - 1.0) <= 4.0**-7
    with pytest.raises(ValueError, match="direction must not be 0"):
        lsfast.sharpness(of_parameters(lambda x: x @ x, torch.zeros(2)), "critical")


def test_parameters_gradients_and_random_state_are_left_alone():
    objective = of_network()
    before, state = objective.parameters, torch.get_rng_state()
    options = {"average": {"samples": 2}, "worst": {"steps": 3}, "keskar": {"steps": 2}}
    for method in ("sam", "asam", "average", "worst", "keskar", "critical"):
        value = lsfast.sharpness(objective, method, **options.get(method, {}))
        assert torch.isfinite(value.value if method == "average" else value)
    assert torch.equal(objective.parameters, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in objective.model.parameters())


def test_bar_counts_what_is_done(capsys):
    objective = drawn()[0]
    lsfast.sharpness(objective, "average", samples=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    lsfast.sharpness(objective, "average", samples=3)
    assert capsys.readouterr().err == ""


def test_bad_arguments_are_named():
    objective, _, _ = quadratic()
    below = of_parameters(lambda x: x.sum() - 4.0, torch.ones(1))
    critical = lambda direction: lsfast.sharpness(objective, "critical", direction=direction)  # noqa: E731
    for call, error, message in (
        (lambda: lsfast.sharpness(2), TypeError, "objective must be an Objective, got int"),
        (lambda: lsfast.sharpness(objective, "flat"), ValueError, "method must be one of 'sam', .* got 'flat'"),
        (lambda: lsfast.sharpness(objective, radius=0), ValueError, "radius must be a finite number > 0, got 0"),
        (lambda: lsfast.sharpness(objective, radius=float("nan")), ValueError, "finite number > 0, got nan"),
        (lambda: lsfast.sharpness(objective, radius="1"), TypeError, "radius must be a number, got '1'"),
        (
            lambda: lsfast.sharpness(objective, steps=5),
            ValueError,
            "steps must not be given for 'sam', which has radius",
        ),
        (lambda: lsfast.sharpness(objective, "asam", p=2), ValueError, "p must not be given for 'asam'"),
        (lambda: lsfast.sharpness(objective, "average", steps=3), ValueError, "steps must not be given for 'average'"),
        (lambda: lsfast.sharpness(objective, "worst", samples=3), ValueError, "samples must not be given for 'worst'"),
        (lambda: lsfast.sharpness(objective, "keskar", adaptive=True), ValueError, "adaptive must not be given"),
        (lambda: lsfast.sharpness(objective, "critical", 0.05), ValueError, "radius must not be given for 'critical'"),
        (lambda: lsfast.sharpness(objective, direction=torch.ones(3)), ValueError, "direction must not be given"),
        (lambda: lsfast.sharpness(objective, "worst", p=3), ValueError, "p must be 2 or math.inf, got 3"),
        (lambda: lsfast.sharpness(objective, "worst", steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: lsfast.sharpness(objective, "average", samples=2.5), TypeError, "samples must be an integer, got 2.5"),
        (lambda: lsfast.sharpness(objective, "average", seed=-1), ValueError, "seed must be at least 0, got -1"),
        (
            lambda: lsfast.sharpness(objective, "average", adaptive=1),
            TypeError,
            "adaptive must be True or False, got 1",
        ),
        (lambda: critical(torch.ones(2).double()), ValueError, r"direction must have shape \[3\], got \[2\]"),
        (lambda: critical(torch.full((3,), math.nan).double()), ValueError, "direction must be finite"),
        (lambda: critical(torch.zeros(3).double()), ValueError, "direction must not be 0"),
        (lambda: critical(torch.ones(3)), ValueError, "direction must have dtype torch.float64, got torch.float32"),
        (lambda: lsfast.sharpness(below, "keskar"), ValueError, "keskar must have a loss above -1, got -3.0"),
    ):
        with pytest.raises(error, match=f"sharpness: .*{message}"):
            call()
