"""Unified progressive depth pruning: a trained vision model in, a faster plain model out."""

from updp.api import Inspection, Pruned, inspect, prune
from updp.errors import MergeError, UserError
from updp.merged import load
from updp.plan import Plan
from updp.recipe import Recipe

__all__ = [
    "Inspection",
    "MergeError",
    "Plan",
    "Pruned",
    "Recipe",
    "UserError",
    "inspect",
    "load",
    "prune",
]
