"""Shared activations: the same logits, bit by bit, with less computed."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import families
from updp.blocks import find
from updp.candidates import proposals
from updp.recipe import CandidateSettings
from updp.search.prefix_cache import PrefixCache
from updp.supernet import Supernet, Switch
from updp.training.batchnorm import preserved, recalibrate


class Deep(nn.Module):
    """Blocks of several families in a row."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.parts = nn.ModuleList(families.FAMILIES[name].make() for name in names)
        self.head = nn.Linear(families.CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.head(x.mean((2, 3)))


class LongSkip(Deep):
    """What an early block gave comes back at the end, behind several others."""

    def forward(self, x: Tensor) -> Tensor:
        early = x = self.parts[0](x)
        for part in self.parts[1:]:
            x = part(x)
        return self.head((x + 2 * early).mean((2, 3)))


class Between(Deep):
    """The root computes between blocks, also in place."""

    def forward(self, x: Tensor) -> Tensor:
        for i, part in enumerate(self.parts):
            x = part(x)
            x = x * 1.5 - 0.25
            x += 0.125 * i
        return self.head(x.mean((2, 3)))


def supernet(model: nn.Module) -> Supernet:
    x = torch.randn(2, families.CHANNELS, families.HEIGHT, families.WIDTH)
    model = families.randomise(model).eval()
    findings = find(model, x)
    candidates = {
        site.name: found
        for site in findings.sites
        if (
            found := list(proposals(findings.traced(site, model), CandidateSettings(drop="always")))
        )
    }
    return Supernet(model, findings, candidates).eval()


BATCHES = {
    ("calibration", 0): (4, 0),
    ("calibration", 1): (4, 1),
    ("held out", 0): (5, 2),
    ("held out", 1): (3, 3),
}


def images(key: tuple[str, int]) -> Tensor:
    count, seed = BATCHES[key]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        count, families.CHANNELS, families.HEIGHT, families.WIDTH, generator=generator
    )


@torch.no_grad()
def logits(
    net: Supernet,
    cache: PrefixCache,
    choices: dict[str, str],
    last: int = 2,
    statistics: bool = True,
) -> list[Tensor]:
    """What a scorer does, for so many of the held-out batches, with statistics anew or as known."""
    net.choose(choices)
    keys = list(BATCHES)
    with cache.plan(), preserved(net):
        if statistics:
            recalibrate(net, [images(k) for k in keys[:2]], lambda i, x: cache(keys[i], x))
        cache.calibrated()
        return [cache(key, images(key)) for key in keys[2 : 2 + last]]


def start(net: Supernet, megabytes: int) -> PrefixCache:
    net.choose({})
    with torch.no_grad():
        return PrefixCache(net, megabytes, 16, images(("held out", 0))[:2])


def plans(net: Supernet, count: int) -> list[dict[str, str]]:
    chance = random.Random(0)
    found = []
    for _ in range(count):
        labels = {name: chance.choice(["keep", *s.labels]) for name, s in net.switches.items()}
        found.append({name: label for name, label in labels.items() if label != "keep"})
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Tensor], int]]:
    """`logits`, with the number of calls of switches that are computed for them."""
    calls: list[Switch] = []
    forward = Switch.forward

    def count(self: Switch, *args: Any) -> Tensor:
        calls.append(self)
        return forward(self, *args)

    def run(*args: Any) -> tuple[list[Tensor], int]:
        calls.clear()
        return logits(*args), len(calls)

    monkeypatch.setattr(Switch, "forward", count)
    return run


BLOCKS = ("basic", "convnext", "in_place", "inverted", "pre_activation_in_place", "bottleneck")
SHARES = {Deep: True, LongSkip: False, Between: True}


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("kind", SHARES)
def test_shared_activations_give_the_same_logits_with_fewer_calls(
    kind: type[Deep], statistics: bool, counted: Callable[..., tuple[list[Tensor], int]]
) -> None:
    torch.manual_seed(0)
    net = supernet(kind(*BLOCKS))
    shared, plain = start(net, 64), start(net, 0)
    all_calls = shared_calls = 0
    for number, choices in enumerate(itertools.chain(plans(net, 6), plans(net, 6))):
        last = 1 if number % 3 == 0 else 2  # some are left half-way
        expected, every = counted(net, plain, choices, last, statistics)
        found, computed = counted(net, shared, choices, last, statistics)
        all_calls, shared_calls = all_calls + every, shared_calls + computed
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    if SHARES[kind]:
        assert 0 < shared_calls < 0.75 * all_calls


def test_a_network_is_not_entered_inside_a_long_skip() -> None:
    torch.manual_seed(0)
    net = supernet(LongSkip(*BLOCKS))
    cache = start(net, 64)
    for choices in plans(net, 3):
        logits(net, cache, choices)
    first = min(place for place in cache._enterable)
    assert cache._enterable[first]  # before the skip begins
    assert not any(ok for place, ok in cache._enterable.items() if place > first + 1)


@pytest.mark.parametrize("bound", [8_000, 40_000])
def test_kept_activations_stay_within_the_memory_bound(
    bound: int, counted: Callable[..., tuple[list[Tensor], int]]
) -> None:
    """And what was forgotten, or never computed as a plan was left half-way, is computed anew."""
    torch.manual_seed(0)
    net = supernet(Deep(*BLOCKS))
    cache, plain = start(net, 1), start(net, 0)
    cache.bound = bound
    chance = random.Random(1)
    choices = plans(net, 1)[0]
    all_calls = shared_calls = 0
    for number in range(20):
        last = 1 if number % 3 else 2
        expected, every = counted(net, plain, choices, last)
        found, computed = counted(net, cache, choices, last)
        all_calls, shared_calls = all_calls + every, shared_calls + computed
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert sum(entrance.bytes for entrance in cache._known.values()) <= bound
        names = list(net.switches)  # the next one is most often the same but near its end
        name = names[-1 - min(int(chance.expovariate(0.7)), len(names) - 1)]
        choices = {**choices, name: chance.choice(net.switches[name].labels)}
    assert shared_calls < all_calls or bound < 10_000


def test_forwards_are_restored_after_an_error() -> None:
    net = supernet(Deep(*BLOCKS))
    cache = start(net, 64)
    before = {module: vars(module).get("forward") for module in net.modules()}
    with pytest.raises(RuntimeError):
        cache(("held out", 9), torch.randn(2, families.CHANNELS + 1, 5, 5))
    assert {module: vars(module).get("forward") for module in net.modules()} == before
