"""Fit: the linear operator that best does what a branch does, by ridge regression; no gradient."""

from updp.fit.clamp import Clamp, clamp_of
from updp.fit.problem import Fitted, Problem
from updp.fit.rows import Sample
from updp.fit.solve import Ridge

__all__ = ["Clamp", "Fitted", "Problem", "Ridge", "Sample", "clamp_of"]
