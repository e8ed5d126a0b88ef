"""The landscape room: the loss around the parameters."""

from lsfast.landscape.directions import Directions, random_directions
from lsfast.landscape.grid import LossGrid, loss_grid
from lsfast.landscape.sharpness import sharpness

__all__ = ["Directions", "LossGrid", "loss_grid", "random_directions", "sharpness"]
