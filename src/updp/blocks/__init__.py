"""Finding blocks: a model becomes a list of sites, each unusable block with its reason."""

from updp.blocks.find import find
from updp.blocks.findings import Findings, Unusable
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.site import Site
from updp.blocks.reading.steps import (
    ActStep,
    Chain,
    NormStep,
    ScaleStep,
    Step,
    batch_norm,
    to_layout,
)
from updp.blocks.teach import Linear, teach_forward, teach_operator
from updp.blocks.tracing.trace import trace_alone

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
