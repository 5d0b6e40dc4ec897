from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.measure import fingerprint

IMAGE = torch.randn(2, 4, 6, 6)


class Heads(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class Serial(Parallel):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + x


def chain(activation: nn.Module, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, stride, 1), activation).eval()


def test_fingerprints_ignore_names_weights_and_objects() -> None:
    named = OrderedDict(conv=nn.Conv2d(4, 4, 3, 1, 1), act=nn.ReLU())
    first = fingerprint(chain(nn.ReLU()), IMAGE)
    assert first == fingerprint(nn.Sequential(named).eval(), torch.zeros(2, 4, 6, 6))
    assert len(first) == 64


def test_fingerprints_differ_by_all_that_decides_latency() -> None:
    tokens = torch.randn(2, 5, 12)
    last = IMAGE.contiguous(memory_format=torch.channels_last)
    found = [
        fingerprint(chain(nn.ReLU()), IMAGE),
        fingerprint(chain(nn.ReLU()), IMAGE[:1]),
        fingerprint(chain(nn.ReLU()), last),
        fingerprint(chain(nn.ReLU()).double(), IMAGE.double()),
        fingerprint(chain(nn.ReLU(inplace=True)), IMAGE),
        fingerprint(chain(nn.SiLU()), IMAGE),
        fingerprint(chain(nn.GELU()), IMAGE),
        fingerprint(chain(nn.GELU("tanh")), IMAGE),
        fingerprint(chain(nn.ReLU(), 2), IMAGE),
        fingerprint(Heads(3).eval(), tokens),
        fingerprint(Heads(4).eval(), tokens),
        fingerprint(Parallel().eval(), IMAGE),
        fingerprint(Serial().eval(), IMAGE),
    ]
    assert len(set(found)) == len(found)
