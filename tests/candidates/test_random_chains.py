"""Whatever find accepts merges exactly; whatever it refuses has a reason; nothing crashes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.candidates.supernets import choices, features
from tests.families import C, Net, error, randomise, ring
from updp.blocks import find
from updp.candidates import baseline_macs, propose
from updp.rewrite import GATES, Supernet

ACTS = (nn.ReLU, nn.GELU, nn.Tanh, nn.Identity, nn.PReLU, nn.Softmax2d)


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
def branches(draw: st.DrawFn) -> nn.Sequential:
    count = draw(st.integers(2, 3))
    widths = [C, *draw(st.lists(st.sampled_from([2, 4, 6]), min_size=count - 1, max_size=count))]
    widths = [*widths[:count], C]
    layers: list[nn.Module] = []
    for i, o in zip(widths, widths[1:], strict=False):
        same = draw(st.booleans())
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        dilation = draw(pairs)
        stride = (1, 1) if draw(st.integers(0, 3)) else draw(pairs)
        half = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        padding = draw(st.sampled_from([half, half, (0, 1)]))
        layers.append(
            nn.Conv2d(
                *(i, o, kernel, 1 if same else stride, "same" if same else padding, dilation),
                groups=draw(st.sampled_from([1, 2])),
                bias=draw(st.booleans()),
                padding_mode="zeros" if draw(st.integers(0, 9)) else "circular",
            )
        )
        norm = draw(st.sampled_from(["batch", "group", "none"]))
        if norm != "none":
            layers.append(nn.BatchNorm2d(o) if norm == "batch" else nn.GroupNorm(2, o))
        if act := draw(st.sampled_from([None, *ACTS])):
            layers.append(act())
    if draw(st.booleans()):  # pre-activation
        layers[:0] = [nn.BatchNorm2d(C), nn.ReLU()]
    return nn.Sequential(*layers)


@given(
    branch=branches(),
    residual=st.booleans(),
    post=st.sampled_from([None, nn.ReLU()]),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    linearise=st.booleans(),
)
@settings(deadline=None, derandomize=True, max_examples=120)
def test_random_chains(
    branch: nn.Sequential,
    residual: bool,
    post: nn.Module | None,
    size: tuple[int, int],
    linearise: bool,
) -> None:
    torch.manual_seed(0)
    block = randomise(Chain(branch, residual, post))
    model = Net([block, Chain(nn.Sequential(nn.Identity()), residual=False, post=None)]).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    try:
        expected = features(model.eval(), x)
    except RuntimeError:  # the sizes do not fit one another: no model at all
        return
    if not expected.numel():
        return
    findings = find(model, x)
    if residual:
        assert len(findings.sites) + len(findings.unusable) == 1
    assert all(u.reason for u in findings.unusable)
    for site in findings.sites:
        assert baseline_macs(site) > 0
        candidates = list(propose(site, linearise=linearise))
        if not candidates:
            continue
        net = Supernet(model, findings, {site.name: candidates}).eval()
        randomise(net.switches[site.name].forms)
        for choice in choices(net):
            net.choose(choice)
            for gate in GATES:
                net.set_progress(0.0, gate)
                assert error(features(net, x), expected) <= 1e-12, (choice, gate)
            net.set_progress(1.0)
            actual, wanted = features(net.merged(torch.float64), x), features(net, x)
            assert error(actual, wanted) <= 1e-12, choice
            assert error(ring(actual), ring(wanted)) <= 1e-12, choice
