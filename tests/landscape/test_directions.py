"""Random directions: lengths, angles, orthogonality."""

import math

import pytest
import torch

import lsfast
from lsfast.landscape import reference

from .problems import of_network, of_parameters

NORMALIZE = ["filter", "layer", "model", None]


def zero_at(outputs):
    return outputs[0] * 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_every_group_has_the_norm_of_thetas(normalize, orthogonal, dtype):
    objective = of_network(dtype)
    vectors = lsfast.random_directions(objective, 3, normalize, orthogonal, seed=1).vectors
    groups = reference.segments(objective.shapes, normalize)
    found, theta = reference.norms(vectors, groups), reference.norms(objective.parameters[None], groups)[0]
    eps = torch.finfo(dtype).eps
    for i, (first, end, scaled) in enumerate(groups):
        # The factor and the product round once each, by eps / 2 of the element; norms in float64 add their 1e-14.
        expected = theta[i] if scaled else torch.zeros(())
        for k in range(3):
            assert abs(found[k, i] - expected) <= (1.01 * eps + 1e-14) * expected, (first, end, k)


def test_biases_and_norm_weights_are_zero_for_filter_and_layer_only():
    objective = of_network()
    for normalize in NORMALIZE:
        vector = lsfast.random_directions(objective, 1, normalize).vectors[0]
        for part in objective.unflatten(vector).values():
            assert part.any() == (part.dim() >= 2 or normalize in ("model", None))


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
def test_native_scaling_agrees_with_the_reference(normalize):
    objective = of_network(torch.float64)
    drawn = lsfast.random_directions(objective, 2, None, seed=4).vectors
    expected = reference.normalized(drawn, objective.parameters, reference.segments(objective.shapes, normalize))
    found = lsfast.random_directions(objective, 2, normalize, seed=4).vectors
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_orthogonal_directions_are_so_in_every_group_after_scaling(normalize, dtype):
    objective = of_network(dtype)
    vectors = lsfast.random_directions(objective, 3, normalize, orthogonal=True, seed=2).vectors.double()
    for first, end, _ in reference.segments(objective.shapes, normalize):
        for i in range(3):
            for j in range(i):
                a, b = vectors[i, first:end], vectors[j, first:end]
                # After the second pass each element carries the rounding of i subtractions, each a product and a
                # difference; scaling rounds those of a and of b once: at most 2 i + 2 <= 6 roundings of eps / 2.
                assert abs(a.dot(b)) <= 3 * torch.finfo(dtype).eps * a.norm() * b.norm()


def test_orthogonalization_agrees_with_the_reference():
    objective = of_network(torch.float64)
    groups = reference.segments(objective.shapes, "filter")
    drawn = lsfast.random_directions(objective, 3, None, seed=4).vectors
    expected = reference.normalized(reference.orthogonalized(drawn, groups), objective.parameters, groups)
    found = lsfast.random_directions(objective, 3, "filter", orthogonal=True, seed=4).vectors
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_directions_beyond_the_size_of_a_group_are_zero_there():
    objective = of_parameters(zero_at, torch.ones(4, 2), torch.ones(3, 5))
    vectors = lsfast.random_directions(objective, 4, "filter", orthogonal=True).vectors
    small, large = vectors[:, :8].view(4, 4, 2), vectors[:, 8:].view(4, 3, 5)
    assert small[:2].any(dim=2).all()
    assert not small[2:].any()
    assert large.any(dim=2).all()


def test_filter_of_zeros_gets_zero_and_no_nan():
    weight = torch.ones(3, 4)
    weight[1] = 0
    vectors = lsfast.random_directions(of_parameters(zero_at, weight), 2).vectors.view(2, 3, 4)
    assert vectors.any(dim=2).tolist() == [[True, False, True]] * 2
    assert vectors.isfinite().all()


@pytest.mark.parametrize("normalize", ["filter", "model", None])
def test_angles_are_those_of_independent_gaussians(normalize):
    torch.manual_seed(3)
    objective = of_parameters(zero_at, torch.randn(4, 50), torch.randn(6, 20))
    count = 150
    vectors = lsfast.random_directions(objective, count, normalize).vectors.double()
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[*torch.triu_indices(count, count, 1)]
    # On a sphere of m dimensions the cosine of two random vectors has mean 0 and variance 1 / m; per filter they add up
    # by weight |theta_f|^2. Cosines of all pairs are uncorrelated, so mean and mean square have these standard errors
    # (fourth moment 3 / (m (m + 2)) or less than three times the variance squared: variance of the square <= 2 v^2).
    variance = 1.0 / objective.n
    if normalize == "filter":
        theta, groups = objective.parameters[None], reference.segments(objective.shapes, "filter")
        share = reference.norms(theta, groups)[0] ** 2 / theta.double().norm() ** 2
        variance = sum(float(w) ** 2 / (end - first) for w, (first, end, _) in zip(share, groups, strict=True))
    pairs = len(cosines)
    assert abs(cosines.mean()) <= 5 * math.sqrt(variance / pairs)
    assert abs(cosines.square().mean() - variance) <= 5 * variance * math.sqrt(2.0 / pairs)


def test_entries_unscaled_are_standard_normal():
    objective = of_parameters(zero_at, torch.ones(100, 200))
    entries = lsfast.random_directions(objective, 1, None).vectors.double()
    n = entries.numel()
    assert abs(entries.mean()) <= 5 / math.sqrt(n)
    assert abs(entries.square().mean() - 1) <= 5 * math.sqrt(2 / n)


def test_seed_decides_and_neither_the_count_nor_the_global_generator_matters():
    objective = of_network()
    before = torch.get_rng_state()
    first = lsfast.random_directions(objective, 3, seed=7).vectors
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(lsfast.random_directions(objective, 2, seed=7).vectors, first[:2])
    assert not torch.equal(lsfast.random_directions(objective, 3, seed=8).vectors, first)


def test_bad_arguments_are_named():
    objective = of_network()
    biases = of_parameters(zero_at, torch.ones(3))
    for call, error, message in (
        (lambda: lsfast.random_directions(3), TypeError, "objective must be an Objective, got int"),
        (lambda: lsfast.random_directions(objective, 0), ValueError, "count must be at least 1, got 0"),
        (lambda: lsfast.random_directions(objective, 2.0), TypeError, "count must be an integer, got 2.0"),
        (
            lambda: lsfast.random_directions(objective, normalize="row"),
            ValueError,
            "'filter', 'layer', 'model', got 'row'",
        ),
        (lambda: lsfast.random_directions(objective, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (
            lambda: lsfast.random_directions(objective, orthogonal=1),
            TypeError,
            "orthogonal must be True or False, got 1",
        ),
        (
            lambda: lsfast.random_directions(biases),
            ValueError,
            "'filter' makes every direction 0, .* have one dimension",
        ),
        (lambda: lsfast.Directions(torch.ones(3)), ValueError, r"vectors must have shape \[count, n\], got \[3\]"),
        (
            lambda: lsfast.Directions(torch.ones(1, 3), torch.ones(2)),
            ValueError,
            r"origin must have shape \[3\], got \[2\]",
        ),
        (
            lambda: lsfast.Directions(torch.ones(1, 3), labels=("a", "b")),
            ValueError,
            "one for each of 1 directions, got 2",
        ),
        (
            lambda: lsfast.Directions(torch.ones(1, 3), buffers={"mean": torch.ones(3, 4)}),
            ValueError,
            r"buffers\['mean'\] must have 2 rows, the origin's first, got \[3, 4\]",
        ),
        (
            lambda: lsfast.Directions(torch.ones(1, 3), buffers=[torch.ones(2, 4)]),
            TypeError,
            "buffers must be a dict of tensors by name, got list",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
