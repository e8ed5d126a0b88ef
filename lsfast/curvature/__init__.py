"""The curvature room: the loss's Hessian and Gauss-Newton matrix as operators."""

from lsfast.curvature.operators import CurvatureCheck, GGNOperator, HessianOperator

__all__ = ["CurvatureCheck", "GGNOperator", "HessianOperator"]
