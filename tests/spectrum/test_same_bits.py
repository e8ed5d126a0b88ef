"""Neither threads nor instruction sets change a bit of what this room's kernels give."""


def test_bits_do_not_depend_on_threads_or_instruction_set(assert_same_bits):
    assert_same_bits("""
import lsfast
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64):
    n = 30011
    diagonal = torch.linspace(-1, 3, n, dtype=dtype)
    A = lsfast.aslinearoperator(lambda rows: rows * diagonal, n=n, dtype=dtype)
    s = lsfast.spectral_density(A, probes=3, steps=9)
    start = torch.randn(2, n, generator=generator, dtype=dtype)
    T = lsfast.lanczos(A, start, 6)
    narrow = lsfast.lanczos(A, start, 6, basis_dtype=torch.bfloat16)
    add(s.nodes, s.weights, T.alpha, T.beta, T.basis, T.residual, narrow.alpha, narrow.basis)
    add(lsfast.lanczos(A, start, 6, "none").residual, lsfast.lanczos(A, start, 30, "selective").alpha)
    add(torch.tensor([lsfast.trace(A, num_products=3, distribution="gaussian").value]))
    for n in (33, 20011):
        basis = torch.randn(11, n, generator=generator, dtype=torch.float64).to(dtype)
        W = torch.randn(9, n, generator=generator, dtype=torch.float64).to(dtype)
        C = torch.randn(9, 11, generator=generator, dtype=torch.float64)
        add(ops.block_project(basis, W), ops.block_subtract_project(basis, W, C), W)
        ops.block_combine(basis, C, W)
        ops.block_combine(basis, C, basis[:9])
        add(W, basis)
""")
