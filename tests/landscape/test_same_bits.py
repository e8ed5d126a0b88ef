"""The kernels of the room give the same bits for any thread count and instruction set."""

PROGRAM = """
import lsfast
from lsfast.scheme_numbers import scheme_numbers
for dtype in (torch.float32, torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    for d in (1, 2, 3, 5):
        for n, g in ((3001, 3), (70001, 16)):  # within the cache, and past it
            add(ops.parameter_points(draw(n), draw(d, n), draw(g, d)))
    theta, directions, coordinates = draw(5 * 3100), draw(2, 5 * 3100), draw(40, 2)
    for name in lsfast.schemes():
        for rounding in ("nearest", "stochastic"):
            numbers = scheme_numbers(lsfast.scheme(name).replace(rounding=rounding))
            for some in (coordinates[:1], coordinates) if name == "nvfp4" else (coordinates[:3],):
                out = torch.empty(len(some), 5 * 3100, dtype=dtype)
                ops.quantized_points_out(theta, directions, some, out, numbers, 3100, 5, 0)
                add(out)
    x, y, offsets = draw(2, 200000), draw(2, 200000), torch.tensor([0, 1, 17, 1500, 1500, 100003, 200000])
    factors = ops.segment_norms(x, offsets)
    add(factors, ops.segment_dots(x, y, offsets))
    ops.scale_segments_(x, offsets, factors)
    add(x)
    u, gradient, theta, pairs = draw(2, 70001), draw(2, 70001), draw(70001), torch.full((2, 2), 0.3).double()
    add(ops.ascent_sums(u, gradient, theta, 1.0, 0.5))
    for box in (False, True):
        add(*ops.ascent_step(u, gradient, theta, pairs, 1.0, 0.5, box))
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    add(ops.logit_sharpness((4 * draw(9, 5003)).to(dtype), torch.arange(9), 1e-3, -100))
"""


def test_bits_are_those_of_every_instruction_set_and_thread_count(assert_same_bits):
    assert_same_bits(PROGRAM)
