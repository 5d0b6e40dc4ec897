"""Blocks that keep a state from one call to the next are refused with what they keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.families import C, Net, conv, images
from updp.blocks import find
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.state import why_stateful


class Spikes(nn.Module):
    """A neuron that adds up what it is given until it fires."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.v = x if self.v is None else 0.5 * self.v + x
        fired = (self.v > 1).to(x)
        self.v = self.v * (1 - fired)
        return fired


class Spiking(nn.Module):
    """A residual block whose activations keep a state."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.last = conv(C, C), Spikes(), conv(C, C), Spikes()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.b(self.act(self.a(x))))


class Recurrent(nn.Module):
    """A block that reads what it made of the image before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = conv(C, C), conv(C, C), None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x) if self.h is None else self.h
        self.h = torch.tanh(self.a(x) + self.b(h))
        return x + self.h


class Shown(nn.Module):
    """It writes down its last output, and fails on the values of others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.seen = conv(C, C), conv(C, C), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [self.a(x)]
        return x + self.b(self.seen[0]) if x.sum() > 0 else x


class Steps(Net):
    """Clears all states, and then runs its blocks for three steps."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            for name in {"v", "h"} & vars(module).keys():
                setattr(module, name, None)
        total = super().forward(x)
        for _ in range(2):
            total = total + super().forward(x)
        return total


@pytest.mark.parametrize(("kind", "kept"), [(Spiking, "act.v"), (Recurrent, "h")])
def test_a_block_with_a_state_says_what_it_keeps(kind: type[nn.Module], kept: str) -> None:
    found = find(Steps([kind(), kind()]).eval(), images())
    reasons = {u.name: u.reason for u in found.unusable}
    assert reasons.keys() == {"blocks.0", "blocks.1"}
    for reason in reasons.values():
        assert reason.endswith(f"it keeps `{kept}` from one call to the next")


def test_what_a_module_writes_down_is_no_state() -> None:
    block, x = Shown().eval(), torch.randn(2, C, 9, 7)
    assert why_stateful(block, Arguments((x,))) == ""
    assert block.seen == []
    found = find(Net([block]).eval(), images())
    assert ["what `gt` holds decides" in u.reason for u in found.unusable] == [True]
