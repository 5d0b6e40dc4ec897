"""Small networks for every format, each with a trap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.road import supernet


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    any_size: bool


class Residual(nn.Module):
    """BatchNorms, an uneven size, in-place activations, dropout; global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.pad = nn.ZeroPad2d((1, 0, 2, 0))
        self.conv = nn.Conv2d(4, 4, (3, 2), groups=2, dilation=(1, 1))
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.dropout = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.pool(F.hardswish(x + self.conv(self.pad(x))))
        return self.head(self.dropout(x.mean((2, 3))))


class Flat(nn.Module):
    """Its classifier fixes the size; a shared weight, a buffer that is not saved, `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 3, 3, padding="same")
        self.two = nn.Conv2d(3, 3, 1)
        self.three = nn.Conv2d(3, 3, 1, bias=False)
        self.three.weight = self.two.weight
        self.register_buffer("scale", torch.rand(3, 1, 1) + 0.5, persistent=False)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.head = nn.Linear(3 * 7 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.three(self.two(self.one(x)).relu() * self.scale)[:, self.order]
        return self.head(x.contiguous().view(n, -1))


def vit() -> nn.Module:
    """One block with smaller attention, as pruning leaves it, and one with timm's own."""
    torch.manual_seed(0)
    whole = VisionTransformer(
        img_size=8,
        patch_size=4,
        in_chans=1,
        num_classes=6,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
    )
    nn.init.normal_(whole.blocks[0].attn.qkv.weight)
    _, net = supernet(whole, torch.randn(2, 1, 8, 8))
    net.choose({"blocks.0:attn": "attention q,k 4/8"})
    return net.merged()


CASES = {
    "residual": Case(Residual, (3, 9, 7), any_size=True),
    "flat": Case(Flat, (1, 7, 5), any_size=False),
    "vit": Case(vit, (1, 8, 8), any_size=False),
}


def make(case: Case) -> nn.Module:
    """The network in evaluation mode; no weight and no statistic is 0, 1 or shared by chance."""
    torch.manual_seed(0)
    model = case.build()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor) + 0.1 * (tensor.ndim == 1))
            assert "var" not in name or tensor.min() > 0
    return model.eval()
