"""Fit linear operators to what a branch computes, by ridge regression; no gradient."""

from updp.fit.clamp import Clamp, clamp_of
from updp.fit.fit_task import FitTask, as_maps, observer
from updp.fit.regression import Fitted, Regression
from updp.fit.repair import operator_repair, site_repairs

__all__ = [
    "Clamp",
    "FitTask",
    "Fitted",
    "Regression",
    "as_maps",
    "clamp_of",
    "observer",
    "operator_repair",
    "site_repairs",
]
