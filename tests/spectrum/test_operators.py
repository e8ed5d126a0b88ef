"""The operators of the recurrence: against plain torch, their schemas, and what they reject."""

import pytest
import torch

from lsfast._native import ops

from .cases import starts

DTYPES = (torch.float32, torch.float64)
SIZES = (1, 15, 16, 17, 1000, 1025, 8192, 20011)  # around lanes, chunks and units


def dots_with_bound(rows, v):
    """Exact inner products and the bound of the kernels, see kChunk in csrc/spectrum/lanes_cpu.inl."""
    epsilon = torch.finfo(v.dtype).eps / 2
    products = rows.double() * v.double()
    magnitude = products.abs().sum(-1)
    return products.sum(-1), (130 + 1) * epsilon * magnitude + rows.shape[-1] * 2.0**-52 * magnitude


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_row_dots_are_those_of_plain_torch(n, dtype):
    x, y = starts(3, n, dtype, seed=n), starts(3, n, dtype, seed=n + 1)
    exact, _ = dots_with_bound(x, y)
    magnitude = (x.double() * y.double()).abs().sum(1)
    assert ((ops.row_dots(x, y) - exact).abs() <= 2 * (n / 16 + 20) * 2.0**-53 * magnitude).all()


def pass_arguments(n, dtype, stored, k=2, count=7):
    vectors = [starts(k, n, dtype, seed=n + i) for i in range(4)]
    rows = starts(count * k, n, dtype, seed=n + 9).reshape(count, k, n).to(stored)
    factors = starts(k, 4 + 2 * count, torch.float64, seed=n + 8)
    return [*vectors, rows, torch.zeros(k, n, dtype=stored), factors]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float64),
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_pass_is_what_plain_torch_gives(n, dtype, stored, count):
    u, product, previous, following, rows, kept, factors = pass_arguments(n, dtype, stored, count=count)
    before = u.double().clone()
    sums = ops.lanczos_pass(u, product, previous, following, rows, kept, factors)
    scale, of_current, of_previous = (factors[:, i, None] for i in range(3))
    in_q, in_w = factors[:, 4 : 4 + count].T[:, :, None], factors[:, 4 + count :].T[:, :, None]
    terms = [scale * before, *(-in_q * rows.double())]
    q = torch.stack(terms).sum(0)
    # Each of the coefficients, products and sums is rounded, one after the other.
    epsilon = torch.finfo(dtype).eps / 2
    assert ((u.double() - q).abs() <= (count + 3) * epsilon * torch.stack(terms).abs().sum(0)).all()
    terms = [
        scale * product.double(),
        *(-in_w * rows.double()),
        -of_current * u.double(),
        -of_previous * previous.double(),
    ]
    w = torch.stack(terms).sum(0)
    assert ((following.double() - w).abs() <= (count + 5) * epsilon * torch.stack(terms).abs().sum(0)).all()
    assert torch.equal(kept, u.to(stored))
    others = torch.cat([rows.to(dtype), u[None], following[None]])
    exact, bound = dots_with_bound(others, following)
    assert ((sums.T - exact).abs() <= bound).all()


def test_a_pass_over_columns_adds_up_to_the_whole():
    n, cut = 5000, 2048  # a multiple of what is summed in one piece, so that the pieces are the same
    whole, parts = pass_arguments(n, torch.float32, torch.float32), pass_arguments(n, torch.float32, torch.float32)
    sums = ops.lanczos_pass(*whole)
    halves = []
    for columns in (slice(0, cut), slice(cut, n)):
        halves.append(ops.lanczos_pass(*(x[..., columns] for x in parts[:-1]), parts[-1]))
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(halves[0] + halves[1], sums, rtol=0, atol=2.0**-50 * float(sums.abs().max()))


def step_tables(k=3, m=4, step=1):
    alpha, beta, scale = (torch.full((k, m), 2.0, dtype=torch.float64) for _ in range(3))
    return alpha, beta, scale, torch.full((k,), step), torch.zeros(k, m, dtype=torch.float64)


def test_factors_undo_the_defect_of_the_current_vector():
    # u = rho q + R'c of an orthonormal basis in which A is tridiagonal: A q must come out without another product.
    n, step = 40, 5
    A = torch.diag(torch.linspace(-1, 2, n).double()) + torch.diag(torch.linspace(0.5, 1.5, n - 1).double(), 1)
    A = A + torch.triu(A, 1).T
    rows, q = torch.eye(n).double()[:step], torch.eye(n).double()[step]
    alpha, beta, _, _, defect = step_tables(k=1, m=8, step=step)
    alpha[0], beta[0] = A.diagonal()[:8], A.diagonal(1)[:8]
    defect[0, :step] = torch.linspace(0.01, -0.03, step)
    rho = (1 - (defect[0] ** 2).sum()).sqrt()
    u = (rho * q + defect[0, :step] @ rows)[None]
    product, following = u @ A, torch.empty_like(u)
    factors = ops.lanczos_begin((u * product).sum(1), defect, alpha, beta, None, step, step)
    assert factors[0, 3].item() == pytest.approx(A[step, step].item(), rel=1e-13)
    ops.lanczos_pass(u, product, rows[step - 1][None], following, rows[:, None].contiguous(), None, factors)
    torch.testing.assert_close(u[0], q, rtol=0, atol=1e-15)
    expected = A[step] - A[step, step] * q - A[step, step - 1] * rows[step - 1]
    torch.testing.assert_close(following[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_end_of_a_step_normalizes_ends_and_skips_probes(dtype):
    following = starts(3, 50, dtype)
    before = following.clone()
    alpha, beta, scale, steps, defect = step_tables()
    beta[1, 0] = 0.0  # ended at the step before
    sums = torch.tensor([[0.3, 0.2, 4.0], [0.3, 0.2, 4.0], [0.0, 0.0, 1e-24]], dtype=torch.float64)  # the last ends now
    factors = torch.ones(3, 6, dtype=torch.float64)
    ops.lanczos_end(factors, sums, following, alpha, beta, scale, steps, defect, 1, True, False, 1e-6)
    assert steps.tolist() == [2, 1, 2]
    norm = (4.0 - 0.3**2 - 0.2**2) ** 0.5
    assert alpha[:, 1].tolist() == [1.2, 0.0, 1.0]
    assert beta[:, 1].tolist() == [pytest.approx(norm), 0.0, 0.0]
    assert scale[0, 1].item() == pytest.approx(1.2 + 2.0 + norm)
    torch.testing.assert_close(following[0], before[0] / 2, rtol=0, atol=0)
    assert not following[1:].any()
    assert defect.tolist() == [[0.15, 0.1, 0.0, 0.0], [0.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [17, 1200])
def test_operators_pass_opcheck(n, dtype):
    x = starts(2, n, dtype)
    alpha, beta, scale, steps, defect = step_tables(k=2)
    arguments = pass_arguments(n, dtype, torch.float32, count=1)
    factors, sums = arguments[-1], torch.ones(2, 3, dtype=torch.float64)
    torch.library.opcheck(ops.row_dots.default, (x, x))
    torch.library.opcheck(ops.lanczos_begin.default, (sums[:, 0].clone(), defect, alpha, beta, None, 1, 1))
    torch.library.opcheck(ops.lanczos_pass.default, arguments)
    torch.library.opcheck(
        ops.lanczos_end.default, (factors, sums, x, alpha, beta, scale, steps, defect, 1, True, False, 1e-6)
    )
    torch.library.opcheck(ops.tridiagonal_eigen.default, (alpha, beta, torch.tensor([4, 3])))


def test_operators_name_what_is_wrong():
    arguments = pass_arguments(40, torch.float32, torch.float32)
    alpha, beta, _, _, defect = step_tables(k=2)

    def changed(index, value):
        return lambda: ops.lanczos_pass(*arguments[:index], value, *arguments[index + 1 :])

    cases = [
        (changed(0, arguments[0].half()), "lanczos_pass: current must be float32 or float64, got torch.Half"),
        (changed(1, arguments[1][:1]), r"product must have shape \[2, 40\], got \[1, 40\]"),
        (changed(3, arguments[3].double()), "next must have the dtype of current"),
        (changed(2, arguments[2].T.contiguous().T), "previous must have contiguous rows"),
        (changed(4, arguments[4][:3]), r"rows must have shape \[7 or more, 2, 40\]"),
        (changed(4, None), "factors of 7 rows need rows"),
        (changed(4, arguments[4].double()), "rows must have the dtype of current or a narrower one|dtype of rows"),
        (changed(6, arguments[6].float()), "factors must be torch.Double, got torch.Float"),
        (lambda: ops.row_dots(arguments[0], arguments[0][:, :3].contiguous()), "y must have the shape of x"),
        (lambda: ops.lanczos_begin(alpha[:, 0].clone(), defect, alpha, beta, None, 4, 1), r"step must lie in 0\.\.3"),
        (lambda: ops.lanczos_begin(alpha[:, 0].clone(), defect, alpha, beta, None, 1, 2), r"count must lie in 0\.\.1"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
