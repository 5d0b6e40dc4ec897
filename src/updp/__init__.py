"""Unified progressive depth pruning: a trained vision model in, a faster plain model out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from updp.api import Pruned, estimate, inspect, prune
    from updp.blocks import Linear, teach_forward, teach_operator
    from updp.candidates import Candidate, Form, register_candidate
    from updp.deploy.bench import bench
    from updp.deploy.export import Exported, export
    from updp.deploy.hub import write_hub_folder
    from updp.deploy.int8 import quantize
    from updp.deploy.int8 import quantize as quantise
    from updp.deploy.report import report
    from updp.errors import ExportError, MergeError, UserError
    from updp.io.bars import Bars
    from updp.plan import Plan
    from updp.recipe import Budget, Recipe
    from updp.run.estimates import Estimate
    from updp.run.inspection import Inspection
    from updp.run.load import load
    from updp.tasks import Metric, Task, find_task

__all__ = [
    "Bars",
    "Budget",
    "Candidate",
    "Estimate",
    "ExportError",
    "Exported",
    "Form",
    "Inspection",
    "Linear",
    "MergeError",
    "Metric",
    "Plan",
    "Pruned",
    "Recipe",
    "Task",
    "UserError",
    "bench",
    "estimate",
    "export",
    "find_task",
    "inspect",
    "load",
    "prune",
    "quantise",
    "quantize",
    "register_candidate",
    "report",
    "teach_forward",
    "teach_operator",
    "write_hub_folder",
]

# Imported on first use: PyTorch takes seconds to import, and `updp --help` does not need it.
_HOMES = {
    "updp.api": ("Pruned", "estimate", "inspect", "prune"),
    "updp.blocks": ("Linear", "teach_forward", "teach_operator"),
    "updp.candidates": ("Candidate", "Form", "register_candidate"),
    "updp.deploy.bench": ("bench",),
    "updp.deploy.export": ("Exported", "export"),
    "updp.deploy.hub": ("write_hub_folder",),
    "updp.deploy.int8": ("quantize",),
    "updp.deploy.report": ("report",),
    "updp.errors": ("ExportError", "MergeError", "UserError"),
    "updp.io.bars": ("Bars",),
    "updp.plan": ("Plan",),
    "updp.recipe": ("Budget", "Recipe"),
    "updp.run.estimates": ("Estimate",),
    "updp.run.inspection": ("Inspection",),
    "updp.run.load": ("load",),
    "updp.tasks": ("Metric", "Task", "find_task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "quantise":  # its former name
        name = "quantize"
    if name not in _HOME_OF:
        raise AttributeError(f"module 'updp' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
