"""Unified progressive depth pruning: a trained vision model in, a faster plain model out."""

from updp.api import Inspection, Pruned, inspect, prune
from updp.blocks import Linear, teach_forward, teach_operator
from updp.candidates import Candidate, Form, register_candidate
from updp.errors import MergeError, UserError
from updp.merged import load
from updp.plan import Plan
from updp.recipe import Recipe

__all__ = [
    "Candidate",
    "Form",
    "Inspection",
    "Linear",
    "MergeError",
    "Plan",
    "Pruned",
    "Recipe",
    "UserError",
    "inspect",
    "load",
    "prune",
    "register_candidate",
    "teach_forward",
    "teach_operator",
]
