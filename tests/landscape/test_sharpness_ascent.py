"""The operators of an ascent within a ball or a box."""

import pytest
import torch

from lsfast.landscape import reference
from lsfast.landscape.ascent import ascent_step, ascent_sums

ops = torch.ops.lsfast
REAL = [torch.float32, torch.float64]
SCALES = [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]


def arguments(k, n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u, gradient, theta = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((k, n), (k, n), (n,))
    )
    theta[::7] = 0.0
    coefficients = torch.rand(k, 2, generator=generator, dtype=torch.float64)
    return u.to(dtype), gradient.to(dtype), theta.to(dtype), coefficients


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("n", [1, 17, 1024, 300_001])
def test_sums_are_those_of_the_reference_to_rounding(n, dtype):
    u, gradient, theta, _ = arguments(2, n, dtype)
    # A term rounds at most 5 times (|theta| + offset, c g, twice in its square, the product) and passes 64 additions in
    # a lane, 4 between lanes, n / 2^18 + 8 between chunks; the reference no more. Relative to the sum of magnitudes.
    bound = 2 * (5 + 64 + 4 + 2 + 8) * 2.0**-53
    for slope, offset in SCALES:
        found = ascent_sums(u, gradient, theta, (slope, offset))
        expected = reference.ascent_sums(u, gradient, theta, slope, offset)
        magnitude = reference.ascent_sums(u.abs(), gradient.abs(), theta, slope, offset)
        assert ((found - expected).abs() <= bound * magnitude).all()
        alone = ascent_sums(None, gradient, theta, (slope, offset))
        assert torch.equal(alone[:, 0], found[:, 0])
        assert not alone[:, 1:].any()


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("n", [1, 1303])
def test_steps_have_the_bits_of_the_reference(n, box, dtype):
    u, gradient, theta, coefficients = arguments(3, n, dtype)
    for slope, offset in SCALES:
        found = ascent_step(u, gradient, theta, coefficients, (slope, offset), box)
        expected = reference.ascent_step(u, gradient, theta, coefficients, slope, offset, box)
        assert all(map(torch.equal, found, expected))
        found = ascent_step(None, gradient, theta, coefficients, (slope, offset), box)
        expected = reference.ascent_step(torch.zeros_like(u), gradient, theta, coefficients, slope, offset, box)
        assert all(map(torch.equal, found, expected))
        if offset == 0.0:
            assert torch.equal(found[1][:, ::7], torch.zeros_like(found[1][:, ::7]))


@pytest.mark.parametrize("dtype", REAL)
def test_operators_keep_the_rules_of_torch_library(dtype):
    u, gradient, theta, coefficients = arguments(2, 19, dtype)
    for given in (u, None):
        torch.library.opcheck(ops.ascent_sums, (given, gradient, theta, 1.0, 1.0))
        torch.library.opcheck(ops.ascent_step, (given, gradient, theta, coefficients, 1.0, 0.0, True))


def test_bad_arguments_are_named():
    u, gradient, theta, coefficients = arguments(2, 5)
    for change, message in (
        ((u, gradient, theta.long(), coefficients), "theta must be float32 or float64"),
        ((u, gradient.float(), theta, coefficients), "gradient must have the dtype of theta"),
        ((u[:1], gradient, theta, coefficients), r"u must have the shape of gradient, got \[1, 5\] and \[2, 5\]"),
        ((u, gradient[:, :4], theta, coefficients), r"gradient must have shape \[k, 5\], got \[2, 4\]"),
        ((u, gradient, theta, coefficients[:1]), r"coefficients must have shape \[2, 2\]"),
    ):
        with pytest.raises(RuntimeError, match=f"ascent_step: .*{message}"):
            ascent_step(*change, (0.0, 1.0), False)
