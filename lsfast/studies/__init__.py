"""Studies: the spectrum of a loss, and what low precision does to it and to its shape. Built from the four rooms."""

from lsfast.studies.checkpoint import quantize_checkpoint
from lsfast.studies.checkpoint_table import CheckpointTable
from lsfast.studies.directions import eigen_directions
from lsfast.studies.grid import grid_report
from lsfast.studies.grid_table import GridReport
from lsfast.studies.precision import MEASURES, precision_study
from lsfast.studies.spectrum import spectrum_report
from lsfast.studies.spectrum_table import SpectrumReport
from lsfast.studies.table import PrecisionTable
from lsfast.studies.user_model import UserModel, load_model
from lsfast.studies.weights import quantize_parameters
from lsfast.weights import quantizable_parameters

__all__ = [
    "MEASURES",
    "CheckpointTable",
    "GridReport",
    "PrecisionTable",
    "SpectrumReport",
    "UserModel",
    "eigen_directions",
    "grid_report",
    "load_model",
    "precision_study",
    "quantizable_parameters",
    "quantize_checkpoint",
    "quantize_parameters",
    "spectrum_report",
]
