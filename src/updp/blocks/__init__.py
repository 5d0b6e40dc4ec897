"""Finding blocks: a model becomes a list of sites, each unusable block with its reason."""

from updp.blocks.find import Findings, Unusable, find
from updp.blocks.linear import LinearStep
from updp.blocks.read import Site
from updp.blocks.steps import (
    ActStep,
    Chain,
    NormStep,
    ScaleStep,
    Step,
    batch_norm,
    to_layout,
)
from updp.blocks.taught import Linear, teach_forward, teach_operator
from updp.blocks.trace import trace_alone

__all__ = [
    "ActStep",
    "Chain",
    "Findings",
    "Linear",
    "LinearStep",
    "NormStep",
    "ScaleStep",
    "Site",
    "Step",
    "Unusable",
    "batch_norm",
    "find",
    "teach_forward",
    "teach_operator",
    "to_layout",
    "trace_alone",
]
