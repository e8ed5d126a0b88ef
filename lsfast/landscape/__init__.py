"""The landscape room: the loss around the parameters."""

from lsfast.landscape.alignment import Alignment, align
from lsfast.landscape.between import Plane, between, plane_through
from lsfast.landscape.bezier import BezierCurve, bezier
from lsfast.landscape.connectivity import Barrier, barrier, interpolate
from lsfast.landscape.directions import Directions, random_directions
from lsfast.landscape.grid import LossGrid, loss_grid
from lsfast.landscape.inputs import input_objective
from lsfast.landscape.logit_sharpness import logit_sharpness
from lsfast.landscape.optimizer import optimizer_directions
from lsfast.landscape.sharpness import sharpness
from lsfast.landscape.similarity import linear_cka
from lsfast.landscape.trajectory import Trajectory, trajectory_directions

__all__ = [
    "Alignment",
    "Barrier",
    "BezierCurve",
    "Directions",
    "LossGrid",
    "Plane",
    "Trajectory",
    "align",
    "barrier",
    "between",
    "bezier",
    "input_objective",
    "interpolate",
    "linear_cka",
    "logit_sharpness",
    "loss_grid",
    "optimizer_directions",
    "plane_through",
    "random_directions",
    "sharpness",
    "trajectory_directions",
]
