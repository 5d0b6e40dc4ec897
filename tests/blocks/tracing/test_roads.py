"""Kinds of forwards that are traced: each in its smallest program, pruned, merged, loaded again."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

from tests.families import Attention, C, Mlp, Net, conv, error, images, randomise
from tests.road import prune_half, supernet
from tests.sampling import every_other
from updp.blocks import find
from updp.blocks.copying import copy_module


class Two(nn.Module):
    """Two convolutions and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = conv(C, C, bias=True), conv(C, C, bias=True), nn.ReLU()

    def branch(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Dropping(Two):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.dropout(self.act(self.a(x)), 0.5, self.training))


class ByMode(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.training:
            y = y * (torch.rand(len(x), 1, 1, 1) > 0.5)
        return x + y


class Stochastic(Two):
    def forward(self, x: Tensor) -> Tensor:
        return x + stochastic_depth(self.branch(x), 0.5, "row", self.training)


class Checkpointed(Two):
    def forward(self, x: Tensor) -> Tensor:
        run = super().forward
        return checkpoint(run, x, use_reentrant=False) if self.training else run(x)


def rearrange(x: Tensor, order: str) -> Tensor:
    """As einops does it: by the type of its argument."""
    if type(x) is not Tensor:
        raise RuntimeError(f"Tensor type unknown to einops {type(x)}")
    return x.permute(["nchw".index(axis) for axis in order])


class Rearranged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.fc(rearrange(self.conv(x), "nhwc")))
        return x + rearrange(y, "nwch")


def _gelu(x: Tensor) -> Tensor:
    if type(x) is not Tensor:
        raise TypeError(f"{type(x)} is no tensor")
    return F.gelu(x)


class Private(Two):
    """A helper whose name begins with an underscore, which fx does not wrap."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(_gelu(self.a(x)))


class Causal(nn.Module):
    """torch's own transformer under masks, whose helpers ask for the masks' types."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(C, 2, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        padding = torch.arange(length).expand(len(x), -1) > length - 2
        return self.layer(x, later, padding)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


with warnings.catch_warnings(action="ignore"):  # it is deprecated
    swish = torch.jit.script(swish)


def large(x: Tensor) -> Tensor:
    """Its values decide what it does."""
    return x if x.max() > 1e9 else x.relu()


class Helped(Two):
    def forward(self, x: Tensor) -> Tensor:
        area = np.prod(x.shape[2:]) / math.prod(x.shape[-2:])
        return x + large(self.b(swish(self.a(x)))) * float(np.sqrt(area))


class Numbered(Two):
    """Numbers of NumPy's, at either side."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1 / np.sqrt(2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = np.float32(0.3) * self.branch(x) * np.int64(2)
        return self.scale * (x + y) / np.sqrt(2.0)


class Mixed(Two):
    """DARTS: a loop over weights, of which some are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(2))
        self.register_buffer("beta", torch.rand(2))
        self.kinds = [torch.relu, F.gelu]

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        terms = zip(self.alpha, self.beta, self.kinds, strict=True)
        return x + self.b(sum(w * v * act(y) for w, v, act in terms))


class MaskedByItself(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gains", torch.rand(1, 9), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[2], x.shape[3]).tril(3).to(x)
        mask[0, 1:] = 0.5
        y = x + self.branch(x) * torch.tensor(0.7, dtype=x.dtype)
        return y * mask + self.gains[:, : x.shape[1], None, None].expand(x.shape[0], -1, 1, 1)


def decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, **kwargs: Any) -> Tensor:
        return forward(*args, **kwargs)

    return run


class Decorated(Two):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Optional(Two):
    """Takes any argument; flags decide what it does."""

    def forward(self, x: Tensor, /, *args: int, **kwargs: Any) -> Tensor:
        if kwargs["flag"] and args[0] == 3:
            x = x + self.branch(x) + kwargs["shift"]
        return x


class Passing(nn.Module):
    """Calls its child with what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Optional()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, 3, flag=True, shift=x.mean((2, 3), keepdim=True), none=None)


class Statements(Two):
    """Every statement that overwrites a tensor, and drops what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.act(y)
        y = self.b(y)
        z = y
        z.add_(x)
        y.relu_()
        z[:, :2] += x[:, :2]
        y[:, 0, 1:].mul_(2)
        y *= 0.5
        return z


class PreActivated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(C), conv(C, 6), conv(6, C)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = F.relu(self.norm(x))
        return self.b(F.relu(self.a(before))), before


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.shortcut = PreActivated(), conv(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, before = self.body(x)
        return y + self.shortcut(before)


class Pair(nn.Module):
    """Only the first value is read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PreActivated()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)[0]


class Weights(nn.Module):
    """transformers' layers: an attention returns weights, which it may lack."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.inner = nn.LayerNorm(C), Attention(C)
        self.norm2, self.mlp = nn.LayerNorm(C), Mlp(C)

    def attend(self, x: Tensor) -> tuple[Tensor, None]:
        return self.inner(x), None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.attend(self.norm1(x))
        x = x + outputs[0]
        return (x + self.mlp(self.norm2(x)), *outputs[1:])


class First(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class Last(nn.Module):
    """Takes what came before, and needs it where it adds only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.adds = conv(C, C), False

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + before if self.adds else y


class Ignoring(nn.Module):
    """transformers' EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(C, C), Last()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(x * 2, F.relu(self.first(x)))


class Childless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(C, C, 3, 3) / 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv2d(F.conv2d(x, self.a, padding=1).relu(), self.b, padding=1)


class Listed(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        return x + self[1](F.relu(self[0](x)))


def patched() -> nn.Module:
    """The forward of the instance is another than its class's."""
    block = Two()
    block.forward = Patch(block)
    return block


@dataclass
class Output(OrderedDict[str, Tensor]):
    """A mapping and a dataclass, as transformers' outputs are."""

    value: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        self["value"] = self.value


class Returning(Two):
    """Returns a mapping of a class of its own."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(value=x + self.branch(x))


class Named(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.inner = Returning(kind)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        assert type(y) is self.inner.kind
        return y["value"]


class Patch:
    def __init__(self, block: Two) -> None:
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        return x - self.block.branch(x)


# Its block, what the blocks see, how many of the sites of two blocks are chains, which module.
KINDS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "functional dropout": (Dropping, "image", 2),
    "condition on the mode": (ByMode, "image", 2),
    "stochastic depth": (Stochastic, "image", 2),
    "checkpoint in training": (Checkpointed, "image", 2),
    "einops": (Rearranged, "image", 2),
    "a private helper": (Private, "image", 2),
    "torch's transformer with masks": (Causal, "tokens", 2),
    "scripted helper, numpy, values in a helper": (Helped, "image", 2),
    "numbers of NumPy's": (Numbered, "image", 2),
    "a loop over weights": (Mixed, "image", 2),
    "tensors of its own, buffers": (MaskedByItself, "image", 2),
    "decorated": (Decorated, "image", 2),
    "any arguments": (Passing, "image", 2),
    "statements in place": (Statements, "image", 2),
    "a pair, both read": (Shortcut, "image", 2),
    "a pair, one read": (Pair, "image", 2),
    "weights beside": (lambda: First(Weights()), "tokens", 2),
    "an argument ignored": (Ignoring, "image", 2),
    "no children": (Childless, "image", 0),
    "a list with a forward": (lambda: Listed([conv(C, 6), conv(6, C)]), "image", 2),
    "patched": (patched, "image", 2),
    "an ordered dict": (lambda: Named(OrderedDict), "image", 2),
    "a mapping of its class": (lambda: Named(Output), "image", 2),
}


def net_of(kind: str) -> Net:
    make, form, _ = KINDS[kind]
    torch.manual_seed(0)
    return randomise(Net([make(), make()], form)).eval()


@pytest.mark.parametrize("kind", every_other(KINDS))
def test_each_kind_goes_the_whole_road(kind: str) -> None:
    model, x = net_of(kind), images(3)
    sites = find(model, x).sites
    assert sum(s.branch is not None for s in sites) == KINDS[kind][2], sites
    prune_half(model, x)


BY_MODE = (
    "functional dropout",
    "condition on the mode",
    "stochastic depth",
    "checkpoint in training",
)


@pytest.mark.parametrize("kind", BY_MODE)
def test_kept_blocks_train_as_their_user_wrote_them(kind: str) -> None:
    model, x = net_of(kind), images(3)
    findings, net = supernet(model, x)
    assert bool(findings.modal) == (kind in BY_MODE[1:3])
    model.train()
    net = copy_module(net).train()

    def run(module: nn.Module) -> Tensor:
        torch.manual_seed(3)
        return module(x)

    expected = run(model)
    assert torch.equal(run(net), expected)
    assert error(run(net.eval()), expected) > 1e-3 or kind == "checkpoint in training"
    # With the other block pruned, at the begin of its way: the noise of its arguments is left to
    # it, and all of the kept block's to that.
    first, _ = net.switches
    net.choose({first: net.switches[first].labels[0]})
    net.train().set_lambda(0.0)
    if kind == "functional dropout":
        assert error(run(net), expected) < 1e-5
    elif kind != "checkpoint in training":
        net.eval()
        quiet = run(net)
        assert error(run(net.train()), quiet) > 1e-3


@pytest.mark.parametrize("kind", ["a private helper", "torch's transformer with masks"])
def test_helpers_with_an_underscore_are_recorded_and_put_back(kind: str) -> None:
    before = _gelu, F._canonical_mask, F._none_or_dtype
    sites = find(net_of(kind), images(3)).sites
    assert sum(s.branch is not None for s in sites) == KINDS[kind][2], sites
    assert before == (_gelu, F._canonical_mask, F._none_or_dtype)
