"""The kernels of the room give the same bits for any thread count and instruction set."""

PROGRAM = """
import hashlib, torch
from lsfast._native import cpu_capability, ops

digests = set()
for threads in (1, 2):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for d in (1, 2, 3, 5):
            for n, g in ((3001, 3), (70001, 16)):  # within the cache, and past it
                digest.update(ops.parameter_points(draw(n), draw(d, n), draw(g, d)).numpy().tobytes())
        x, y, offsets = draw(2, 200000), draw(2, 200000), torch.tensor([0, 1, 17, 1500, 1500, 100003, 200000])
        factors = ops.segment_norms(x, offsets)
        digest.update(factors.numpy().tobytes() + ops.segment_dots(x, y, offsets).numpy().tobytes())
        ops.scale_segments_(x, offsets, factors)
        digest.update(x.numpy().tobytes())
    digests.add(digest.hexdigest())
print(cpu_capability(), *digests)
"""


def test_bits_are_those_of_every_instruction_set_and_thread_count(run_python):
    digests = {}
    for capability in ("baseline", "avx2", "avx512"):
        printed = run_python(PROGRAM, check=False, LSFAST_CPU_CAPABILITY=capability)
        if "this processor lacks it" in printed:
            continue
        found, *digests[capability] = printed.split()
        assert found == capability, printed
    assert "baseline" in digests
    assert len({digest for both in digests.values() for digest in both}) == 1, digests
