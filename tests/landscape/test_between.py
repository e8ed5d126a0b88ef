"""Lines through two states and planes through three: each state lies where the coordinates say, with its own loss."""

import pytest
import torch
from torch import nn

import lsfast

from .problems import evaluated, network, of_parameters


def states(dtype, count):
    """Networks that differ in parameters and in running statistics."""
    generator = torch.Generator().manual_seed(5)
    models = []
    for _ in range(count):
        model = network(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
            model[1].running_mean += torch.randn(3, generator=generator, dtype=dtype)
            model[1].running_var *= torch.rand(3, generator=generator, dtype=dtype) + 0.5
        models.append(model)
    return models


def losses(objective, models):
    values = [lsfast.Objective(model, nn.CrossEntropyLoss(), objective.data).loss() for model in models]
    return torch.stack(values)


def at(objective, directions, coordinates):
    coordinates = torch.as_tensor(coordinates, dtype=objective.dtype)
    return objective.evaluate(directions.origin, directions.vectors, coordinates, buffers=directions.buffers).values


def test_each_end_of_a_line_has_its_own_loss_and_buffers():
    objective, (a, b) = evaluated(torch.float64), states(torch.float64, 2)
    line = lsfast.between(objective, a.state_dict(), b)
    found = at(objective, line, [[0.0], [1.0]])
    torch.testing.assert_close(found, losses(objective, [a, b]), rtol=1e-12, atol=0)
    middle = line.buffers["1.running_var"][0] + 0.5 * line.buffers["1.running_var"][1]
    torch.testing.assert_close(middle, (a[1].running_var + b[1].running_var) / 2)
    # Not the losses without the buffers: the model's own statistics are other ones.
    assert (objective.evaluate(line.origin, line.vectors, torch.eye(1).double()).values - found[1]).abs() > 1e-3


def test_a_state_without_buffers_has_the_models_and_equal_buffers_do_not_vary():
    objective, b = evaluated(torch.float64), states(torch.float64, 1)[0]
    line = lsfast.between(objective, objective.parameters, b)
    assert torch.equal(line.buffers["1.running_mean"][0], objective.model[1].running_mean)
    torch.testing.assert_close(at(objective, line, [[1.0]]), losses(objective, [b]), rtol=1e-12, atol=0)
    assert lsfast.between(objective, objective.parameters, 2 * objective.parameters).buffers == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plane_holds_three_states_at_their_coordinates_undistorted(dtype):
    objective, (a, b, c) = evaluated(dtype), states(dtype, 3)
    plane = lsfast.plane_through(objective, a, b, c)
    eps = torch.finfo(dtype).eps
    along, across = plane.vectors.double()
    # A direction is rounded once in each element: by eps / 2 of its length; the losses by some more.
    assert abs(along.norm() / across.norm() - 1) <= eps
    assert abs(along.dot(across)) <= eps * along.norm() ** 2
    assert plane.coordinates[:2].tolist() == [[0, 0], [1, 0]]
    assert plane.coordinates[2, 1] > 0
    point = plane.origin.double() + plane.coordinates[2] @ plane.vectors.double()
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in c.parameters()]).double()
    assert (point - expected).norm() <= 2 * eps * (expected.norm() + plane.coordinates[2].norm() * along.norm())
    torch.testing.assert_close(
        at(objective, plane, plane.coordinates), losses(objective, [a, b, c]), rtol=200 * eps, atol=0
    )


def test_plane_through_points_of_a_known_triangle():
    objective = of_parameters(lambda x: x.square().sum(), torch.zeros(3, dtype=torch.float64))
    a, b, c = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [2.0, 0.0, -5.0]], dtype=torch.float64)
    plane = lsfast.plane_through(objective, a, b, c)
    assert plane.vectors.tolist() == [[2, 0, 0], [0, 0, -2]]
    assert plane.coordinates.tolist() == [[0, 0], [1, 0], [0.5, 2.5]]
    assert at(objective, plane, plane.coordinates).tolist() == [1, 9, 29]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_one_line_to_rounding_are_refused_and_those_just_off_it_are_not(dtype):
    torch.manual_seed(1)
    objective = of_parameters(lambda x: x.square().sum(), torch.randn(1000, dtype=dtype))
    a, b = objective.parameters, torch.randn(1000, dtype=dtype)
    eps = torch.finfo(dtype).eps
    for t in (-2.0, 0.3, 1.0, 7.0):
        c = a + t * (b - a)
        with pytest.raises(ValueError, match="plane_through: a, b and c must not lie on one line, got c within"):
            lsfast.plane_through(objective, a, b, c)
        off = c.clone()
        off[0] += 1e3 * eps * c.norm()
        vectors = lsfast.plane_through(objective, a, b, off).vectors.double()
        assert abs(vectors[0].dot(vectors[1])) <= 2 * eps * vectors[0].norm() ** 2


def test_masks_of_infinities_in_buffers_stay_infinite_and_make_no_nan():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

        def forward(self, x):
            return super().forward(x) + self.mask.clamp(min=-1)

    model = Masked()
    objective = lsfast.Objective(model, nn.MSELoss(), (torch.ones(1, 2), torch.ones(1, 2)))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    rows = lsfast.between(objective, model.state_dict(), state).buffers["mask"]
    assert rows.tolist() == [[0.0, float("-inf")], [1.0, 0.0]]


def test_bad_ends_are_named():
    objective, (a, b) = evaluated(), states(torch.float32, 2)
    for call, error, message in (
        (lambda: lsfast.between(3, a, b), TypeError, "between: objective must be an Objective, got int"),
        (
            lambda: lsfast.between(objective, a, a.state_dict()),
            ValueError,
            "between: b must differ from a in its param",
        ),
        (lambda: lsfast.between(objective, a, {"x": torch.ones(1)}), ValueError, "between: b must hold '0.weight'"),
        (lambda: lsfast.plane_through(objective, a, a, b), ValueError, "plane_through: b must differ from a"),
        (lambda: lsfast.plane_through(objective, a, b, torch.ones(2)), ValueError, "plane_through: c must have shape"),
    ):
        with pytest.raises(error, match=message):
            call()
