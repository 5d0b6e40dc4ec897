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
from updp.blocks.trace import trace_alone

__all__ = [
    "ActStep",
    "Chain",
    "Findings",
    "LinearStep",
    "NormStep",
    "ScaleStep",
    "Site",
    "Step",
    "Unusable",
    "batch_norm",
    "find",
    "to_layout",
    "trace_alone",
]
