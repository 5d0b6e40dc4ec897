"""Is a model whose blocks are rewritten, and in which nothing is pruned, still the model?

The rest of a model may read what a block keeps beside its output: a record of its last input, a
weight. Nothing tells but running it.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.findings import Findings, Unusable
from updp.blocks.modules import UserCodeError, call_user_code, hooks
from updp.blocks.surgery import (
    Replacement,
    calling,
    extract,
    restore,
    rewrite,
    surgical_state,
)
from updp.blocks.values import difference, tensors_of
from updp.errors import UserError

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-6  # relative; the same operators run, so that CPUs differ in no bit
_RANDOM = 1e-4  # relative; what GPUs may differ by is less


@dataclass(frozen=True)
class Run:
    """An input of a model (N, C, H, W), and what the model makes of it."""

    images: Tensor
    output: Any


def usable_findings(model: nn.Module, findings: Findings, runs: Sequence[Run]) -> Findings:
    """The findings without the blocks whose forward cannot be rewritten within the model.

    The model is left with some of its blocks rewritten; see `tracing.trace.restored`.

    Raises UserError: the model gives another output each time.
    """
    with unpruned(model, findings):
        if not _why_not(model, runs, _TOLERANCE):
            return findings
    noise = difference(call_user_code(model, runs[0].images.clone()), runs[0].output)
    if noise > _RANDOM:
        raise UserError(_says_random(model, runs[0].images))
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


def _why_not(model: nn.Module, runs: Sequence[Run], limit: float) -> str:
    """How the model differs from what it was in these runs by more than `limit`; empty if not."""
    for run in runs:
        try:
            with torch.no_grad():
                output = call_user_code(model, run.images.clone())
        except UserCodeError as error:
            return f"it fails ({error})"
        if (gap := difference(output, run.output)) > limit:
            return f"its output differs by {f'{gap:.0%}' if gap >= 0.01 else f'{gap:.1e}'}"
    return ""


def _says_random(model: nn.Module, images: Tensor) -> str:
    name = random_module(model, images)
    kind = type(model.get_submodule(name)).__name__
    where = f"its module {name} ({kind})" if name else f"the forward of {kind} itself"
    return (
        "the model gives another output each time that it sees the same images, though in "
        f"evaluation mode: {where} is random, or remembers what it saw before; make it the same "
        "each time in evaluation"
    )


def random_module(model: nn.Module, images: Tensor) -> str:
    """Path of the innermost module that gives different outputs for equal inputs, in two runs."""
    first, second = _trail(model, images), _trail(model, images)
    for call, (inputs, outputs) in first.items():
        others = second.get(call)
        if others is not None and _near(inputs, others[0]) and not _near(outputs, others[1]):
            return call[0]
    return ""


_Sums = list[tuple[float, float]]


def _trail(model: nn.Module, images: Tensor) -> dict[tuple[str, int], tuple[_Sums, _Sums]]:
    """Sums over inputs and outputs of each call of each module, in the order in which they end."""
    trail: dict[tuple[str, int], tuple[_Sums, _Sums]] = {}
    entered: list[_Sums] = []
    counts: Counter[str] = Counter()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(_sums((args, kwargs)))

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
        counts[name] += 1
        trail[name, counts[name]] = entered.pop(), _sums(output)

    def watch() -> Iterator[RemovableHandle]:
        for name, module in model.named_modules():
            yield module.register_forward_pre_hook(enter, with_kwargs=True)
            yield module.register_forward_hook(partial(leave, name))

    with torch.no_grad(), hooks(watch()):
        model(images.clone())
    return trail


def _sums(value: Any) -> _Sums:
    tensors = (t.real.double() if t.is_complex() else t.double() for t in tensors_of(value))
    return [(float(t.sum()), float(t.abs().sum())) for t in tensors]


def _near(a: _Sums, b: _Sums) -> bool:
    if len(a) != len(b):
        return False
    sizes = [max(x[1], y[1], 1e-30) for x, y in zip(a, b, strict=True)]
    return all(
        abs(p - q) <= _RANDOM * size
        for x, y, size in zip(a, b, sizes, strict=True)
        for p, q in zip(x, y, strict=True)
    )
