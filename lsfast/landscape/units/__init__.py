"""Units of a model that can be permuted, found in its captured program."""

from lsfast.landscape.units.groups import Axis
from lsfast.landscape.units.places import Places, given_places, unit_places

__all__ = ["Axis", "Places", "given_places", "unit_places"]
