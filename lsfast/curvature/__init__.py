"""The curvature room: the loss's Hessian, Gauss-Newton matrix and Fisher as operators."""

from lsfast.curvature.fisher import FisherOperator
from lsfast.curvature.operators import CurvatureCheck, GGNOperator, HessianOperator

__all__ = ["CurvatureCheck", "FisherOperator", "GGNOperator", "HessianOperator"]
