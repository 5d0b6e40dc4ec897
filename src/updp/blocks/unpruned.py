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
from updp.blocks.surgery import calling, extract, restore, rewrite, surgical_state
from updp.blocks.values import difference, tensors_of
from updp.errors import UserError

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-4  # relative; the same operators run, so that CPUs differ in no bit


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
        if not _why_not(model, runs):
            return findings
    if _why_not(model, runs[:1]):
        raise UserError(_says_random(model, runs[0].images))
    refused: dict[str, str] = {}
    whole = set()
    for name in _sites_by_block(findings):
        block = model.get_submodule(name)
        before = surgical_state(block)
        _rewrite(model, findings, name, whole=False)
        if not _why_not(model, runs):
            continue
        restore(block, before)
        _rewrite(model, findings, name, whole=True)
        if why := _why_not(model, runs):
            restore(block, before)
            refused[name] = f"the model needs more of it than its output: without that, {why}"
            _log.info("%s cannot be pruned: %s", name or "the model", refused[name])
        else:
            whole.add(name)
            _log.info("%s keeps its modules, which the rest of the model reads", name)
    sites = tuple(site for site in findings.sites if site.block not in refused)
    kinds = {name: type(model.get_submodule(name)).__name__ for name in refused}
    unusable = [Unusable(name, kinds[name], why) for name, why in refused.items()]
    return replace(
        findings,
        sites=sites,
        unusable=(*findings.unusable, *unusable),
        whole=frozenset(whole),
    )


@contextmanager
def unpruned(model: nn.Module, findings: Findings) -> Iterator[None]:
    """Context in which all blocks with sites are rewritten as for pruning, with nothing pruned."""
    names = [*_sites_by_block(findings)]
    before = {name: surgical_state(model.get_submodule(name)) for name in names}
    blocks = {name: model.get_submodule(name) for name in names}
    try:
        for name in names:
            _rewrite(model, findings, name, whole=name in findings.whole)
        yield
    finally:
        for name, block in blocks.items():
            restore(block, before[name])


def _rewrite(model: nn.Module, findings: Findings, name: str, *, whole: bool) -> None:
    block, graph = model.get_submodule(name), findings.graphs[name]
    parts = []
    for i, site in enumerate(_sites_by_block(findings)[name]):
        region = site.region
        keep = extract(block, graph, region.entry, region.exit, region.extras)
        parts.append(calling(region, f"switch{i}", keep))
    rewrite(block, graph, parts, whole=whole)


def _sites_by_block(findings: Findings) -> dict[str, list[Any]]:
    blocks: dict[str, list[Any]] = {}
    for site in findings.sites:
        blocks.setdefault(site.block, []).append(site)
    return blocks


def _why_not(model: nn.Module, runs: Sequence[Run]) -> str:
    """How the model differs from what it was in these runs; empty where it does not."""
    for run in runs:
        try:
            with torch.no_grad():
                output = call_user_code(model, run.images.clone())
        except UserCodeError as error:
            return f"it fails ({error})"
        error_ = difference(output, run.output)
        if error_ > _TOLERANCE:
            return f"its output differs by {error_:.0%}" if error_ >= 0.01 else f"its output differs by {error_:.1e}"
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
        abs(p - q) <= _TOLERANCE * size
        for x, y, size in zip(a, b, sizes, strict=True)
        for p, q in zip(x, y, strict=True)
    )
