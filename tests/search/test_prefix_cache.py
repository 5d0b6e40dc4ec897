"""Shared activations: the same logits, bit by bit, with less computed."""

import itertools
import random

import pytest
import torch
from torch import Tensor, nn

from tests import families
from updp.blocks import find
from updp.candidates import proposals
from updp.recipe import CandidateSettings
from updp.search.prefix_cache import PrefixCache
from updp.supernet import Supernet
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
            found := list(
                proposals(
                    site,
                    model.get_submodule(site.block),
                    findings.graphs[site.block],
                    CandidateSettings(drop="always"),
                )
            )
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
    net: Supernet, replay: PrefixCache, choices: dict[str, str], last: int = 2
) -> list[Tensor]:
    """What a scorer does, for so many of the held-out batches."""
    net.choose(choices)
    replay.begin()
    keys = list(BATCHES)
    with preserved(net):
        recalibrate(net, [images(k) for k in keys[:2]], lambda i, x: replay(keys[i], x))
        replay.calibrated()
        found = [replay(key, images(key)) for key in keys[2 : 2 + last]]
    replay.end()
    return found


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


BLOCKS = ("basic", "convnext", "in_place", "inverted", "pre_activation_in_place", "bottleneck")
SHARES = {Deep: True, LongSkip: False, Between: True}


@pytest.mark.parametrize("kind", SHARES)
def test_shared_activations_give_the_same_logits_with_fewer_calls(kind: type[Deep]) -> None:
    torch.manual_seed(0)
    net = supernet(kind(*BLOCKS))
    shared, plain = start(net, 64), start(net, 0)
    for number, choices in enumerate(itertools.chain(plans(net, 12), plans(net, 12))):
        last = 1 if number % 3 == 0 else 2  # some are left half-way
        expected = logits(net, plain, choices, last)
        found = logits(net, shared, choices, last)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert shared.computed > 0
    if SHARES[kind]:
        assert shared.shared > shared.computed / 3
    assert plain.shared == 0


def test_a_network_is_not_entered_inside_a_long_skip() -> None:
    torch.manual_seed(0)
    net = supernet(LongSkip(*BLOCKS))
    replay = start(net, 64)
    for choices in plans(net, 3):
        logits(net, replay, choices)
    first = min(place for place in replay._enterable)
    assert replay._enterable[first]  # before the skip begins
    assert not any(ok for place, ok in replay._enterable.items() if place > first + 1)


@pytest.mark.parametrize("bound", [8_000, 20_000, 40_000, 80_000])
def test_kept_activations_stay_within_the_memory_bound(bound: int) -> None:
    """And what was forgotten, or never computed as a plan was left half-way, is computed anew."""
    torch.manual_seed(0)
    net = supernet(Deep(*BLOCKS))
    replay, plain = start(net, 1), start(net, 0)
    replay.bound = bound
    chance = random.Random(1)
    choices = plans(net, 1)[0]
    for number in range(50):
        last = 1 if number % 3 else 2
        expected = logits(net, plain, choices, last)
        found = logits(net, replay, choices, last)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert sum(entrance.bytes for entrance in replay._known.values()) <= bound
        names = list(net.switches)  # the next one is most often the same but near its end
        name = names[-1 - min(int(chance.expovariate(0.7)), len(names) - 1)]
        choices = {**choices, name: chance.choice(net.switches[name].labels)}
    assert replay.shared > 0 or bound < 10_000


def test_forwards_are_restored_after_an_error() -> None:
    net = supernet(Deep(*BLOCKS))
    replay = start(net, 64)
    with pytest.raises(RuntimeError):
        replay(("held out", 9), torch.randn(2, families.CHANNELS + 1, 5, 5))
    assert not any("forward" in vars(module) for module in net.modules())
