"""Weights and factors that are computed from parameters, and what cannot be copied."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.blocks.test_rewrite_check import Reader
from tests.families import Basic, C, conv, images
from tests.road import prune_half, supernet
from updp.blocks import find
from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError
from updp.blocks.values import difference


class Mixed(Basic):
    """A branch and its skip under a softmax of parameters, and a branch over another."""

    def __init__(self) -> None:
        super().__init__(conv(C, 6), conv(6, C))
        self.mix, self.gain = nn.Parameter(torch.tensor([0.3, -1.2])), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(x + y * self.mix.softmax(0)[1] / self.gain.exp())


def on_first(make: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def block() -> nn.Module:
        made = Basic(conv(C, 6), conv(6, C))
        with warnings.catch_warnings(action="ignore"):  # the old functions are deprecated
            made.conv1, made.conv2 = make(made.conv1), make(made.conv2)
        return made

    return block


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": on_first(weight_norm),
    "weight_norm, new": on_first(parametrizations.weight_norm),
    "spectral_norm": on_first(spectral_norm),
    "spectral_norm, new": on_first(parametrizations.spectral_norm),
    "factor": Mixed,
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_what_is_computed_from_parameters_merges_exactly_and_trains(kind: str) -> None:
    torch.manual_seed(0)
    net = Reader()
    net.blocks = nn.ModuleList([COMPUTED[kind]() for _ in range(2)])
    net(images()).sum().backward()  # and so old hooks leave a weight that has a gradient function
    net.zero_grad()
    prune_half(net, images(), pickles="new" not in kind)  # torch refuses parametrizations
    _, switched = supernet(net, images())
    labels = switched.switches["blocks.0"].labels
    switched.choose({"blocks.0": next(label for label in labels if label.startswith("conv1+"))})
    switched(images()).square().sum().backward()
    own = switched.model.blocks[0]
    learnt = [own.mix, own.gain] if kind == "factor" else [*own.conv1.parameters()]
    assert all(parameter.grad is not None for parameter in learnt)


class Guarded(Basic):
    """Holds what no copy can be made of, in itself and in a hook."""

    def __init__(self) -> None:
        super().__init__(conv(C, 6), conv(6, C))
        self.lock, self.source = threading.Lock(), self.numbers()
        self.locks = {"a": [threading.RLock()]}
        self.register_forward_hook(Hook())

    def numbers(self) -> Iterator[int]:
        yield 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Line(nn.Module):
    """One factor and one shift for all channels, as in HGNetV2: the identity before training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


def test_what_a_module_is_does_not_depend_on_how_far_it_is_trained() -> None:
    net = Reader()
    net.blocks = nn.ModuleList([Basic(conv(C, 6), conv(6, C), Line) for _ in range(2)])
    nn.init.constant_(net.blocks[1].act1.bias, 0.3)
    first, second = (site.branch for site in find(net.eval(), images()).sites)
    assert first is not None
    assert second is not None
    assert [*map(type, first.steps)] == [*map(type, second.steps)]
    prune_half(net, images())  # also loaded into a model with other weights


class Hook:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, module: nn.Module, x: tuple[Tensor], y: Tensor) -> Tensor:
        with self.lock:
            return y * 0.5


def test_locks_generators_and_hooks_that_hold_them_are_shared_by_copies() -> None:
    net = Reader().eval()
    net.blocks[1] = Guarded().eval()
    copied = copy_module(net)
    assert copied.blocks[1].lock is net.blocks[1].lock
    assert copied.blocks[1].conv1 is not net.blocks[1].conv1
    x = images()
    findings, switched = supernet(net, x)
    assert [s.name for s in findings.sites] == [f"blocks.{i}" for i in range(4)]
    switched.choose({n: s.labels[0] for n, s in [*switched.switches.items()][::2]})
    with torch.no_grad():
        double = copy_module(switched).double()
        assert double.model.blocks[1].forward.block is double.model.blocks[1]
        assert double.model.blocks[1].lock is switched.model.blocks[1].lock
        merged = switched.merged(torch.float64)
        assert difference(merged(x.double()), double(x.double())) < 1e-12


class Stubborn(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("I stay")


def test_a_module_that_refuses_to_be_copied_says_why() -> None:
    with pytest.raises(UserCodeError, match="RuntimeError: I stay"):
        copy_module(nn.Sequential(Stubborn()))


def test_buffers_with_a_gradient_function_are_copied() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("square", net.weight**2)
    net.kept = [net.weight * 2]
    copied = copy_module(net)
    assert torch.equal(copied.square, net.square)
    assert copied.square.grad_fn is None
    assert torch.equal(copied.kept[0], net.kept[0])
