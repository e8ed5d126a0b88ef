"""Linear CKA."""

import pytest
import torch

import lsfast


def features(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "p", "q"), [(30, 4, 6), (6, 20, 9), (10, 3, 80)])
def test_cka_is_its_definition_with_centering_matrices(rows, p, q):
    x, y = features(rows, p, 0) + 3, features(rows, q, 1) - 2
    centering = torch.eye(rows, dtype=torch.float64) - 1 / rows
    k, l = centering @ x @ x.T @ centering, centering @ y @ y.T @ centering
    expected = (k * l).sum() / (k.norm() * l.norm())
    torch.testing.assert_close(lsfast.linear_cka(x, y), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(lsfast.linear_cka(y, x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("columns", [5, 40])
def test_cka_does_not_see_rotations_scales_and_shifts_but_other_maps(columns):
    x, y = features(20, columns, 0), features(20, 7, 1)
    rotation = torch.linalg.qr(features(columns, columns, 2))[0]
    before = lsfast.linear_cka(x, y)
    torch.testing.assert_close(lsfast.linear_cka(-1e200 * (x @ rotation), 1e-200 * y), before, rtol=1e-12, atol=0)
    torch.testing.assert_close(lsfast.linear_cka(x @ rotation + 5.0, y), before, rtol=1e-12, atol=0)
    torch.testing.assert_close(lsfast.linear_cka(x, x @ rotation).item(), 1.0, rtol=1e-12, atol=0)
    stretched = x * torch.linspace(0.1, 3, columns, dtype=torch.float64)
    assert abs(lsfast.linear_cka(stretched, y) - before) > 1e-3


def test_cka_of_uncorrelated_features_is_zero_and_further_axes_are_features():
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert lsfast.linear_cka(x, y) == 0
    images = features(9, 12, 0).view(9, 3, 2, 2)
    assert lsfast.linear_cka(images, y[:3].repeat(3, 1)) == lsfast.linear_cka(images.flatten(1), y[:3].repeat(3, 1))


def test_bad_features_are_named():
    x = features(6, 3, 0)
    for call, error, message in (
        (lambda: lsfast.linear_cka([1.0], x), TypeError, "x must be a tensor, got list"),
        (lambda: lsfast.linear_cka(x, x.long()), ValueError, "y must be a floating-point tensor, got torch.int64"),
        (lambda: lsfast.linear_cka(x, x[:5]), ValueError, "y must have the 6 rows of x, got 5"),
        (lambda: lsfast.linear_cka(x[0], x[0]), ValueError, r"x must have shape \[rows, features\], got \[3\]"),
        (lambda: lsfast.linear_cka(x[:1], x[:1]), ValueError, "x must have at least 2 rows, got 1"),
        (lambda: lsfast.linear_cka(x, x * 0), ValueError, "y must vary over its rows"),
        (lambda: lsfast.linear_cka(x[:1].expand(6, 3) / 3, x), ValueError, "x must vary over its rows"),
        (lambda: lsfast.linear_cka(x, x / 0), ValueError, "y must be finite, got NaN or Inf in it"),
        (lambda: lsfast.linear_cka(x, x.to("meta")), ValueError, "y must be on cpu, like x, got meta"),
    ):
        with pytest.raises(error, match=f"linear_cka: {message}"):
            call()
