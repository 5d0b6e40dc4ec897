"""Is a model whose blocks are rewritten, and in which nothing is pruned, still the model?

The rest of a model may read what a block keeps beside its output: a record of its last input, a
weight. Nothing tells but running it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from updp.blocks.findings import Findings, Unusable
from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import call
from updp.blocks.repeatable import NOISE, RecordedRun, describe_random, warn_of_batch_statistics
from updp.blocks.surgery import (
    Replacement,
    calling,
    extract,
    restore,
    rewrite,
    surgical_state,
)
from updp.blocks.values import difference
from updp.errors import UserError

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-6  # relative; the same operators run, so that CPUs differ in no bit


def usable_findings(model: nn.Module, findings: Findings, runs: Sequence[RecordedRun]) -> Findings:
    """The findings without the blocks whose forward cannot be rewritten within the model.

    The model is left with some of its blocks rewritten; see `tracing.trace.restored`.

    Raises UserError: the model gives another output each time.
    """
    with unpruned(model, findings):
        same = not _why_not(model, runs, _TOLERANCE)
    if same:
        warn_of_batch_statistics(model, runs)
        return findings
    noise = difference(call_user_code(call, model, runs[0].images.clone()), runs[0].output)
    if noise > NOISE:
        raise UserError(describe_random(model, runs[0].images))
    limit = max(_TOLERANCE, 10 * noise)
    refused: dict[str, str] = {}
    whole = set()
    blocks = _blocks(model, findings)
    for name, block in blocks.items():
        before = surgical_state(block)
        _rewrite(block, findings, name, whole=False)
        if not _why_not(model, runs, limit):
            continue
        restore(block, before)
        _rewrite(block, findings, name, whole=True)
        if why := _why_not(model, runs, limit):
            restore(block, before)
            refused[name] = f"the model needs more of it than its output: without that, {why}"
            _log.info("%s cannot be pruned: %s", name or "the model", refused[name])
        else:
            whole.add(name)
            _log.info("%s keeps its modules, which the rest of the model reads", name)
    sites = tuple(site for site in findings.sites if site.block not in refused)
    unusable = [Unusable(n, type(blocks[n]).__name__, why) for n, why in refused.items()]
    return replace(
        findings,
        sites=sites,
        unusable=(*findings.unusable, *unusable),
        whole=frozenset(whole),
    )


@contextmanager
def unpruned(model: nn.Module, findings: Findings) -> Iterator[None]:
    """Context in which all blocks with sites are rewritten as for pruning, with nothing pruned."""
    blocks = _blocks(model, findings)
    before = {name: surgical_state(block) for name, block in blocks.items()}
    try:
        for name, block in blocks.items():
            _rewrite(block, findings, name, whole=name in findings.whole)
        yield
    finally:
        for name, block in blocks.items():
            restore(block, before[name])


def _blocks(model: nn.Module, findings: Findings) -> dict[str, nn.Module]:
    """The blocks that have sites, by path: a rewritten block may hide others."""
    return {name: model.get_submodule(name) for name in {s.block: None for s in findings.sites}}


def _rewrite(block: nn.Module, findings: Findings, name: str, *, whole: bool) -> None:
    graph = findings.graphs[name]
    parts: list[Replacement] = []
    for site in findings.sites:
        if site.block == name:
            region = site.region
            keep = extract(block, graph, region.entry, region.exit, region.extras)
            parts.append(calling(region, f"switch{len(parts)}", keep))
    rewrite(block, graph, parts, whole=whole)


def _why_not(model: nn.Module, runs: Sequence[RecordedRun], limit: float) -> str:
    """How the model differs from what it was in these runs by more than `limit`; empty if not."""
    for run in runs:
        try:
            with torch.no_grad():
                output = call_user_code(call, model, run.images.clone())
        except UserCodeError as error:
            return f"it fails ({error})"
        if (gap := difference(output, run.output)) > limit:
            return f"its output differs by {f'{gap:.0%}' if gap >= 0.01 else f'{gap:.1e}'}"
    return ""
