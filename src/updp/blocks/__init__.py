"""Find the sites of a model, and each unusable block with its reason."""

from updp.blocks.find import find
from updp.blocks.findings import Findings, Unusable
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.site import Site
from updp.blocks.reading.steps import (
    ActStep,
    Chain,
    NormStep,
    ScaleStep,
    ShuffleStep,
    Step,
    to_layout,
)
from updp.blocks.sizes import OtherSize, try_other_size
from updp.blocks.teach import Linear, teach_forward, teach_operator
from updp.blocks.traced_site import TracedSite

__all__ = [
    "ActStep",
    "Chain",
    "Findings",
    "Linear",
    "LinearStep",
    "NormStep",
    "OtherSize",
    "ScaleStep",
    "ShuffleStep",
    "Site",
    "Step",
    "TracedSite",
    "Unusable",
    "find",
    "teach_forward",
    "teach_operator",
    "to_layout",
    "try_other_size",
]
