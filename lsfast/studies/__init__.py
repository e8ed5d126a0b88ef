"""Studies: what low precision does to a loss and to its shape. Built from the four rooms; owns no kernel."""

from lsfast.studies.checkpoint import quantize_checkpoint
from lsfast.studies.checkpoint_table import CheckpointTable
from lsfast.studies.precision import MEASURES, precision_study
from lsfast.studies.table import PrecisionTable
from lsfast.studies.weights import quantizable_parameters, quantize_parameters

__all__ = [
    "MEASURES",
    "CheckpointTable",
    "PrecisionTable",
    "precision_study",
    "quantizable_parameters",
    "quantize_checkpoint",
    "quantize_parameters",
]
