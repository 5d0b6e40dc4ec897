"""Whatever find accepts merges exactly; whatever it refuses has a reason; nothing crashes."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.candidates.supernets import choices, features
from tests.families import C, Net, error, randomise, ring
from updp.blocks import find
from updp.candidates import Inherit, inherit_cuts, proposals
from updp.recipe import CandidateSettings
from updp.supernet import GATES, Supernet

ACTS = (nn.ReLU, nn.GELU, nn.Tanh, nn.Identity, nn.PReLU)


class Chain(nn.Module):
    def __init__(self, branch: nn.Sequential, residual: bool, post: nn.Module | None) -> None:
        super().__init__()
        self.branch, self.residual, self.post = branch, residual, post

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.residual:
            y = y + x
        return y if self.post is None else self.post(y)


pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))


@st.composite
def branches(draw: st.DrawFn, residual: bool) -> nn.Sequential:
    """With `residual`, mostly of the input's size: later layers crop what earlier ones pad."""
    count = draw(st.integers(2, 3))
    widths = [C, *draw(st.lists(st.sampled_from([2, 4, 6]), min_size=count - 1, max_size=count))]
    widths = [*widths[:count], C]
    layers: list[nn.Module] = []
    extra = (0, 0)
    for place, (i, o) in enumerate(pairwise(widths)):
        last = place == count - 1
        kernel = draw(st.tuples(*[st.sampled_from([1, 2, 3, 3])] * 2))
        dilation = draw(pairs)
        stride = (1, 1) if residual or draw(st.integers(0, 2)) else draw(pairs)
        reach = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        same = stride == (1, 1) and (draw(st.booleans()) or any(r % 2 for r in reach))
        half = tuple(r // 2 for r in reach)
        if residual and last and any(extra):
            same = False
        more = draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
        if residual and (same or last):
            more = (0, 0) if same else tuple(-e for e in extra)
        padding = tuple(max(0, h + m) for h, m in zip(half, more, strict=True))
        if not same:
            extra = tuple(e + p - h for e, p, h in zip(extra, padding, half, strict=True))
        layers.append(
            nn.Conv2d(
                *(i, o, kernel, stride, "same" if same else padding, dilation),
                groups=draw(st.sampled_from([1, 2])),
                bias=draw(st.booleans()),
                padding_mode="zeros" if draw(st.integers(0, 30)) != 7 else "circular",
            )
        )
        norm = draw(st.sampled_from(["batch", "group", "none"]))
        if norm != "none":
            layers.append(nn.BatchNorm2d(o) if norm == "batch" else nn.GroupNorm(2, o))
        if act := draw(st.sampled_from([None, *2 * ACTS, nn.Softmax2d])):
            layers.append(act())
    if draw(st.booleans()):  # pre-activation
        layers[:0] = [nn.BatchNorm2d(C), nn.ReLU()]
    return nn.Sequential(*layers)


@given(
    made=st.booleans().flatmap(lambda r: st.tuples(branches(residual=r), st.just(r))),
    post=st.sampled_from([None, nn.ReLU()]),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    linearise=st.booleans(),
)
@settings(deadline=None, derandomize=True, max_examples=30)
def test_random_chains_merge_exactly_or_are_refused(
    made: tuple[nn.Sequential, bool],
    post: nn.Module | None,
    size: tuple[int, int],
    linearise: bool,
) -> None:
    branch, residual = made
    torch.manual_seed(0)
    block = randomise(Chain(branch, residual, post))
    model = Net([block, Chain(nn.Sequential(nn.Identity()), residual=False, post=None)]).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    try:
        if not features(model.eval(), x).numel():
            return
    except RuntimeError:  # the sizes do not fit one another: no model at all
        return
    findings = find(model, x)
    assert all(u.reason for u in findings.unusable)
    for site in findings.sites:
        settings = CandidateSettings(drop="always", linearise=linearise)
        traced = findings.traced(site, model)
        inherits = list(inherit_cuts(site, linearise=linearise))
        others = [c for c in proposals(traced, settings) if not isinstance(c, Inherit)]
        candidates = [*inherits, *others]
        if not candidates:
            continue
        net = Supernet(model, findings, {site.name: candidates}).eval()
        randomise(net.switches[site.name].forms)
        # In the root the network itself is rewritten, and its features have no name.
        look = features if site.block else (lambda module, x: module(x))
        before = look(model if site.block else net.baseline(), x)
        for choice in choices(net):
            net.choose(choice)
            for gate in GATES:
                net.set_lambda(0.0, gate)
                assert error(look(net, x), before) <= 1e-12, (choice, gate)
            net.set_lambda(1.0)
            actual, wanted = look(net.merged(torch.float64), x), look(net, x)
            assert error(actual, wanted) <= 1e-12, choice
            if site.block:
                assert error(ring(actual), ring(wanted)) <= 1e-12, choice
