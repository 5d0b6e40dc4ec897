"""Children whose names mean something in Python: generated forwards must call them all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.families import C, conv, error, images, randomise
from tests.road import prune_half, supernet

NAMES = ("self", "if", "class", "None", "print", "input")


class Named(nn.Module):
    """A residual block; `first` and `last` are the names of its convolutions, or inside of one."""

    def __init__(self, first: str, last: str, inside: str = "") -> None:
        super().__init__()
        self.names = (first, last)
        holder = nn.Module() if inside else self
        if inside:
            self.add_module(inside, holder)
        self.inside = inside
        holder.add_module(first, conv(C, 6))
        holder.add_module(last, conv(6, C))
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        holder = getattr(self, self.inside) if self.inside else self
        first, last = (getattr(holder, name) for name in self.names)
        return x + last(self.act(self.norm(first(x))))


class Net(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = conv(3, C), nn.Linear(C, 5)
        self.blocks = nn.ModuleList([Named(*names) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


CASES = [(name, "last") for name in NAMES] + [("first", name) for name in NAMES[:2]]
CASES += [("if", "else", "class"), ("self", "if", "self")]


@pytest.mark.parametrize("names", CASES, ids="-".join)
@torch.no_grad()
def test_a_block_is_merged_narrowed_and_dropped_whatever_its_children_are_called(
    names: tuple[str, ...],
) -> None:
    x, model = images(), Net(*names).eval()
    findings, net = supernet(model, x)
    assert [site.name for site in findings.sites] == ["blocks.0", "blocks.1"]
    labels = net.switches["blocks.0"].labels
    assert {"drop", "narrow"} < {label.partition(" ")[0] for label in labels}
    for label in labels:
        net.choose({"blocks.0": label})
        randomise(net.switches["blocks.0"].forms)
        assert error(net.merged()(x), net(x)) < 1e-4, label
    prune_half(model, x)
