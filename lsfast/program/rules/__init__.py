"""The rules of the program engine: how each operation of a captured model is differentiated, a file for each family.

Every operation has four parts, for K vectors at once (see `Rule`, which is the whole contract):

    forward   y = f(x)                        run once, keeps what the others need
    jvp       y' = df x'                      tangents forward, [K, ...]
    vjp       x_ = df^T y_                    adjoints back, [K, ...]
    vjp_jvp   x_' = df^T y_' + (d2f x')^T y_  tangents of the adjoints back, [K, ...]

To add an operation: write a class with these four (worked_example.py does it for one), or take a class that has them:

- linear in one argument (a view, a sum, a gather): `linear_maps.LinearMap`, from the map and its transpose;
- a product of two arguments: `products.Product`;
- a function of one tensor, element by element: one line ``unary(operation, f', f'')`` in functions.py.

Register it for its ATen overload as ``objective.explain()`` names it, import its file here, and call
``check_rule(operation, *arguments)`` in ``tests/program``: it compares all four parts, in float64 and for every choice
of active arguments, with `generic.Generic`, which ``torch.func`` derives and which stands in for what has no rule.
"""

from lsfast.program.rules import (
    attention,
    convolution,
    elementwise,
    functions,
    indexing,
    linear_maps,
    losses,
    normalization,
    patterns,
    pooling,
    products,
    softmax,
    variance,
    worked_example,
)
from lsfast.program.rules.rule import Rule, find_rule, register_rule, rule_for

__all__ = ["Rule", "find_rule", "register_rule", "rule_for"]

FAMILIES = (  # importing them enters their rules
    attention,
    convolution,
    elementwise,
    functions,
    indexing,
    linear_maps,
    losses,
    normalization,
    patterns,
    pooling,
    products,
    softmax,
    variance,
    worked_example,
)
