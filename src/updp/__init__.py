"""Unified progressive depth pruning: a trained vision model in, a faster plain model out."""

from updp.api import Inspection, Pruned, inspect, prune
from updp.blocks import Linear, teach_forward, teach_operator
from updp.candidates import Candidate, Form, register_candidate
from updp.compare import bench
from updp.errors import ExportError, MergeError, UserError
from updp.exports import Exported, export
from updp.merged import load
from updp.page import report
from updp.plan import Plan
from updp.quantise import quantise
from updp.recipe import Recipe

__all__ = [
    "Candidate",
    "ExportError",
    "Exported",
    "Form",
    "Inspection",
    "Linear",
    "MergeError",
    "Plan",
    "Pruned",
    "Recipe",
    "UserError",
    "bench",
    "export",
    "inspect",
    "load",
    "prune",
    "quantise",
    "register_candidate",
    "report",
    "teach_forward",
    "teach_operator",
]
