"""Loss grids against loss-landscapes and plain loops; adaptive grids; forming parameter points against their bytes."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import Case, make_case
from landscape_peers import loss_landscapes, point_by_point, walked_coordinates
from peak_memory import peak_added
from sklearn.datasets import load_digits
from torch import nn

import lsfast
from lsfast.program.points import parameter_points
from lsfast.program.quantized_points import quantized_points

STEPS = {"digits": 51, "small mlp": 51, "cnn": 11, "gpt": 11}  # along each axis


def grid_case(name: str, device: torch.device, tiny: bool) -> Case:
    if name != "digits":
        return make_case(name, device, tiny)
    images, labels = load_digits(return_X_y=True)
    rows = 9 if tiny else len(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
        model = nn.Sequential(*layers).to(device)
    inputs = torch.tensor(images[:rows] / 16.0, dtype=torch.float32, device=device)
    targets = torch.tensor(labels[:rows], device=device)
    return Case(f"MLP 64-64-64-10, {rows} digits", model, inputs, targets)


@pytest.mark.parametrize("name", STEPS)
def test_loss_grid(compare, request, device, name):
    tiny = request.config.getoption("--tiny")
    case, steps = grid_case(name, device, tiny), 4 if tiny else STEPS[name]
    objective = case.objective()
    directions = lsfast.random_directions(objective, 2, seed=1)

    def ours() -> lsfast.LossGrid:
        return lsfast.loss_grid(objective, directions, steps)

    walked = loss_landscapes(case, directions.vectors, steps)
    for row in (0, steps // 2, steps - 1):  # its rows, where they really are
        grid = lsfast.loss_grid(objective, directions, coordinates=walked_coordinates(steps, row))
        # Its point has drifted by as many float32 sums as it has taken steps.
        assert torch.allclose(grid.values[0], walked[row].double(), rtol=1e-3)
    assert torch.allclose(ours().values[0], point_by_point(case, directions.vectors, ours().coordinates[0])[0].double(),
                          rtol=1e-4)  # fmt: skip
    operation, size = f"loss grid, {steps} x {steps}", case.size
    compare(operation, size, ours, lambda: loss_landscapes(case, directions.vectors, steps), "loss-landscapes",
            rounds=7, warm=1)  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "small mlp"])
def test_loss_grid_under_a_scheme(compare, request, device, name):
    tiny = request.config.getoption("--tiny")
    case = grid_case(name, device, tiny)
    objective, steps = case.objective(), 4 if tiny else 21
    directions = lsfast.random_directions(objective, 2, seed=1)
    points = [(x, y) for x in range(steps) for y in range(steps)]
    axis = torch.linspace(-1, 1, steps, device=device)

    def by_hand() -> torch.Tensor:
        values = []
        theta = objective.parameters
        for x, y in points:
            point = theta + axis[x] * directions.vectors[0] + axis[y] * directions.vectors[1]
            values.append(objective.at(lsfast.studies.quantize_parameters(objective.at(point), "nvfp4")).loss())
        return torch.stack(values)

    grid = lsfast.loss_grid(objective, directions, steps, scheme="nvfp4")
    assert torch.allclose(grid.values.flatten(), by_hand(), rtol=1e-3)
    compare(f"loss grid under nvfp4, {steps} x {steps}", case.size,
            lambda: lsfast.loss_grid(objective, directions, steps, scheme="nvfp4"), by_hand,
            "quantized and evaluated point by point", rounds=3, warm=1)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adaptive_grid(record, request, device, seed):
    tiny = request.config.getoption("--tiny")
    case = grid_case("digits", device, tiny)
    _train(case)
    objective, steps = case.objective(), 9 if tiny else 51
    directions = lsfast.random_directions(objective, 2, seed=seed)
    full = lsfast.loss_grid(objective, directions, steps)
    adaptive = lsfast.loss_grid(objective, directions, steps, tolerance=1e-2)
    values, low = full.values, full.values.min()
    allowed = (values - low).clamp(min=0.1 * (values.max() - low))
    over = (adaptive.values - values).abs() / allowed
    assert tiny or float((over > 1e-2).double().mean()) < 0.01
    record(f"adaptive grid, tolerance 1e-2, plane {seed}", f"{case.size}, trained, {steps} x {steps}",
           adaptive.evaluations, values.numel(), f"the full grid; error {float(over.max()):.1e}", "points")  # fmt: skip


def test_memory_of_a_grid_stays_within_the_limit(record, request, device):
    tiny = request.config.getoption("--tiny")
    case, limit = grid_case("gpt", device, tiny), 64 << 20
    objective = lsfast.Objective(case.model, case.loss_fn, (case.inputs, case.targets), memory_limit=limit)
    directions = lsfast.random_directions(objective, 2)
    lsfast.loss_grid(objective, directions, 3)
    peak = peak_added(lambda: lsfast.loss_grid(objective, directions, 7), device)
    assert peak <= 1.1 * limit
    record("peak memory of a loss grid", case.size, peak / 1e6, limit / 1e6, "memory_limit", "MB")


def _train(case: Case) -> None:
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        case.loss_fn(case.model(case.inputs), case.targets).backward()
        optimizer.step()


def test_parameter_points(compare, request, device):
    n, g = 1000 if request.config.getoption("--tiny") else 10**7, 8
    generator = torch.Generator().manual_seed(0)
    theta, directions = torch.randn(n, generator=generator), torch.randn(2, n, generator=generator)
    theta, directions = theta.to(device), directions.to(device)
    coordinates = torch.randn(g, 2, generator=generator).to(device)
    out = torch.empty(g, n, device=device)
    parameter_points(theta, directions, coordinates, out=out)
    assert torch.equal(out[3], theta + coordinates[3, 0] * directions[0] + coordinates[3, 1] * directions[1])
    spare = torch.empty_like(theta)
    compare("theta + a d1 + b d2, 8 points, out=", f"n = {n:.0e} float32".replace("e+0", "e"),
            lambda: parameter_points(theta, directions, coordinates, out=out), lambda: spare.copy_(theta),
            "3 reads and 8 writes at copy speed", factor=11 / 2)  # fmt: skip


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "fp8_e4m3"])
def test_quantized_points(compare, request, device, scheme):
    rows, length, g = (4, 64, 8) if request.config.getoption("--tiny") else (2048, 1024, 8)
    generator = torch.Generator().manual_seed(0)
    theta, directions = (
        torch.randn(rows * length, generator=generator),
        torch.randn(2, rows * length, generator=generator),
    )
    theta, directions = theta.to(device), directions.to(device)
    coordinates = torch.randn(g, 2, generator=generator).to(device)
    out, formed = torch.empty(2, g, rows * length, device=device)

    def apart() -> None:
        parameter_points(theta, directions, coordinates, out=formed)
        for point in formed:
            matrix = point.view(rows, length)
            lsfast.fake_quantize(matrix, scheme, out=matrix)

    def together() -> None:
        quantized_points(theta, directions, coordinates, scheme, rows, length, out=out)

    apart()
    together()
    assert torch.equal(out, formed)
    compare(f"points under {scheme}, 8 points, out=", f"{rows} x {length} float32", together, apart,
            "points, then fake_quantize in place")  # fmt: skip
