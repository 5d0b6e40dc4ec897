from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.blocks.test_rewrite_check import Reader
from tests.families import Basic, C, conv
from updp.blocks import find, try_other_size


class Half(Basic):
    """Sizes decide what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(x + (y * 0.5 if x.shape[2] > 16 else y))


class Warm(Basic):
    """A factor from the number of pixels, as some attention has."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / math.log(int(x[0, 0].numel()))


class Fixed(nn.Module):
    """Takes one size alone, as position embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(C, 16, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


@pytest.mark.parametrize(
    ("block", "taken", "frozen"),
    [
        (Basic(conv(C, 6), conv(6, C)), True, ()),
        (Half(conv(C, 6), conv(6, C)), True, ("blocks.2",)),
        (Warm(conv(C, 6), conv(6, C)), True, ("blocks.2",)),
        (Fixed(), False, ()),
    ],
)
def test_another_image_size_is_tried(
    block: nn.Module, taken: bool, frozen: tuple[str, ...]
) -> None:
    net = Reader().eval()
    net.blocks[2] = block.eval()
    x = torch.randn(2, 3, 16, 12)
    found = try_other_size(net, find(net, x), x[:1])
    assert (found.size, found.taken, found.frozen) == ((32, 24), taken, frozen)
    says = found.describe((3, 16, 12))
    assert says.startswith("images of 16x12 alone: at 32x24, which") == bool(frozen)
    assert ("blocks.2" in says) == bool(frozen)
    assert "forward" not in vars(net.blocks[0])


class Noting(Basic):
    """Keeps a size that the rest of the model reads."""

    size: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.size = tuple(x.shape[2:])
        return super().forward(x)


class PixelMean(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / math.prod(self.blocks[2].size)  # type: ignore[arg-type]


class Cached(Basic):
    """Positions made anew for each new size."""

    def __init__(self) -> None:
        super().__init__(conv(C, 6), conv(6, C))
        self.register_buffer("position", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.position is None or self.position.shape != x.shape[2:]:
            self.position = torch.linspace(0, 1, x[0, 0].numel()).view(x.shape[2:])
        return super().forward(x + self.position)


def test_what_a_forward_keeps_of_a_size_is_found() -> None:
    net = PixelMean().eval()
    net.blocks[2] = Noting(conv(C, 6), conv(6, C)).eval()
    x = torch.randn(2, 3, 16, 12)
    found = try_other_size(net, find(net, x), x[:1])
    assert found.frozen == ("blocks.2",)


def test_what_a_forward_keeps_of_another_size_is_not_left_there() -> None:
    net = Reader().eval()
    net.blocks[2] = Cached().eval()
    x = torch.randn(2, 3, 16, 12)
    with torch.no_grad():
        net(x)
    before = net.blocks[2].position
    found = try_other_size(net, find(net, x), x[:1])
    assert found.frozen == ("blocks.2",)
    assert net.blocks[2].position is before
