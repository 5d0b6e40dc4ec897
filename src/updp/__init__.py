"""Unified progressive depth pruning: a trained vision model in, a faster plain model out."""

from updp.api import Inspection, Pruned, inspect, prune
from updp.blocks import Linear, teach_forward, teach_operator
from updp.candidates import Candidate, Form, register_candidate
from updp.deploy.bench import bench
from updp.deploy.export import Exported, export
from updp.deploy.int8 import quantise
from updp.deploy.report import report
from updp.errors import ExportError, MergeError, UserError
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.load import load

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
