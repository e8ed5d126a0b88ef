"""The kernels of the room give the same bits for any thread count and instruction set."""

PROGRAM = """
for dtype in (torch.float32, torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    for d in (1, 2, 3, 5):
        for n, g in ((3001, 3), (70001, 16)):  # within the cache, and past it
            add(ops.parameter_points(draw(n), draw(d, n), draw(g, d)))
    x, y, offsets = draw(2, 200000), draw(2, 200000), torch.tensor([0, 1, 17, 1500, 1500, 100003, 200000])
    factors = ops.segment_norms(x, offsets)
    add(factors, ops.segment_dots(x, y, offsets))
    ops.scale_segments_(x, offsets, factors)
    add(x)
"""


def test_bits_are_those_of_every_instruction_set_and_thread_count(assert_same_bits):
    assert_same_bits(PROGRAM)
