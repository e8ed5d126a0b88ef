"""The landscape room: the loss around the parameters."""

from lsfast.landscape.between import Plane, between, plane_through
from lsfast.landscape.directions import Directions, random_directions
from lsfast.landscape.grid import LossGrid, loss_grid
from lsfast.landscape.inputs import input_objective
from lsfast.landscape.optimizer import optimizer_directions
from lsfast.landscape.sharpness import sharpness
from lsfast.landscape.trajectory import Trajectory, trajectory_directions

__all__ = [
    "Directions",
    "LossGrid",
    "Plane",
    "Trajectory",
    "between",
    "input_objective",
    "loss_grid",
    "optimizer_directions",
    "plane_through",
    "random_directions",
    "sharpness",
    "trajectory_directions",
]
