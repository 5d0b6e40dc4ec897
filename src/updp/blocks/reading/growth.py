"""Record the inputs of a model's sites for one sample more, to show how sizes grow."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from updp.blocks.reading.site import Site
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import run_graph


def with_larger(
    sites: Sequence[Site],
    modules: Mapping[str, nn.Module],
    graphs: Mapping[str, fx.Graph],
    calls: Mapping[str, Sequence[Arguments]],
    samples: int,
) -> tuple[Site, ...]:
    """The sites, block by block, with their inputs for one sample more.

    Args:
        sites: sites of one model.
        modules: the blocks by path.
        graphs: the graphs of the blocks, in the order of the result.
        calls: the calls of each block with one sample more.
        samples: number of samples in these calls.
    """
    found: list[Site] = []
    for block, graph in graphs.items():
        own = [site for site in sites if site.block == block]
        if calls[block]:
            values = run_graph(modules[block], graph, calls[block][0])
            own = [_with_larger(site, values, samples, len(calls[block])) for site in own]
        found += own
    return tuple(found)


def _with_larger(site: Site, values: Mapping[str, Any], samples: int, calls: int) -> Site:
    entry, *extras = (values[name] for name in (site.region.entry, *site.region.extras))
    larger = (tuple(entry.shape), *extras)
    return replace(site, samples=samples - 1, larger=larger, more_calls=calls - site.calls)
