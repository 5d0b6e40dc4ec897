"""What tests ask of a traced graph."""

from torch import fx

from updp.blocks.tracing.region import Region, residual_adds


def residual_regions(graph: fx.Graph) -> list[Region]:
    """The regions that end in a residual add, in graph order."""
    return [region for region, why in residual_adds(graph) if not why]
