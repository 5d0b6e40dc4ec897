"""Kinds of blocks that are read: each in its smallest program, pruned, merged, loaded again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import Attention, Basic, C, Mlp, MlpBlock, Net, conv, images, randomise
from tests.road import prune_half
from updp.blocks import Findings, find


class PaddedFirst(Basic):
    """Zeros from functions and layers, uneven, as TensorFlow's 'same' has them."""

    def __init__(self) -> None:
        super().__init__(conv(C, 6, 2, padding=0), conv(6, C, padding=(1, 0)))
        self.pad = nn.ZeroPad2d((1, 1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.pad(x, (0, 1, 1, 0))))
        return self.act2(self.bn2(self.conv2(self.pad(self.act1(y)))) + x)


class Temporal(nn.Module):
    """A temporal convolutional network's: padded on both sides, what lies in the future cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(C, 6, 3, padding=4, dilation=2)
        self.conv2, self.chomp = nn.Conv1d(6, C, 2, padding=1), Chomp(1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, :-4])
        return F.relu(x + self.chomp(self.conv2(y)))


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class ResponseNorm(nn.Module):
    """ConvNeXt V2's; its parameters have the shape of a kernel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(1, 1, 1, c)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.weight * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.bias + x


class ConvNeXtV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw, self.norm = conv(C, C, 3, groups=C), nn.LayerNorm(C)
        self.up, self.grn, self.down = nn.Linear(C, 2 * C), ResponseNorm(2 * C), nn.Linear(2 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(self.dw(x).permute(0, 2, 3, 1)))
        return x + self.down(self.grn(F.gelu(y))).permute(0, 3, 1, 2)


class LastWithin(nn.Module):
    """The residual add with channels last, then back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(C), Mlp(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return (x + self.mlp(self.norm(x))).permute(0, 3, 1, 2)


class TransposedWithin(nn.Module):
    """A sequence (N, C, L) whose norm wants its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(C), nn.Conv1d(C, 6, 3, padding=1), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(-1, -2)
        return x + self.b(F.silu(self.a(y)).mT.contiguous()).permute(0, 2, 1)


class Pointwise(nn.Module):
    """A feed-forward part of tokens, by convolutions of one pixel: Informer, FastSpeech."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(C), nn.Conv1d(C, 6, 1), nn.Conv1d(6, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(self.norm(x).transpose(1, 2)))).transpose(1, 2)


class WindowMlp(MlpBlock):
    """Windows as axes of their own, (N, 3, 3, 1, 7, C)."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.unflatten(2, (1, 7)).unflatten(1, (3, 3))
        return super().forward(y).flatten(3, 4).flatten(1, 2)


class MapAttention(nn.Module):
    """Attention on a map, which it flattens to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(C), Attention(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm(x.flatten(2).transpose(1, 2)))
        return x + y.transpose(1, 2).reshape(x.shape)


class Gate(nn.Module):
    """A gate of linear layers on the pooled map."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(x.mean((2, 3)))[:, :, None, None].sigmoid() * x


MERGING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "explicit padding": (PaddedFirst, "image"),
    "a kernel-shaped parameter": (ConvNeXtV2, "image"),
    "an add with channels last": (LastWithin, "image"),
    "cropped convolutions": (Temporal, "sequence"),
    "sequences": (TransposedWithin, "sequence"),
    "convolutions of one pixel on tokens": (Pointwise, "tokens"),
    "six axes": (lambda: WindowMlp(C), "nhwc"),
}


def net(make: Callable[[], nn.Module], form: str) -> Net:
    torch.manual_seed(0)
    return randomise(Net([make(), make()], form)).eval()


class Pyramid(Net):
    """Blocks that are called at several sizes, as heads of a pyramid are."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        small = self.blocks(F.avg_pool2d(x, 2))
        return self.blocks(x) + small.mean((2, 3), keepdim=True)


def merging(found: Findings) -> list[str]:
    return [site.name for site in found.sites if site.branch is not None]


@pytest.mark.parametrize("kind", MERGING)
def test_a_kind_merges_exactly_and_is_loaded_again(kind: str) -> None:
    model = net(*MERGING[kind])
    found = find(model, images())
    assert merging(found) == ["blocks.0", "blocks.1"], [s.why for s in found.sites]
    assert all(site.region.add for site in found.sites)
    prune_half(model, images())


@pytest.mark.parametrize("make", [MapAttention, Gate])
@pytest.mark.parametrize("first", [0, 1])
def test_a_branch_on_a_map_is_replaced_per_channel_of_the_map(
    make: Callable[[], nn.Module], first: int
) -> None:
    model = net(make, "image")
    assert [(s.branch, s.layout) for s in find(model, images()).sites] == [(None, "first")] * 2
    merged = prune_half(model, images(), first=first)
    assert merged(torch.randn(1, 3, 11, 12)).shape == (1, 5)


def test_blocks_called_at_several_sizes_merge() -> None:
    torch.manual_seed(0)
    blocks = [Basic(conv(C, 6), conv(6, C)), MapAttention()]
    model = randomise(Pyramid(blocks)).eval()
    first, second = find(model, images()).sites
    assert (first.calls, merging(find(model, images()))) == (2, ["blocks.0"])
    assert first.work == second.work == 1 + (9 * 7) / (4 * 3)
    for place in (0, 1):
        prune_half(model, images(), first=place)


def test_padding_that_differs_between_the_sizes_of_calls_is_refused() -> None:
    class Same(Basic):
        def forward(self, x: Tensor) -> Tensor:
            y = self.act1(self.bn1(self.conv1(F.pad(x, (1, x.shape[3] % 2, 1, 1)))))
            return self.act2(self.bn2(self.conv2(F.pad(y, (0, 1 - x.shape[3] % 2)))) + x)

    kernels = conv(C, 6, padding=0), conv(6, C)
    found = find(randomise(Pyramid([Same(*kernels)])).eval(), images())
    assert [s.branch for s in found.sites] in ([], [None])
