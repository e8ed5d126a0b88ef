"""Figures of results: spectral densities, loss grids, tables, at the size and contrast a paper needs.

Each function takes a result, returns a matplotlib ``Figure`` and writes it where a path is given; the path's ending
chooses the format. Figures are made without pyplot, so there is no window, no back-end to set, and matplotlib's global
settings stay as they are. Colours stay apart for colour-blind readers and in grey.
"""

from lsfast.plotting.checkpoint import checkpoint
from lsfast.plotting.grid import figure_of, loss_grid, loss_heatmap
from lsfast.plotting.interactive import interactive_surface
from lsfast.plotting.profile import loss_profile
from lsfast.plotting.spectrum import eigenvalues, spectral_density
from lsfast.plotting.surface import loss_surface
from lsfast.plotting.table import precision

__all__ = [
    "checkpoint",
    "eigenvalues",
    "figure_of",
    "interactive_surface",
    "loss_grid",
    "loss_heatmap",
    "loss_profile",
    "loss_surface",
    "precision",
    "spectral_density",
]
