from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from updp.rewrite.walk import Walk, tapped


class Net(nn.Module):
    """Works in place on what its second part is given, which is also given a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.runs = Double(), Double(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        h = self.first(x, 1)
        return self.second(self.second(h, 2), 3)


class Double(nn.Module):
    def forward(self, x: Tensor, number: int) -> Tensor:
        return x.mul_(2)


@pytest.mark.parametrize(("megabytes", "runs"), [(1, 3), (0, 6)])
def test_the_way_is_run_once_for_a_module_where_there_is_memory(megabytes: int, runs: int) -> None:
    net, batches = Net(), [torch.full((2, 3), float(i)) for i in range(3)]
    walk = Walk(net, [b.clone() for b in batches], megabytes)
    for _ in range(2):
        walk.batches = [b.clone() for b in batches]
        for (x, *extras), images in zip(walk.to(net.second), batches, strict=True):
            assert torch.equal(x, 2 * images)
            assert extras == [2]  # of its first call
            x.zero_()  # what was given away is not what is kept
    assert net.runs == runs


def test_the_next_module_sees_what_the_one_before_it_has_become() -> None:
    net, x = Net(), torch.ones(1, 2)
    walk = Walk(net, [x.clone()], 1)
    ((first, _),) = walk.to(net.first)
    assert torch.equal(first, x)
    net.first = Same()
    walk.batches = [x.clone()]
    ((second, _),) = walk.to(net.second)
    assert torch.equal(second, x)


class Same(nn.Module):
    def forward(self, x: Tensor, number: int) -> Tensor:
        return x


def test_a_module_that_is_not_reached_is_named() -> None:
    with pytest.raises(AssertionError, match="Linear was not reached"):
        list(Walk(Net(), [torch.ones(1, 2)], 1).to(nn.Linear(2, 2)))


def test_a_tap_sees_a_copy_of_the_first_call_alone() -> None:
    net, seen = Net(), []
    with tapped({net.second: lambda *args: seen.append(args)}):
        net(torch.ones(1, 2))
    net(torch.ones(1, 2))
    ((x, number),) = seen
    assert (x.tolist(), number) == ([[2.0, 2.0]], 2)
