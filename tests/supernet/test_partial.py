"""A walk gives what the whole network would, and runs no more of it than it must."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from updp.blocks.nested import ModelInputs, call, same
from updp.supernet.partial import observed_inputs
from updp.supernet.walk import NotReached, Walk


class Step(nn.Module):
    """Works in place on what it is given, and counts the images."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.images = factor, 0

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        self.images += len(x)
        return x.mul_(self.factor).add_(number)


class Net(nn.Module):
    """Three steps, the second one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Step(factor) for factor in (2, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.steps
        h = second(first(x + 0, 1), 2)
        return third(second(h, 3) + 1)


class LongSkip(Net):
    """What the first step gave comes back at the end, so it cannot be entered behind it."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.steps
        early = first(x + 0, 1)
        return third(second(early.clone(), 2)) + early


class Unread(Net):
    """Nothing reads what the second step gives, so the output tells nothing of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.steps
        early = first(x + 0, 1)
        late = third(x.clone())
        second(early.clone(), 2)
        return late


class Strict(Net):
    """Refuses, in a way of its own, to see what is no number."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.steps
        h = first(x + 0, 1)
        assert h.isfinite().all()
        return third(second(h, 2))


IMAGES = 3 + 3 + 2


class Shared(Net):
    """The first step is run by a unit beside it, as parts of a block by what replaced a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Around(self.steps[0])

    def forward(self, x: Tensor) -> Tensor:
        _, second, third = self.steps
        return third(second(self.other(x + 0), 2))


class Around(nn.Module):
    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.run = [step]  # no child of it

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.run[0](x, 1)
        return out


def batches() -> list[Tensor]:
    return [torch.full((n, 3), float(n + i)) for i, n in enumerate((3, 3, 2))]


def given(net: nn.Module, module: nn.Module) -> list[tuple[Tensor, tuple[int, ...]]]:
    """What hooks of the whole network see."""
    found: list[tuple[Tensor, tuple[int, ...]]] = []
    for images in batches():
        with observed_inputs({module: lambda x, *extras: found.append((x, extras))}):
            net(images)
    return found


def check(walk: Walk, net: nn.Module, module: nn.Module) -> None:
    expected = given(net, module)
    for (x, *extras), (whole, others) in zip(walk.to(module), expected, strict=True):
        assert torch.equal(x, whole)
        assert tuple(extras) == others
        x.zero_()  # what was given away is not what is kept


def counted(net: Net, walk: Iterator[object]) -> list[int]:
    """The images that each step sees."""
    for step in net.steps:
        step.images = 0
    list(walk)
    return [step.images for step in net.steps]


@pytest.mark.parametrize("kind", [Net, LongSkip, Unread, Strict])
@pytest.mark.parametrize("room", [0, 100, 200, 10**6])
def test_a_walk_gives_what_the_whole_network_gives_its_modules(kind: type[Net], room: int) -> None:
    """However many bytes there are: all that is kept for a module has 96."""
    net = kind()
    walk = Walk(net, list(net.steps), batches(), 1)
    walk.room = room
    for step in net.steps:
        for _ in range(2):
            check(walk, net, step)
        step.factor += 1  # as a fit would change it


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Net, [[0, 0, 0], [IMAGES, 0, 0], [0, 2 * IMAGES, 0]]),
        (LongSkip, [[0, 0, 0], [IMAGES, 0, 0], [IMAGES, IMAGES, 0]]),
        (Unread, [[0, 0, 0], [IMAGES, 0, IMAGES], [IMAGES, 0, 0]]),
    ],
)
def test_a_walk_resumes_at_the_last_module_it_can_enter(
    kind: type[Net], expected: list[list[int]]
) -> None:
    net = kind()
    walk = Walk(net, list(net.steps), batches(), 1)
    for step, images in zip(net.steps, expected, strict=True):
        assert counted(net, walk.to(step)) == images
        assert counted(net, walk.to(step)) == [0, 0, 0]  # it is there already


def test_a_unit_that_runs_another_one_counts_once() -> None:
    net = Shared()
    walk = Walk(net, net.steps[1:], batches(), 1)
    for step in net.steps[1:]:
        check(walk, net, step)
    net.steps[0].images = net.steps[1].images = 0
    walk.output(0)
    assert (net.steps[0].images, net.steps[1].images) == (0, 0)


def test_without_memory_every_visit_starts_from_the_images() -> None:
    net = Net()
    walk = Walk(net, list(net.steps), batches(), 0)
    for _ in range(2):
        assert counted(net, walk.to(net.steps[1])) == [IMAGES, 0, 0]


def test_cached_inputs_stay_within_the_memory_allowed() -> None:
    net = Net()
    walk = Walk(net, list(net.steps), batches(), 1)
    walk.room = 80  # of 96 bytes: for two of the batches
    list(walk.to(net.steps[1]))
    assert counted(net, walk.to(net.steps[1])) == [2, 0, 0]
    assert counted(net, walk.to(net.steps[2])) == [2, 2 * IMAGES, 0]


def test_a_forward_that_the_user_set_on_an_instance_stays() -> None:
    net = Net()
    second = net.steps[1]
    own = second.forward = lambda x, number=0: Step.forward(second, x, number + 1)
    walk = Walk(net, list(net.steps), batches(), 1)
    for step in net.steps:
        check(walk, net, step)
    assert vars(second)["forward"] is own
    assert all("forward" not in vars(step) for step in (net.steps[0], net.steps[2]))


def test_a_module_that_is_not_reached_is_named() -> None:
    with pytest.raises(NotReached, match="Linear was not reached"):
        list(Walk(Net(), [], [torch.ones(1, 2)], 1).to(nn.Linear(2, 2)))


def test_a_tap_sees_a_copy_of_the_first_call_alone() -> None:
    net, seen = Net(), []
    with observed_inputs({net.steps[1]: lambda *args: seen.append(args)}):
        net(torch.ones(1, 2))
    net(torch.ones(1, 2))
    ((x, number),) = seen
    assert (x.tolist(), number) == ([[3.0, 3.0]], 2)


def test_a_walk_carries_ids_and_masks_and_refuses_unknown_objects() -> None:
    class Cache:
        """Not known to updp, and so never replayed."""

    class Embed(nn.Module):
        def __init__(self, opaque: bool) -> None:
            super().__init__()
            self.words, self.opaque = nn.Embedding(9, 4), opaque

        def forward(self, ids: Tensor) -> Any:
            return (self.words(ids), Cache() if self.opaque else None)

    class Text(nn.Module):
        def __init__(self, opaque: bool) -> None:
            super().__init__()
            self.embed, self.layer = Embed(opaque), nn.Linear(4, 4)

        def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
            x, cache = self.embed(ids)
            return {"logits": self.layer(x * mask[..., None]), "cache": cache}

    x = ModelInputs((torch.arange(8).view(2, 4),), {"mask": torch.tensor([[1.0] * 4, [0.0] * 4])})
    for opaque in (False, True):
        net = Text(opaque).eval()
        with torch.no_grad():
            walk = Walk(net, [net.layer], [x], 16)
            (inputs,) = walk.to(net.layer)
            assert (net.layer in walk._enterable) == (not opaque)
            assert torch.equal(inputs[0], net.embed.words(x.args[0]) * x.kwargs["mask"][..., None])
            assert same(walk.output(0), call(net, x))
