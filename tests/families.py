"""Small hand-written block families, each in a classifier of its own, for every test of rewriting.

Images are odd (9 by 7) and channels few. Norms are randomised so that no statistic is 0, 1 or
shared; nothing here is known to the code under test.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
HEIGHT, WIDTH, CHANNELS = 9, 7, 4

with warnings.catch_warnings(action="ignore"):  # torch says so once per process, at any test
    F.conv2d(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), padding="same")


def conv(i: int, o: int, k: int | tuple[int, int] = 3, s: int = 1, **kw: object) -> nn.Conv2d:
    kh, kw_ = (k, k) if isinstance(k, int) else k
    return nn.Conv2d(i, o, (kh, kw_), s, **{"padding": (kh // 2, kw_ // 2), "bias": False} | kw)


class Basic(nn.Module):
    """ResNet's: conv, norm, activation, conv, norm, add, activation."""

    def __init__(
        self,
        first: nn.Conv2d,
        second: nn.Conv2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = first, norm(first.out_channels), act()
        self.conv2, self.bn2, self.act2 = second, norm(second.out_channels), act()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + (x if self.shortcut is None else self.shortcut(x)))


class LayerNorm2d(nn.Module):
    """Over the channels of maps that have them first."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Functional(Basic):
    """Activations as functions and methods, with arguments."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.bn1(self.conv1(x)), negative_slope=0.2)
        return (self.bn2(self.conv2(y)) + x).relu()


class InPlace(Basic):
    """`x += y` and an activation that overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return F.relu(y, inplace=True)


class SlicedShortcut(Basic):
    """Option A of the ResNet paper: every second pixel, channels filled up with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + F.pad(x[:, :, ::2, ::2][:, 1:], (0, 0, 0, 0, 0, 1)))


class PreActivation(nn.Module):
    def __init__(self, c: int, inplace: bool = False) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c), conv(c, c + 2)
        self.bn2, self.conv2 = nn.BatchNorm2d(c + 2), conv(c + 2, c, bias=True)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.bn1(x)))
        return x + self.conv2(self.relu(self.bn2(y)))


class Bottleneck(nn.Module):
    def __init__(self, c: int, s: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv1, self.bn1 = conv(c, 3, 1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = conv(3, 3, 3, s), nn.BatchNorm2d(3)
        self.conv3, self.bn3 = conv(3, c, 1), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class InvertedResidual(nn.Module):
    """MobileNetV2's, with its nested sequentials; without a skip where it strides."""

    def __init__(self, i: int, o: int, s: int = 1, skip: bool = True) -> None:
        super().__init__()
        self.skip, h = skip, 2 * i
        self.conv = nn.Sequential(
            nn.Sequential(conv(i, h, 1), nn.BatchNorm2d(h), nn.ReLU6(inplace=True)),
            nn.Sequential(conv(h, h, 3, s, groups=h), nn.BatchNorm2d(h), nn.ReLU6(inplace=True)),
            conv(h, o, 1),
            nn.BatchNorm2d(o),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class DropPath(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        keep = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * keep / (1 - self.p)


class ConvNeXt(nn.Module):
    def __init__(self, c: int, p: float = 0.0) -> None:
        super().__init__()
        self.dw = conv(c, c, 5, groups=c, bias=True)
        self.norm = nn.LayerNorm(c)
        self.pw1, self.act, self.pw2 = nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)
        self.gamma = nn.Parameter(torch.rand(c) + 0.5)
        self.drop_path = DropPath(p)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pw2(self.act(self.pw1(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class Mlp(nn.Module):
    def __init__(self, c: int, p: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.act, self.drop = nn.Linear(c, 2 * c), nn.GELU(), nn.Dropout(p)
        self.fc2 = nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class LayerScale(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma)


class Attention(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class ViT(nn.Module):
    """Two branches, and arguments that its caller may leave out."""

    def __init__(self, c: int, p: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(c), Attention(c)
        self.norm2, self.mlp, self.ls = nn.LayerNorm(c), Mlp(c, p), LayerScale(c)
        self.drop_path = DropPath(p)

    def forward(self, x: Tensor, mask: Tensor | None = None, unused: int = 3) -> Tensor:
        x = x + self.attn(self.norm1(x), mask=mask)
        return x + self.drop_path(self.ls(self.mlp(self.norm2(x))))


class MlpBlock(nn.Module):
    """Channels last, for tokens or for (N, H, W, C)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(c), Mlp(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class NhwcConv(nn.Module):
    """(N, H, W, C) outside, convolutions and BatchNorms within."""

    def __init__(self, c: int, k: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn = conv(c, c, k, groups=groups), nn.BatchNorm2d(c)
        self.conv2 = conv(c, c, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x.permute(dims=(0, 3, 1, 2)))
        return x + self.conv2(F.silu(self.bn(y))).permute(0, 2, 3, 1)


class ToLast(nn.Module):
    """No skip; takes channels first and gives channels last, and the other way round."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.act, self.fc = conv(c, c + 1), nn.GELU(), nn.Linear(c + 1, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).permute(0, 2, 3, 1))


class ToLastAndBack(nn.Sequential):
    """Holds one `ToLast`; no chain by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 3, 1, 2).roll(1, 3)


class Scaled(nn.Module):
    """Constant and learnt factors on the branch."""

    def __init__(self, c: int, learnt: bool) -> None:
        super().__init__()
        self.conv1, self.act, self.conv2 = conv(c, c, bias=True), nn.Tanh(), conv(c, c)
        self.factor = nn.Parameter(torch.tensor([0.7])) if learnt else 0.7

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.conv2(self.act(self.conv1(x * 0.3)))


class Parallel(nn.Module):
    """Three paths from one tensor."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a1, self.a2, self.b1, self.b2 = (conv(c, c, bias=True) for _ in range(4))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a2(self.act(self.a1(x))) + self.b2(self.act(self.b1(x)))


class RepVgg(nn.Module):
    """Parallel paths that are linear; the identity among them where the block does not stride."""

    def __init__(self, c: int, s: int = 1) -> None:
        super().__init__()
        self.three, self.norm3 = conv(c, c, 3, s), nn.BatchNorm2d(c)
        self.one, self.norm1 = conv(c, c, 1, s, groups=2), nn.BatchNorm2d(c)
        self.norm0, self.act = nn.BatchNorm2d(c) if s == 1 else None, nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm3(self.three(x))
        if self.norm0 is not None:
            y = y - 0.5 * self.norm0(x)
        return self.act(y + self.norm1(self.one(x)))


class RepTokens(nn.Module):
    """A linear layer and the identity."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc, self.ls = nn.Linear(c, c), LayerScale(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ls(self.fc(x))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Excited(nn.Module):
    """A gate between its operators, and a norm of its own making."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.se, self.conv2 = conv(c, 6), SqueezeExcite(6), conv(6, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(F.silu(self.conv1(x)))
        y = y / y.square().mean(1, keepdim=True).add(1e-3).sqrt()
        return x + self.conv2(y)


class Standardised(nn.Conv2d):
    """Weight standardisation, and uneven padding in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-3)
        x = F.pad(x, (0, 2, 1, 1))
        return F.conv2d(x, w, self.bias, self.stride, 0, self.dilation, self.groups)


class Shuffled(nn.Module):
    """ShuffleNet's: channels of grouped convolutions in another order, by a layer and by hand."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first = nn.ChannelShuffle(2)
        self.conv1, self.bn1 = conv(c, 8, 1, groups=2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(8, 8, groups=8), nn.BatchNorm2d(8)
        self.conv3 = conv(8, c, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(self.first(x))))
        n, c, h, w = y.shape
        y = y.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return x + self.conv3(self.bn2(self.conv2(y)))


class RMSNorm(nn.Module):
    """Llama's."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class Gated(nn.Module):
    """Llama's feed-forward: a linear layer gates another."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = RMSNorm(c)
        self.gate, self.up, self.down = nn.Linear(c, 6), nn.Linear(c, 6), nn.Linear(6, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class WaveNet(nn.Module):
    """A dilated convolution whose halves gate one another."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.both, self.out = nn.Conv1d(c, 12, 2, dilation=3), nn.Conv1d(6, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(F.pad(x, (3, 0))).chunk(2, 1)
        return x + self.out(a.tanh() * b.sigmoid())


class Concatenated(nn.Module):
    """Paths side by side, joined by another operator; channels last outside."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(c, 3, 3, bias=True), conv(c, 3, 1), nn.Linear(6, c)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)
        y = torch.cat([F.relu(self.a(y)), self.b(y)], 1).permute(0, 2, 3, 1)
        return x + self.c(y)


class GatedMap(nn.Module):
    """Halves of one convolution, beside a shortcut, and an activation at the end."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.both, self.down = nn.Conv2d(c, 12, 1), nn.Conv2d(6, c, 1)
        self.shortcut = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.down(F.glu(self.both(x), 1)))


class Windows(nn.Module):
    """Swin's: attention within windows of (N, H, W, C), which stand in another order."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(c), Attention(c)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        y = self.norm(x).roll((1, 2), (1, 2)).view(n, 3, h // 3, w, c).transpose(2, 3)
        y = self.attn(y.reshape(n * 3, -1, c)).view(n, 3, w, h // 3, c)
        return x + y.transpose(2, 3).reshape(n, h, w, c).roll((-1, -2), (1, 2))


class Plain(nn.Module):
    """No skip, ends in its activation."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2 = conv(c, 5, padding=0), nn.BatchNorm2d(5), conv(5, o)
        self.bn2 = nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.bn2(self.conv2(F.hardswish(self.bn1(self.conv1(x))))))


class Causal(nn.Module):
    """WaveNet's, on sequences: a dilated convolution that reads the past only."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv1d(c, 6, 3, dilation=2), nn.BatchNorm1d(6)
        self.conv2, self.norm = nn.Conv1d(6, c, 1), nn.GroupNorm(2, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.pad(x, (4, 0)))
        return x + self.norm(self.conv2(F.relu(self.bn(y))))


class Factorised(nn.Module):
    """R(2+1)D's, on volumes; the padding is TensorFlow's, which depends on sizes."""

    def __init__(self, c: int, s: int = 1) -> None:
        super().__init__()
        self.space, self.bn1 = nn.Conv3d(c, 5, (1, 3, 2), (1, 1, s), bias=False), nn.BatchNorm3d(5)
        self.time, self.bn2 = nn.Conv3d(5, c, (3, 1, 1), padding="same"), nn.BatchNorm3d(c)
        self.down = nn.Sequential(nn.Conv3d(c, c, 1, (1, 1, s)), nn.BatchNorm3d(c))

    def forward(self, x: Tensor) -> Tensor:
        width, stride = x.shape[-1], self.space.stride[2]
        total = max((-(-width // stride) - 1) * stride + 2 - width, 0)
        y = F.pad(x, (total // 2, total - total // 2, 1, 1))
        y = self.bn2(self.time(F.relu(self.bn1(self.space(y)))))
        return F.relu(y + self.down(x))


class Net(nn.Module):
    """Two blocks between a stem and a classifier; `form` is what the blocks see."""

    def __init__(self, blocks: list[nn.Module], form: str = "image") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.blocks, self.form = nn.Sequential(*blocks), form
        self.head = nn.Linear(CHANNELS, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.form == "tokens":
            x = x.flatten(2).transpose(1, 2)
        elif self.form == "nhwc":
            x = x.permute(0, 2, 3, 1).contiguous()
        elif self.form == "sequence":
            x = x.flatten(2)
        elif self.form == "volume":
            x = x.unflatten(2, (3, 3))
        x = self.blocks(x)
        if self.form == "tokens":
            return x.transpose(1, 2)
        return x.permute(0, 3, 1, 2) if self.form == "nhwc" else x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(2).mean(2))


@dataclass(frozen=True)
class Family:
    """How to make a block of C channels, and which chains `find` is to see in the two."""

    make: Callable[[], nn.Module]
    form: str = "image"
    sites: tuple[str, ...] = ("blocks.0", "blocks.1")
    skip: str | None = "identity"  # identity | chain | opaque | None: there is none
    post: bool = False


def _basic(
    k1: int | tuple[int, int] = 3, k2: int | tuple[int, int] = 3, **kw: object
) -> Callable[[], Basic]:
    return lambda: Basic(conv(C, 6, k1), conv(6, C, k2), **kw)


C = CHANNELS
FAMILIES = {
    "basic": Family(_basic(), post=True),
    "basic_bias": Family(
        lambda: Basic(conv(C, 6, bias=True), conv(6, C, bias=True), nn.SiLU), post=True
    ),
    "basic_asymmetric": Family(_basic((3, 5), (5, 1)), post=True),
    "basic_same": Family(
        lambda: Basic(
            conv(C, 6, (2, 4), padding="same"), conv(6, C, 3, padding="same", bias=True), nn.GELU
        ),
        post=True,
    ),
    "basic_dilated": Family(
        lambda: Basic(
            conv(C, 6, padding=2, dilation=2), conv(6, C, padding=(2, 1), dilation=(2, 1))
        ),
        post=True,
    ),
    "basic_groups": Family(
        lambda: Basic(conv(C, 8, groups=4), conv(8, C, groups=2), nn.Hardswish), post=True
    ),
    "basic_groupnorm": Family(_basic(norm=lambda c: nn.GroupNorm(2, c)), post=True),
    "basic_wrapped": Family(_basic(norm=lambda c: nn.Sequential(nn.BatchNorm2d(c))), post=True),
    "basic_permuted": Family(_basic(norm=LayerNorm2d), post=True),
    "basic_prelu": Family(
        lambda: Basic(conv(C, C), conv(C, C), lambda: nn.PReLU(C, init=0.1)), post=True
    ),
    "strided": Family(
        lambda: Basic(
            conv(C, 6, 3, 2),
            conv(6, C),
            shortcut=nn.Sequential(conv(C, C, 1, 2), nn.BatchNorm2d(C)),
        ),
        skip="chain",
        post=True,
    ),
    "strided_twice": Family(
        lambda: Basic(
            conv(C, 6, 3, 2, bias=True),
            conv(6, C, 3, 2),
            shortcut=nn.Sequential(conv(C, C, 1, 4), nn.BatchNorm2d(C)),
        ),
        skip="chain",
        post=True,
    ),
    "strided_padded": Family(  # a shift before zeros: not one operator at the border
        lambda: Basic(
            conv(C, 6, 3, 2),
            conv(6, C),
            shortcut=nn.Sequential(nn.BatchNorm2d(C), conv(C, C, 3, 2)),
        ),
        skip="chain",
        post=True,
    ),
    "strided_pooled": Family(
        lambda: Basic(
            conv(C, 6, 3, 2),
            conv(6, C),
            shortcut=nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), conv(C, C, 1)),
        ),
        skip="opaque",
        post=True,
    ),
    "strided_sliced": Family(
        lambda: SlicedShortcut(conv(C, 6, 3, 2), conv(6, C)),
        skip="opaque",
        post=True,
    ),
    "functional": Family(lambda: Functional(conv(C, 6), conv(6, C)), post=True),
    "in_place": Family(lambda: InPlace(conv(C, 6), conv(6, C)), post=True),
    "pre_activation": Family(lambda: PreActivation(C)),
    "pre_activation_in_place": Family(lambda: PreActivation(C, inplace=True)),
    "bottleneck": Family(lambda: Bottleneck(C), post=True),
    "bottleneck_strided": Family(
        lambda: Bottleneck(C, 2, nn.Sequential(conv(C, C, 1, 2), nn.BatchNorm2d(C))),
        skip="chain",
        post=True,
    ),
    "inverted": Family(lambda: InvertedResidual(C, C)),
    "inverted_plain": Family(lambda: InvertedResidual(C, C, skip=False), skip=None),
    "inverted_strided": Family(lambda: InvertedResidual(C, C, s=2, skip=False), skip=None),
    "plain": Family(lambda: Plain(C, C), skip=None, post=True),
    "convnext": Family(lambda: ConvNeXt(C)),
    "vit": Family(lambda: ViT(C), "tokens", ("blocks.0:mlp", "blocks.1:mlp")),
    "mlp_tokens": Family(lambda: MlpBlock(C), "tokens"),
    "mlp_nhwc": Family(lambda: MlpBlock(C), "nhwc"),
    "nhwc_pointwise": Family(lambda: NhwcConv(C, 1), "nhwc"),
    "nhwc_grouped": Family(lambda: NhwcConv(C, 1, groups=2), "nhwc"),
    "nhwc_spatial": Family(lambda: NhwcConv(C, 3), "nhwc"),
    "to_last": Family(
        lambda: ToLastAndBack(ToLast(C)), sites=("blocks.0.0", "blocks.1.0"), skip=None
    ),
    "scaled": Family(lambda: Scaled(C, learnt=False)),
    "scaled_learnt": Family(lambda: Scaled(C, learnt=True)),
    "excited": Family(lambda: Excited(C)),
    "standardised": Family(
        lambda: Basic(Standardised(C, 6, 3), Standardised(6, C, 3, groups=2)), post=True
    ),
    "repvgg": Family(lambda: RepVgg(C), sites=(), post=True),
    "repvgg_strided": Family(lambda: RepVgg(C, 2), sites=(), post=True),
    "repvgg_tokens": Family(lambda: RepTokens(C), "tokens", sites=()),
    "shuffled": Family(lambda: Shuffled(C)),
    "gated": Family(lambda: Gated(C), "tokens", sites=()),
    "wavenet": Family(lambda: WaveNet(C), "sequence", sites=()),
    "concatenated": Family(lambda: Concatenated(C), "nhwc", sites=()),
    "gated_map": Family(lambda: GatedMap(C), sites=(), skip="chain", post=True),
    "windows": Family(lambda: Windows(C), "nhwc", sites=()),
    "causal": Family(lambda: Causal(C), "sequence"),
    "factorised": Family(lambda: Factorised(C), "volume", skip="chain", post=True),
    "factorised_strided": Family(lambda: Factorised(C, 2), "volume", skip="chain", post=True),
    "drop_path": Family(lambda: ConvNeXt(C, 0.5)),
    "dropout": Family(lambda: ViT(C, 0.5), "tokens", ("blocks.0:mlp", "blocks.1:mlp")),
}
RANDOM = ("drop_path", "dropout")  # two runs differ in training


def network(name: str, seed: int = 0) -> Net:
    """The family's classifier with random weights and statistics, in evaluation."""
    family = FAMILIES[name]
    torch.manual_seed(seed)
    return randomise(Net([family.make(), family.make()], family.form)).eval()


def randomise(module: M) -> M:
    """Random statistics and affine parameters for every norm in it."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, norms) and norm.weight is not None:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
            if isinstance(norm, norms[0]):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
    return module


def left(block: nn.Module) -> dict[str, nn.Module]:
    """Children of a merged block for which no `nn.Identity` stands."""
    return {n: m for n, m in block.named_children() if not _is_stand_in(m)}


def _is_stand_in(module: nn.Module) -> bool:
    """An identity, or a container of such: what stands for a child that does not run any more."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return all(map(_is_stand_in, module))
    return isinstance(module, nn.Identity)


def images(count: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, HEIGHT, WIDTH, generator=generator)


def double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-300)).item()


def ring(y: Tensor) -> Tensor:
    """The border pixels of (N, C, H, W); tokens (N, C, L) as they are."""
    if y.ndim == 3:
        return y
    mask = torch.ones(y.shape[-2:], dtype=torch.bool)
    mask[1:-1, 1:-1] = False
    return y[..., mask]
