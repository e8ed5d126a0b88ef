"""The NumPy reference against what does not depend on it: definitions, SciPy's Hadamard matrix, worked examples."""

import numpy as np
import pytest
import scipy.linalg
from hard_tensors import hard_tensor, words_of

import lsfast
from lsfast.quantization import reference

SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("seed", [None, 3])
def test_hadamard_is_the_product_with_sylvesters_matrix(size, seed):
    # Sums of integers are exact in any order; what remains is one product with float32(1/sqrt(size)).
    x = np.random.default_rng(0).integers(-100, 100, (3, 2 * size, 5)).astype(np.float32)
    signs = reference.hadamard_signs(size, seed)
    matrix = scipy.linalg.hadamard(size).astype(np.float32)
    groups = np.moveaxis(x, 1, -1).reshape(3, 5, 2, size)
    expected = ((groups * signs) @ matrix) * np.float32(1 / np.sqrt(size))
    assert np.array_equal(reference.hadamard(x, signs, axis=1), np.moveaxis(expected.reshape(3, 5, -1), -1, 1))
    back = reference.hadamard(reference.hadamard(x, signs, axis=1), signs, axis=1, inverse=True)
    # Two products with the factor, exact for 16 and 64, and two sums of `size` terms of at most 100 sqrt(size).
    np.testing.assert_allclose(back, x, rtol=0, atol=0.0 if size in (16, 64) else size * 100 * 2.0**-22)


def test_signs_are_the_fixed_ones_repeated_or_top_bits_of_the_seeds_words():
    assert reference.hadamard_signs(32).tolist() == SIGNS * 2
    negative = [word >> 31 == 1 for word in reference.philox(np.arange(128), 9).tolist()]
    assert (reference.hadamard_signs(128, 9) < 0).tolist() == negative
    assert 32 < sum(negative) < 96


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("block", ["tensor", "row", 16, (16, 16)])
def test_elements_share_a_block_number_iff_they_share_a_block(axis, block):
    shape = (3, 18, 33)
    if isinstance(block, tuple) and axis == 0:
        with pytest.raises(ValueError, match="an axis before"):
            reference.block_numbers(shape, block, axis)
        return
    number = reference.block_numbers(shape, block, axis)
    blocks: dict[tuple[int, ...], set[int]] = {}
    for at in np.ndindex(shape):
        place = list(at)
        if block == "tensor":
            place = [0]
        elif block == "row":
            place[axis] = 0
        else:
            place[axis] //= 16
            place[axis - 1] //= 16 if isinstance(block, tuple) else 1
        blocks.setdefault(tuple(place), set()).add(int(number[at]))
    assert all(len(numbers) == 1 for numbers in blocks.values())
    assert len(set.union(*blocks.values())) == len(blocks)


@pytest.mark.parametrize("name", ["nvfp4", "mxint8", "fp8_e4m3_row", "nf4_g64"])
def test_an_axis_is_the_last_axis_of_the_moved_array(name):
    x = hard_tensor(0, (20, 35, 17))
    scheme = lsfast.scheme(name).replace(rounding="stochastic")
    words = words_of(x.shape, 1)
    for axis in range(3):
        moved = reference.fake_quantize(np.moveaxis(x, axis, -1), scheme, words=np.moveaxis(words, axis, -1))
        assert np.array_equal(reference.fake_quantize(x, scheme, axis, words), np.moveaxis(moved, -1, axis))


@pytest.mark.parametrize(
    ("name", "rule", "amax", "expected"),
    [
        # The OCP rule: 2^(floor(log2 amax) - emax), so that 7.9 saturates at 6.
        ("mxfp4", "floor", 7.9, 6.0),
        ("mxfp4", "ceil", 7.9, 8.0),
        ("mxfp4", "rceil", 7.9, 8.0),
        ("mxfp4", "even", 7.9, 8.0),
        ("mxfp4", "even", 6.9, 6.0),
        ("mxfp4", "rceil", 6.0, 6.0),
        ("mxfp4", "ceil", 6.0, 6.0),
        ("mxfp8_e4m3", "floor", 500.0, 448.0),
        ("mxfp8_e4m3", "rceil", 449.0, 448.0),
        ("mxfp8_e4m3", "rceil", 500.0, 512.0),
        ("mxint8", "floor", 1.999, 127 / 64),
        ("mxint8", "even", 1.999, 2.0),
        ("int8", "fp32", 10.0, 10.0),
        ("int8", "power_of_two", 10.0, 10.0),
        ("int8", "power_of_two", 10.07, 10.125),
    ],
)
def test_worked_examples(name, rule, amax, expected):
    scheme = lsfast.scheme(name).replace(scale_rule=rule)
    result = reference.fake_quantize(np.array([amax, 0.0, -amax]), scheme)
    np.testing.assert_allclose(result, [expected, 0.0, -expected], rtol=2.0**-22, atol=0)
