"""What a model computes from constants is no site, and keeps no branch from being one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.families import C, Mlp
from updp.blocks import find
from updp.blocks.traced_model import TracedModel


class Attention(nn.Module):
    """Attention whose bias an MLP computes from a table of positions, as in Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.bias = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
        self.register_buffer("table", torch.rand(7, 7, 2))

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-2, -1) + self.bias(self.table if table is None else table)[..., 0]
        return self.proj(scores.softmax(-1) @ v)


class InBlock(Attention):
    """Runs the attention in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        return x + self.norm(super().forward(x, table))


class InChild(nn.Module):
    """Runs it as a child, which may be given its table."""

    def __init__(self, given: bool = False) -> None:
        super().__init__()
        self.attention, self.norm, self.given = Attention(), nn.LayerNorm(C), given

    def forward(self, x: Tensor) -> Tensor:
        table = self.attention.table if self.given else None
        return x + self.norm(self.attention(x, table))


class OfSizes(nn.Module):
    """A table that is made from the size of the input, and an MLP of it that a branch adds."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.mlp = nn.Linear(C, C), nn.Sequential(nn.Linear(1, 16), nn.Linear(16, C))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        return x + self.proj(x).softmax(1) * self.mlp(places)


@pytest.mark.parametrize("kind", [InBlock, InChild, lambda: InChild(True), OfSizes])
def test_an_mlp_on_constants_is_no_site(kind: type[nn.Module]) -> None:
    found = find(nn.Sequential(kind(), kind()).eval(), torch.randn(2, 7, C))
    assert [(s.block, s.branch) for s in found.sites] == [("0", None), ("1", None)]
    assert not found.unusable


class Inner(nn.Module):
    """A residual MLP in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(C)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class Shared(nn.Module):
    """It wraps a residual MLP."""

    def __init__(self, residual: nn.Module) -> None:
        super().__init__()
        self.residual, self.norm = residual, nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.residual(x))


class OnTable(nn.Module):
    """Gives a table to what it shares with another."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.register_buffer("table", torch.rand(7, C))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.shared(self.table).softmax(-1)


class OnData(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x).tanh()


@pytest.mark.parametrize("make", [Inner, lambda: Shared(Shared(Inner()))])
@pytest.mark.parametrize("kinds", [(OnTable, OnData), (OnData, OnTable), (OnTable, OnTable)])
def test_what_one_caller_gives_data_has_data(
    make: Callable[[], nn.Module], kinds: tuple[type[nn.Module], ...]
) -> None:
    shared = make()
    model = nn.Sequential(*(kind(shared) for kind in kinds)).eval()
    traced = TracedModel(model, torch.randn(2, 7, C))
    (name,) = (n for n, m in traced.modules.items() if isinstance(m, Inner))
    assert bool(traced.residual_adds(name)) == (OnData in kinds)


class Hidden(nn.Module):
    """Cannot be traced, and calls on data what its first child calls on constants."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.table, self.shared = OnTable(shared), shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x if x.sum() > 1e9 else self.table(x))


class Beside(nn.Module):
    """Holds what a child that cannot be traced calls, too."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.table, self.hidden = OnTable(shared), Hidden(shared)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.table(x))


@pytest.mark.parametrize("kind", [Hidden, Beside])
def test_what_a_caller_without_a_graph_may_give_data_has_data(kind: type[nn.Module]) -> None:
    traced = TracedModel(kind(Inner()).eval(), torch.randn(2, 7, C))
    assert len(traced.untraceable) == 1
    (name,) = (n for n, m in traced.modules.items() if isinstance(m, Inner))
    assert traced.residual_adds(name)
