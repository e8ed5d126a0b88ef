"""What all estimators and `solve` share: kinds of operator, reproducibility, nothing touched, bad input named."""

import functools

import pytest
import scipy.sparse
import torch

import lsfast

from .closed_forms import rotated

ESTIMATORS = {
    "trace": lsfast.trace,
    "hutch++": functools.partial(lsfast.trace, method="hutch++"),
    "xtrace": functools.partial(lsfast.trace, method="xtrace"),
    "diagonal": lsfast.diagonal,
    "diagonal_squared_sum": lsfast.diagonal_squared_sum,
    "frobenius_norm": lsfast.frobenius_norm,
}
SOLVERS = {
    "spectral_norm": lsfast.spectral_norm,
    "logdet": functools.partial(lsfast.logdet, probes=3, steps=30),
    "function_trace": functools.partial(lsfast.function_trace, f=torch.exp, probes=3, steps=30),
    "solve": lambda A: lsfast.solve(A, torch.ones(lsfast.aslinearoperator(A).shape[0]).double()),
}
EVERYTHING = {**{name: functools.partial(f, num_products=18) for name, f in ESTIMATORS.items()}, **SOLVERS}


def numbers(result):
    """All fields of a result as one float64 vector, without the count of steps, which rounding may move."""
    fields = [value for name, value in vars(result).items() if name != "iterations"]
    return torch.cat([torch.as_tensor(value).double().flatten() for value in fields])


@functools.cache
def ggn():
    """A damped Gauss-Newton operator of a small model: positive definite."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
        data = (torch.randn(20, 4).double(), torch.randint(0, 3, (20,)))
    return lsfast.GGNOperator(lsfast.Objective(model, torch.nn.CrossEntropyLoss(), data)) + 0.25


@functools.cache
def dense():
    A = ggn().to_dense()
    return (A + A.T) / 2


KINDS = {
    "lsfast": ggn,
    "sparse": lambda: dense().to_sparse(),
    "csr": lambda: dense().to_sparse_csr(),
    "scipy matrix": lambda: scipy.sparse.csr_matrix(dense().numpy()),
    "scipy operator": lambda: scipy.sparse.linalg.aslinearoperator(dense().numpy()),
    "callable": lambda: lsfast.aslinearoperator(lambda rows: rows @ dense(), n=dense().shape[0], dtype=torch.float64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_every_kind_of_operator_gives_the_same_numbers(name, kind):
    expected, found = numbers(EVERYTHING[name](dense())), numbers(EVERYTHING[name](KINDS[kind]()))
    n = dense().shape[0]
    # Products differ by n epsilon |A| |v|; n of them are summed. Residuals below eigsh's and solve's tolerance of 4e-11
    # differ by up to that much.
    bound = n**2 * 2.0**-52 * dense().norm().item() + 4e-11 * (name in ("spectral_norm", "solve"))
    assert torch.isfinite(expected).all()
    assert ((found - expected).abs() <= bound * expected.abs().max().clamp(min=1.0)).all()


@pytest.mark.parametrize("name", EVERYTHING)
def test_same_seed_same_bits_and_nothing_is_touched(name):
    A = rotated(torch.linspace(0.5, 2.0, 40).double())
    A.requires_grad_()
    before, state = A.detach().clone(), torch.random.get_rng_state()
    first, second = EVERYTHING[name](A), EVERYTHING[name](A)
    assert torch.equal(numbers(first), numbers(second))
    assert torch.equal(A.detach(), before)
    assert A.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not numbers(first).requires_grad


@pytest.mark.parametrize("name", EVERYTHING)
def test_an_operator_that_returns_its_own_memory_is_served_right(name):
    memory = torch.empty(64, 40).double()
    factors = torch.linspace(0.5, 2.0, 40).double()

    def product(rows):
        result = memory[: rows.shape[0]]
        return torch.mul(rows, factors, out=result)

    borrowed = lsfast.aslinearoperator(product, n=40, dtype=torch.float64)
    own = lsfast.aslinearoperator(lambda rows: rows * factors, n=40, dtype=torch.float64)
    assert torch.equal(numbers(EVERYTHING[name](borrowed)), numbers(EVERYTHING[name](own)))


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_identity_that_returns_its_argument_is_served_right(name):
    same = lsfast.aslinearoperator(lambda rows: rows, n=30, dtype=torch.float64)
    copy = lsfast.aslinearoperator(lambda rows: rows.clone(), n=30, dtype=torch.float64)
    assert torch.equal(numbers(EVERYTHING[name](same)), numbers(EVERYTHING[name](copy)))
    x = lsfast.solve(same, torch.arange(30.0).double(), shift=1.0).x
    assert torch.equal(x, torch.arange(30.0).double() / 2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_bad_arguments_of_estimators_are_named(name):
    estimator, A = ESTIMATORS[name], torch.eye(40)
    function = "trace" if name in ("hutch++", "xtrace") else name
    cases = [
        ({"num_products": 0}, ValueError, "num_products must be at least"),
        ({"num_products": 2.0}, TypeError, "num_products must be an integer, got 2.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"A": A.half()}, ValueError, "A must be an operator in float32 or float64, got torch.float16"),
        ({"A": A * float("nan")}, ValueError, "A must give finite products, got NaN or Inf in product 0"),
    ]
    for changed, error, message in cases:
        with pytest.raises(error, match=f"{function}: {message}"):
            estimator(**({"A": A, "num_products": 12} | changed))


@pytest.mark.parametrize("name", SOLVERS)
def test_an_unsymmetric_matrix_is_refused_where_symmetry_is_needed(name):
    with pytest.raises(ValueError, match="A must be symmetric"):
        SOLVERS[name](torch.eye(20).double() + torch.diag(torch.ones(19), 1))
