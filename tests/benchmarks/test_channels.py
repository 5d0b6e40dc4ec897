"""Channel pruning beside updp: which channels are left, and their fit."""

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accuracy.channel_fit import fit_channels
from benchmarks.accuracy.channels import prune_channels
from tests.families import error
from updp.recipe import FitSettings

EXACT = FitSettings(ridge=(1e-10,), judged=0)


class Branch(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.norm(self.first(x))))


class Net(nn.Module):
    def __init__(self, inner: int = 6, channels: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(Branch(channels, inner), Branch(channels, inner))
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@torch.no_grad()
def doubled() -> Net:
    """In each block the last three inner channels are copies of the first three."""
    torch.manual_seed(0)
    model = Net().double().eval()
    for block in model.blocks:
        nn.init.uniform_(block.norm.weight, 0.5, 2.0)
        nn.init.normal_(block.norm.bias)
        for tensor in (block.first.weight, block.norm.weight, block.norm.bias):
            tensor[3:] = tensor[:3]
    return model


@torch.no_grad()
def halved(model: Net) -> tuple[Net, dict[str, Tensor]]:
    """The last three inner channels of each block are gone, and nothing makes up for them."""
    narrow, stay = Net(inner=3).double().eval(), torch.arange(3)
    state = copy.deepcopy(model.state_dict())
    for number in range(2):
        for name in ("first.weight", "norm.weight", "norm.bias", "norm.running_mean"):
            state[f"blocks.{number}.{name}"] = state[f"blocks.{number}.{name}"][:3]
        name = f"blocks.{number}.norm.running_var"
        state[name] = state[name][:3]
        state[f"blocks.{number}.second.weight"] = state[f"blocks.{number}.second.weight"][:, :3]
    narrow.load_state_dict(state)
    return narrow, {f"blocks.{number}.first": stay for number in range(2)}


def test_a_fit_makes_up_for_channels_that_others_copy() -> None:
    model = doubled()
    narrow, left = halved(model)
    x = torch.randn(80, 3, 6, 6).double()
    assert error(narrow(x), model(x)) > 0.1
    fitted = fit_channels(model, narrow, left, [x[:40], x[40:]], EXACT)
    assert error(fitted(x), model(x)) < 1e-4
    assert error(narrow(x), model(x)) > 0.1  # a copy was fitted


def test_targets_are_those_of_the_channels_that_are_left() -> None:
    # The first operators' own weights are in a wrong order: only their targets tell the right one.
    model = doubled()
    narrow, left = halved(model)
    with torch.no_grad():
        for block in narrow.blocks:
            block.first.weight.copy_(block.first.weight.flip(0))
    x = torch.randn(80, 3, 6, 6).double()
    fitted = fit_channels(model, narrow, left, [x[:40], x[40:]], EXACT)
    assert error(fitted(x), model(x)) < 1e-4


@pytest.mark.parametrize("kind", ["magnitude", "taylor"])
def test_it_is_told_which_channels_are_left(kind: str) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    torch.manual_seed(0)
    model, x = Net(inner=16, channels=8).eval(), torch.randn(4, 3, 9, 7)
    narrow, left = prune_channels(model, kind, 0.5, x, [(x, torch.zeros(4, dtype=torch.long))])
    fewer = 0
    for name, channels in left.items():
        own, weight = model.get_submodule(name).weight, narrow.get_submodule(name).weight
        assert len(channels) == len(weight)
        if weight[0].shape == own[0].shape:  # only outputs went
            assert torch.equal(own[channels], weight)
            fewer += len(channels) < len(own)
    assert fewer
