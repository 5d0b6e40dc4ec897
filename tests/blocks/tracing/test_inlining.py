from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tests.road import supernet

D = 16


class Attention(nn.Module):
    """Leaves it to its caller to add the bias, as Megatron's does for one fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.dense = nn.Linear(D, 3 * D), nn.Linear(D, D, bias=False)
        self.bias = nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = (q * (c // 2) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.dense(y.transpose(1, 2).reshape(n, t, c)), self.bias


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(D), Attention()

    def forward(self, x: Tensor) -> Tensor:
        y, bias = self.attn(self.norm(x))
        return x + (y + bias)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Conv2d(3, D, 4, 4), nn.Sequential(Layer(), Layer())
        self.head = nn.Linear(D, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def test_an_attention_that_returns_its_bias_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 3, 16, 16)
    findings, net = supernet(model, x)
    name = findings.sites[0].name
    smaller = next(label for label in net.switches[name].labels if "attention" in label)
    net.choose({name: smaller})
    merged = net.merged()
    merged(x).sum().backward()
    assert [name for name, p in merged.named_parameters() if p.grad is None] == []
    layer = merged.layers[0]
    assert {name for name, _ in layer.attn.named_parameters()} == {"bias"}
    assert isinstance(layer.attn, Attention)
    other = copy.deepcopy(merged)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(merged.state_dict())
    assert torch.equal(other(x), merged(x))
