"""Fit: the linear operator that best does what a branch does, by ridge regression; no gradient."""

from updp.fit.clamp import Clamp, clamp_of
from updp.fit.fitting import FitTask, as_maps
from updp.fit.operator import OperatorFit, skip_of
from updp.fit.regression import Fitted, Regression
from updp.fit.repair import operator_repair, site_repairs
from updp.fit.ridge import Ridge
from updp.fit.rows import Sample

__all__ = [
    "Clamp",
    "FitTask",
    "Fitted",
    "OperatorFit",
    "Regression",
    "Ridge",
    "Sample",
    "as_maps",
    "clamp_of",
    "operator_repair",
    "site_repairs",
    "skip_of",
]
