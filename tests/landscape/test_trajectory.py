"""Trajectories: principal components as an SVD gives them, true and projected losses of every checkpoint."""

import pytest
import torch
from torch import nn

import lsfast

from .problems import evaluated, network, of_parameters


def bowl(n, dtype=torch.float64):
    torch.manual_seed(0)
    factors = torch.linspace(0.5, 2.0, n, dtype=dtype)
    return of_parameters(lambda x: (factors * x * x).sum(), torch.randn(n, dtype=dtype))


def spiral(n, dtype=torch.float64):
    """Nine checkpoints in a plane of n dimensions, closing in on the last; their coordinates in it."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(n, 2, generator=generator, dtype=torch.float64))[0].T
    t = torch.linspace(0, 6, 9, dtype=torch.float64)
    flat = torch.stack([3 * (6 - t) * t.cos(), (6 - t) * t.sin()], dim=1)
    return (torch.randn(n, generator=generator, dtype=torch.float64) + flat @ basis).to(dtype), flat


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_trajectory_in_a_plane_is_kept_whole_and_projects_to_itself(dtype, rounding):
    objective = bowl(200, dtype)
    checkpoints, flat = spiral(200, dtype)
    run = lsfast.trajectory_directions(objective, list(checkpoints))
    assert torch.equal(run.origin, checkpoints[-1])
    assert abs(run.variance.sum() - 1) <= rounding
    assert run.variance[0] > run.variance[1]
    torch.testing.assert_close(run.coordinates.norm(dim=1), flat.norm(dim=1), rtol=10 * rounding, atol=0)
    assert run.coordinates[-1].tolist() == [0, 0]
    point = run.origin.double() + run.coordinates @ run.vectors.double()
    torch.testing.assert_close(point, checkpoints.double(), rtol=0, atol=10 * rounding)
    exact = torch.stack([objective.at(checkpoint).loss() for checkpoint in checkpoints])
    torch.testing.assert_close(run.values, exact, rtol=10 * rounding, atol=0)
    torch.testing.assert_close(run.projected, run.values, rtol=10 * rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_are_those_of_the_differences_from_the_last_checkpoint(dtype):
    n = 70_000  # more than one slice of columns
    torch.manual_seed(3)
    checkpoints = torch.randn(5, n).cumsum(0).to(dtype)
    objective = bowl(n, dtype)
    run = lsfast.trajectory_directions(objective, checkpoints, count=3)
    moved = checkpoints.double() - checkpoints[-1].double()
    _, lengths, components = torch.linalg.svd(moved, full_matrices=False)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(run.variance, lengths[:3] ** 2 / moved.square().sum(), rtol=20 * eps, atol=0)
    found = run.vectors.double()
    assert (found @ found.T - torch.eye(3)).abs().max() <= 1e-6
    overlaps = found @ components[:3].T
    torch.testing.assert_close(overlaps.abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    # Signs: the checkpoint farthest along each direction has a positive coordinate.
    assert (run.coordinates.gather(0, run.coordinates.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(run.coordinates, moved @ found.T, rtol=0, atol=eps * moved.norm().item())
    on_plane = run.origin.double() + run.coordinates.to(dtype).double() @ found
    expected = torch.stack([objective.at(point.to(dtype)).loss() for point in on_plane])
    torch.testing.assert_close(run.projected, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


def test_directions_are_orthonormal_though_the_second_component_is_almost_nothing():
    checkpoints, _ = spiral(50)
    last = checkpoints[-1].clone()
    axis, other = lsfast.trajectory_directions(bowl(50), checkpoints).vectors
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    thin = last + t[:, None] * axis + 1e-6 * (t * (1 - t))[:, None] * other
    run = lsfast.trajectory_directions(bowl(50), thin)
    assert (run.vectors @ run.vectors.T - torch.eye(2)).abs().max() <= 1e-12
    assert abs(run.vectors[1].dot(other)) > 0.99


def test_values_have_each_checkpoints_buffers_and_projections_those_of_the_last():
    objective, states = evaluated(torch.float64), []
    model = network(torch.float64)
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    run = lsfast.trajectory_directions(objective, states)

    def loss(parameters, buffers):
        other = network(torch.float64).eval()
        statistics = {name: buffers[name] for name in ("1.running_mean", "1.running_var")}
        other.load_state_dict({**parameters, **statistics})
        return lsfast.Objective(other, nn.CrossEntropyLoss(), objective.data).loss()

    own = torch.stack([loss(state, state) for state in states])
    torch.testing.assert_close(run.values, own, rtol=1e-12, atol=0)
    # Two differences span a plane: each projection is the checkpoint itself but for the buffers.
    torch.testing.assert_close(
        run.projected, torch.stack([loss(state, states[-1]) for state in states]), rtol=1e-10, atol=0
    )
    assert (run.projected - run.values)[:2].abs().min() > 1e-4
    assert torch.equal(run.buffers["1.running_mean"][0], states[-1]["1.running_mean"])
    assert not run.buffers["1.running_mean"][1:].any()


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 1e-3), (torch.float64, 1.0)])
def test_checkpoints_on_a_line_but_for_rounding_span_no_plane(dtype, step):
    # Steps much shorter than the parameters: rounding of these counts; as long: that of the inner products.
    objective = bowl(300, dtype)
    theta = objective.parameters
    line = [theta + t * step * theta.flip(0) for t in (0.0, 0.3, 0.5, 0.6, 1.0)]
    with pytest.raises(ValueError, match="move in at least 2 directions by more than rounding, got 1"):
        lsfast.trajectory_directions(objective, line)
    assert lsfast.trajectory_directions(objective, line, count=1).variance.item() > 1 - 1e-6


def test_checkpoints_that_do_not_fit_or_do_not_move_are_refused():
    objective = bowl(300, torch.float32)
    theta = objective.parameters
    few = [theta, 2 * theta]
    for call, error, message in (
        (lambda: lsfast.trajectory_directions(3, few), TypeError, "objective must be an Objective, got int"),
        (lambda: lsfast.trajectory_directions(objective, "run.pt"), TypeError, "a sequence of states, got str"),
        (lambda: lsfast.trajectory_directions(objective, few), ValueError, "more than the 2 directions .* got 2"),
        (lambda: lsfast.trajectory_directions(objective, [theta] * 4), ValueError, "at least 2 directions .* got 0"),
        (lambda: lsfast.trajectory_directions(objective, few, count=0), ValueError, "count must be at least 1, got 0"),
        (
            lambda: lsfast.trajectory_directions(objective, [theta, theta, {"part": theta}]),
            ValueError,
            r"checkpoints\[2\] must hold 'parts.0' of shape \[300\], got none, among 1 with 'part' first",
        ),
    ):
        with pytest.raises(error, match=f"trajectory_directions: .*{message}"):
            call()
