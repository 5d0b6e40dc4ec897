"""Pruned blocks give contiguous tensors where the block did, for a `view` may be behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import randomise
from updp.blocks import find
from updp.candidates.registry import proposals
from updp.recipe import CandidateSettings
from updp.supernet import Supernet

C = 4


class Last(nn.Module):
    """Channels last outside, a convolution inside, and a linear layer at the end."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc1 = nn.Conv2d(C, C, 3, padding=1, groups=C), nn.Linear(C, 12)
        self.fc2, self.combine = nn.Linear(12, C), combine

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.combine(self.fc2(F.gelu(self.fc1(y))), x)


class GatedLast(nn.Module):
    """No chain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(C, 2 * C, 3, padding=1), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).chunk(2, -1)
        return self.fc(y * torch.sigmoid(gate)) + x


class First(nn.Module):
    """Channels first outside, linear layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, 12), nn.Linear(12, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return x + y


class Sequence(nn.Module):
    """Tokens (N, L, C) outside, convolutions over them inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(C, 12, 3, padding=1), nn.Conv1d(12, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x.transpose(1, 2)))).transpose(1, 2)


class Viewed(nn.Module):
    def __init__(self, enter: Callable[[Tensor], Tensor], *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.enter = nn.Conv2d(3, C, 1), enter
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(C * 49, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.enter(self.stem(x)))
        found: Tensor = self.head(y.view(len(x), -1))
        return found


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "run": lambda: Viewed(_last, *(Last(lambda y, x: y) for _ in range(2))),
    "residual": lambda: Viewed(_last, *(Last(torch.add) for _ in range(2))),
    "gated": lambda: Viewed(_last, *(GatedLast() for _ in range(2))),
    "first": lambda: Viewed(lambda x: x, First(), First()),
    "tokens": lambda: Viewed(
        lambda x: x.flatten(2).transpose(1, 2).contiguous(), Sequence(), Sequence()
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_view_behind_a_pruned_block_does_not_fail(name: str) -> None:
    torch.manual_seed(0)
    model, x = randomise(MODELS[name]()).eval(), torch.randn(6, 3, 7, 7)
    found = find(model, x[:2])
    settings = CandidateSettings(drop="always", linear="always")
    candidates = {s.name: [*proposals(found.traced(s, model), settings)] for s in found.sites}
    assert len(candidates) == 2
    number = len(next(iter(candidates.values())))
    assert number > 1
    for place in range(number):
        own = {site: (each[place],) for site, each in candidates.items()}
        net = Supernet(copy.deepcopy(model), found, own).eval()
        net.calibrate(x)
        net.choose({site: each[0].label for site, each in own.items()})
        torch.testing.assert_close(net.merged()(x), net(x))


def test_nothing_is_copied_where_the_block_gave_no_contiguous_tensor() -> None:
    """Or where the new operators have its own layout."""
    plain = find(
        nn.Sequential(First(), First()).eval(), torch.randn(2, 7, 7, C).permute(0, 3, 1, 2)
    )
    layouts = ("first", "last")
    assert not any(site.needs_contiguous(layout) for site in plain.sites for layout in layouts)
    model = nn.Sequential(*(nn.Conv2d(C, C, 3, padding=1) for _ in range(4)))
    (site,) = find(model.eval(), torch.randn(2, C, 7, 7)).sites[:1]
    assert site.contiguous_out
    assert not site.needs_contiguous("first")
