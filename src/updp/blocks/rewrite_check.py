"""Check that rewriting a model's blocks, with nothing pruned, does not change its output.

The rest of a model may read more of a block than its output: a record of its last input, or a
weight. Only running the model shows this.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.attribute_reads import what_is_read
from updp.blocks.findings import Findings, Unusable
from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.nested import call
from updp.blocks.reading.site import Site
from updp.blocks.repeatable import NOISE, RecordedRun, describe_random, warn_of_batch_statistics
from updp.blocks.surgery import (
    Replacement,
    calling,
    has_room,
    restore,
    rewrite,
    surgical_state,
)
from updp.blocks.traced_site import TracedSite
from updp.blocks.values import difference, tensors_of
from updp.errors import UserError

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-6  # relative; the same operators run, so on CPUs nothing differs
# Forms of a rewritten block, smallest first: (whether it keeps all modules, whether new modules go
# inside one of its children, so that the number of children is unchanged).
_FORMS = ((False, False), (True, False), (False, True), (True, True))


def usable_findings(model: nn.Module, findings: Findings, runs: Sequence[RecordedRun]) -> Findings:
    """The findings without blocks whose forward cannot be rewritten within the model.

    The model is left with some of its blocks rewritten; see `tracing.trace.restored`.

    Raises UserError if the model's output changes between runs, or has no tensors to compare.
    """
    if not tensors_of(runs[0].output):
        kind = type(runs[0].output).__name__
        raise UserError(
            f"the model returns a {kind}, in which updp finds no tensor: let it return tensors, "
            "alone or in a tuple, a dictionary or a dataclass"
        )
    with unpruned(model, findings):
        same = not _why_not(model, runs, _TOLERANCE)
    if same:
        warn_of_batch_statistics(model, runs)
        return findings
    noise = difference(call_user_code(call, model, runs[0].images.clone()), runs[0].output)
    if noise > NOISE:
        raise UserError(describe_random(model, runs[0].images))
    limit = max(_TOLERANCE, 10 * noise)
    kept: set[str] = set()
    unusable: list[Unusable] = []
    unused, counted = set[str](), set[str]()
    for name, block in _blocks(model, findings).items():
        own = findings.within(name)
        form, why = _find_form(model, block, own, runs, limit)
        refused = {} if form else {name: why}
        if form is None and len(own.sites) > 1:  # perhaps only one of them matters
            alone = _why_not_alone(model, block, own, runs, limit)
            own = replace(own, sites=tuple(s for s in own.sites if s.name not in alone))
            form = _find_form(model, block, own, runs, limit)[0] if own.sites else None
            refused = refused if form is None else alone
        for label, why in refused.items():
            read = what_is_read(model, block, runs[0])
            reason = f"the model needs more of it than its output{read}: without that, {why}"
            unusable.append(Unusable(label, type(block).__name__, reason))
            _log.info("%s cannot be pruned: %s", label or "the model", reason)
        if form is None:
            continue
        kept |= {site.name for site in own.sites}
        keep_unused, keep_count = form
        if keep_unused:
            unused.add(name)
            _log.info("%s keeps its modules, which the rest of the model reads", name)
        if keep_count:
            counted.add(name)
            _log.info("%s keeps its number of modules, which the rest of the model reads", name)
    return replace(
        findings,
        sites=tuple(site for site in findings.sites if site.name in kept),
        unusable=(*findings.unusable, *unusable),
        keep_unused=frozenset(unused),
        keep_count=frozenset(counted),
    )


def _find_form(
    model: nn.Module, block: nn.Module, own: Findings, runs: Sequence[RecordedRun], limit: float
) -> tuple[tuple[bool, bool] | None, str]:
    """The first of `_FORMS` that keeps the model's output; else None, and the difference.

    The block is left in this form, or unchanged. `own` are the findings of the block alone.
    """
    before, name, why = surgical_state(block), own.sites[0].block, ""
    for keep_unused, keep_count in _FORMS if has_room(block) else _FORMS[:2]:
        _rewrite(block, own, name, keep_unused=keep_unused, keep_count=keep_count)
        if not (why := _why_not(model, runs, limit)):
            return (keep_unused, keep_count), ""
        restore(block, before)
    return None, why


def _why_not_alone(
    model: nn.Module, block: nn.Module, own: Findings, runs: Sequence[RecordedRun], limit: float
) -> dict[str, str]:
    """Sites of a block that change the output even if rewritten alone, with the difference."""
    before, found = surgical_state(block), {}
    for site in own.sites:
        _, found[site.name] = _find_form(model, block, replace(own, sites=(site,)), runs, limit)
        restore(block, before)
    return {name: why for name, why in found.items() if why}


@contextmanager
def unpruned(model: nn.Module, findings: Findings) -> Iterator[None]:
    """Context in which all blocks with sites are rewritten for pruning, but nothing is pruned."""
    blocks = _blocks(model, findings)
    before = {name: surgical_state(block) for name, block in blocks.items()}
    try:
        for name, block in blocks.items():
            unused, count = name in findings.keep_unused, name in findings.keep_count
            _rewrite(block, findings, name, keep_unused=unused, keep_count=count)
        yield
    finally:
        for name, block in blocks.items():
            restore(block, before[name])


def _blocks(model: nn.Module, findings: Findings) -> dict[str, nn.Module]:
    """The blocks with sites by path, looked up before rewriting, which may hide some."""
    return {name: model.get_submodule(name) for name in {s.block: None for s in findings.sites}}


def _rewrite(
    block: nn.Module, findings: Findings, name: str, *, keep_unused: bool, keep_count: bool
) -> None:
    graph = findings.graphs[name]
    parts: list[Replacement] = []
    for site in findings.sites:
        if site.block == name:
            keep = TracedSite(site, block, graph).whole()
            parts.append(calling(site.region, f"switch{len(parts)}", _disguised(keep, site)))
    rewrite(block, graph, parts, keep_unused=keep_unused, keep_count=keep_count)


def _disguised(keep: nn.Module, site: Site) -> nn.Module:
    """A site's own path, disguised as an operator of other sizes, as a pruned site has.

    Nothing outside may depend on the sizes, or find the path's own modules in the block.
    """
    ndim = len(site.shape_out)
    kind: Any = nn.Linear if ndim not in (3, 4, 5) else (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 3]
    operator: nn.Module = kind(1, 1) if kind is nn.Linear else kind(1, 1, 1)
    operator.to(like_of(keep))
    vars(operator)["forward"] = partial(_run_unread, keep)
    return operator.eval()


def _run_unread(keep: nn.Module, x: Tensor, *extras: Any) -> Any:
    """The output of a site's path, which then runs once more on other values.

    So anything that a hook or module inside records is wrong, and shows if the rest of the model
    reads it: a pruned site would not record it at all.
    """
    other = 0.5 * x + 1 if x.is_floating_point() else None
    output = keep.forward(x, *extras)
    if other is not None:
        keep.forward(other, *extras)
    return output


def _why_not(model: nn.Module, runs: Sequence[RecordedRun], limit: float) -> str:
    """The model's difference from its recorded runs, in words, if above `limit`; else empty."""
    for run in runs:
        try:
            with torch.no_grad():
                output = call_user_code(call, model, run.images.clone())
        except UserCodeError as error:
            return f"it fails ({error})"
        if (gap := difference(output, run.output)) > limit:
            return f"its output differs by {f'{gap:.0%}' if gap >= 0.01 else f'{gap:.1e}'}"
    return ""
