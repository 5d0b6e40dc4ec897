"""Fit: the linear operator that best does what a branch does, by ridge regression; no gradient."""

from updp.fit.clamp import Clamp, clamp_of
from updp.fit.regression import Fitted, Regression
from updp.fit.ridge import Ridge
from updp.fit.rows import Sample

__all__ = ["Clamp", "Fitted", "Regression", "Ridge", "Sample", "clamp_of"]
