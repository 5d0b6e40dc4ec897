"""A family's supernet with candidates of one kind, and what to compare it with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.families import FAMILIES, Family, Net, images, network, randomise
from updp.algebra import Operator
from updp.blocks import Findings, TracedSite, find
from updp.candidates import (
    Candidate,
    Drop,
    FoldNorm,
    Fuse,
    Narrow,
    NarrowAttention,
    OneLinear,
    inherit_cuts,
)
from updp.candidates.parts.trainable import TrainableOperator
from updp.recipe import CandidateSettings
from updp.supernet import Supernet

Proposer = Callable[[TracedSite], Iterable[Candidate]]


def _inherit(**options: bool) -> Proposer:
    return lambda traced: inherit_cuts(traced.site, **options)


def _kind(kind: type[Candidate]) -> Proposer:
    settings = CandidateSettings(
        drop="always", fold_norms=True, linear="always", widths=(0.75, 0.5, 0.25)
    )
    return lambda traced: kind.propose(traced, settings)


KINDS: dict[str, Proposer] = {
    "inherit": _inherit(),
    "inherit-bare": _inherit(end_activation=False),
    "inherit-linearised": _inherit(linearise=True),
    "narrow": _kind(Narrow),
    "attention": _kind(NarrowAttention),
    "drop": _kind(Drop),
    "linear": _kind(OneLinear),
    "fuse": _kind(Fuse),
    "fold": _kind(FoldNorm),
}


@dataclass(frozen=True)
class Case:
    """`net` and `base` are in evaluation, its candidates' norms are random."""

    kind: str
    family: Family
    base: Net
    findings: Findings
    candidates: dict[str, list[Candidate]]
    net: Supernet
    images: Tensor

    @cached_property
    def double(self) -> tuple[Supernet, Net, Tensor]:
        """All in float64."""
        net, base = copy.deepcopy(self.net), copy.deepcopy(self.base)
        return net.double(), base.double(), self.images.double()


@contextmanager
def restored(*modules: nn.Module) -> Iterator[None]:
    """Whatever happens to modes, tensors and gradients meanwhile is taken back."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    values = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data.copy_(value)
            tensor.grad = None
        for module in modules:
            module.eval()


def case(kind: str, family: str) -> Case:
    model, x = network(family), images()
    base = copy.deepcopy(model)
    findings = find(model, x)
    candidates = {}
    for site in findings.sites:
        if found := list(KINDS[kind](findings.traced(site, model))):
            candidates[site.name] = found
    net = Supernet(model, findings, candidates).eval()
    for switch in net.switches.values():
        randomise(switch.forms)
        for part in switch.forms.modules():
            if isinstance(part, TrainableOperator):
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return Case(kind, FAMILIES[family], base, findings, candidates, net, x)


def choices(net: Supernet) -> Iterator[dict[str, str]]:
    """Every candidate once, at all sites together."""
    for i in range(max(len(s.labels) for s in net.switches.values())):
        yield {n: s.labels[min(i, len(s.labels) - 1)] for n, s in net.switches.items()}


def features(model: nn.Module, x: Tensor) -> Tensor:
    """The last map (N, C, H, W) of a family's network, plain or within a supernet."""
    inner = model.model if isinstance(model, Supernet) else model
    assert isinstance(inner, Net)
    return inner.features(x)


def merge(net: Supernet, choice: dict[str, str], dtype: torch.dtype = torch.float32) -> nn.Module:
    net.choose(choice)
    return net.merged(dtype)


def output_and_macs(operator: Operator, size: list[int]) -> tuple[list[int], int]:
    """Output size and multiply-accumulates for one image of this size, as torch has them."""
    with FlopCounterMode(display=False) as counter:
        y = operator(torch.zeros(1, operator.in_channels, *size))
    return [*y.shape[2:]], counter.get_total_flops() // 2
