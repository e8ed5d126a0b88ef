"""The curvature room: the loss's Hessian, Gauss-Newton matrix and Fisher, the outputs' Gram matrix."""

from lsfast.curvature.fisher import FisherOperator
from lsfast.curvature.gram import GramOperator
from lsfast.curvature.operators import CurvatureCheck, GGNOperator, HessianOperator

__all__ = ["CurvatureCheck", "FisherOperator", "GGNOperator", "GramOperator", "HessianOperator"]
