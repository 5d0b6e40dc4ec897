import copy

import pytest
import torch
from torch import Tensor, nn

from updp.training.features import comparable, feature_loss, tapped


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.pair = nn.Linear(3, 4), nn.Linear(4, 4), Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu_()  # in place, on what was collected
        x = self.second(self.second(x))
        return self.pair(x)[0]


def test_outputs_are_collected_call_by_call_and_once() -> None:
    net, x = Net(), torch.randn(5, 3)
    with tapped(net, ["first", "second", "pair", "third"]) as tap:
        net(x)
        taken = tap.take()
        assert tap.take() == {}
    assert {path: len(outputs) for path, outputs in taken.items()} == {"first": 1, "second": 2}
    assert torch.equal(taken["first"][0], net.first(x))
    assert taken["first"][0].min() < 0
    net(x)
    assert tap.take() == {}  # the hooks are gone


def test_a_closed_tap_collects_nothing() -> None:
    net, x = Net(), torch.randn(5, 3)
    with tapped(net, ["first"]) as tap:
        tap.is_open = False
        net(x)
        tap.is_open = True
        assert tap.take() == {}


def test_hooks_go_when_training_fails() -> None:
    net = Net()
    with pytest.raises(RuntimeError), tapped(net, ["first"]):
        net(torch.randn(5, 7))
    assert not net.first._forward_hooks


def test_only_equal_shapes_are_comparable() -> None:
    student, teacher, x = Net(), Net(), torch.randn(2, 3)
    paths = ["first", "second", "pair", "third"]
    assert comparable(student, teacher, paths, x) == ["first", "second"]
    student.first, student.second = nn.Linear(3, 6), nn.Linear(6, 6)
    assert comparable(student, teacher, paths, x) == []
    student.second = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    assert comparable(student, teacher, ["second"], x) == []


def test_the_feature_loss_agrees_with_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = {
        "a": [torch.randn(4, 3, generator=generator)],
        "b": [100 + 50 * torch.randn(2, 5, 6, generator=generator)],
    }
    student = {
        path: [t + torch.randn(t.shape, generator=generator) for t in outputs]
        for path, outputs in teacher.items()
    }
    expected = 0.0
    for path, (target,) in teacher.items():
        wanted = target.double().flatten().tolist()
        mine = student[path][0].double().flatten().tolist()
        mean = sum(wanted) / len(wanted)
        variance = sum((t - mean) ** 2 for t in wanted)  # and the error: over as many elements
        expected += sum((s - t) ** 2 for s, t in zip(mine, wanted, strict=True)) / variance / 2
    assert feature_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_zero_for_oneself_and_one_for_a_constant() -> None:
    net, x = Net(), torch.randn(50, 3)
    twin = copy.deepcopy(net)
    with tapped(net, ["first", "second"]) as mine, tapped(twin, ["first", "second"]) as theirs:
        net(x)
        twin(x)
        features = theirs.take()
        assert feature_loss(mine.take(), features).item() == 0
    constant = {path: [t.mean().expand_as(t) for t in ts] for path, ts in features.items()}
    assert feature_loss(constant, features).item() == pytest.approx(1, rel=1e-4)
    assert feature_loss({}, {}).item() == 0


def test_a_feature_that_does_not_vary_is_no_division_by_zero() -> None:
    zero = {"a": [torch.zeros(2, 3)]}
    assert feature_loss(zero, zero).item() == 0
