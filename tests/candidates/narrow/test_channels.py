"""InnerChannels channels: where they are, and cutting them out of the modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.families import error, randomise
from updp.blocks import Chain, find
from updp.candidates.narrow.channels import inner_channels, on_modules
from updp.candidates.narrow.slicing import can_cut_gate, cut_gate


class Branch(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def conv(i: int, o: int, k: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, groups=groups)


def chain_of(*layers: nn.Module) -> tuple[Chain, nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(Branch(*layers))
    randomise(model)
    model, x = model.double().eval(), torch.randn(2, 6, 7, 9).double()
    (site,) = find(model.float(), x.float()).sites
    model.double()
    return site.chain, model[0], x


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (lambda: (conv(6, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), conv(20, 6, 3)), [20]),
        (lambda: (conv(6, 20), nn.ReLU6(), conv(20, 20, 3, 20), conv(20, 6)), [20]),
        (lambda: (conv(6, 5), nn.PReLU(5), conv(5, 7, 3), nn.GELU(), conv(7, 6)), [5, 7]),
        (lambda: (conv(6, 20), nn.PReLU(), conv(20, 6)), [20]),
        (lambda: (conv(6, 20), nn.GroupNorm(4, 20), nn.ReLU(), conv(20, 6)), [20]),
        (lambda: (conv(6, 20), nn.GroupNorm(1, 20), nn.ReLU(), conv(20, 6)), [20]),
        (lambda: (conv(6, 20), nn.ReLU(), conv(20, 20, 3, 10), nn.ReLU(), conv(20, 6)), [20]),
        (lambda: (conv(6, 20), nn.ReLU(), conv(20, 40, 3, 10), nn.ReLU(), conv(40, 6)), []),
        (lambda: (conv(6, 12, 3, 2), nn.ReLU(), conv(12, 6)), []),
        (lambda: (conv(6, 12), nn.ReLU(), conv(12, 24, 3, 12), nn.ReLU(), conv(24, 6)), []),
        (lambda: (parametrizations.weight_norm(conv(6, 20)), nn.ReLU(), conv(20, 6)), []),
    ],
)
def test_inner_channels_lie_between_operators_that_can_be_cut(
    layers: Callable[[], tuple[nn.Module, ...]], expected: list[int]
) -> None:
    chain, _, _ = chain_of(*layers())
    found = inner_channels(chain)
    assert [inner.count(chain) for inner in found] == expected


@pytest.mark.parametrize(
    ("count", "share", "left"),
    [(64, 0.5, 32), (64, 0.25, 16), (20, 0.5, 8), (20, 0.1, 8), (10, 0.5, 5), (3, 0.1, 1)],
)
def test_many_channels_become_a_multiple_of_eight(count: int, share: float, left: int) -> None:
    chain, _, _ = chain_of(conv(6, count), nn.ReLU(), conv(count, 6))
    (inner,) = inner_channels(chain)
    assert inner.left(chain, share) == left


def narrowed_by_groups(
    chain: Chain, block: nn.Module, share: float, left: int, size: int
) -> tuple[nn.Module, nn.Module]:
    """The block whose weights hide all but whole groups of channels, and the one without these."""
    (inner,) = inner_channels(chain)
    assert inner.left(chain, share) == left
    channels = inner.largest(chain, left)
    assert channels.view(-1, size).remainder(size).tolist() == [[*range(size)]] * (left // size)
    expected, narrow = copy.deepcopy(block), copy.deepcopy(block)
    inner.hide(on_modules(chain, {"branch": expected.branch}), channels)
    inner.cut(on_modules(chain, {"branch": narrow.branch}), channels)
    return expected, narrow


@pytest.mark.parametrize(
    ("count", "groups", "share", "left"),
    [(128, 32, 0.5, 64), (128, 32, 0.6, 80), (20, 4, 0.5, 10), (20, 4, 0.1, 5), (96, 8, 0.3, 24)],
)
def test_groups_of_a_norm_stay_whole(count: int, groups: int, share: float, left: int) -> None:
    chain, block, x = chain_of(conv(6, count), nn.GroupNorm(groups, count), conv(count, 6, 3))
    expected, narrow = narrowed_by_groups(chain, block, share, left, count // groups)
    norm, size = narrow.branch[1], count // groups
    assert (norm.num_groups, norm.num_channels) == (left // size, left)
    assert error(narrow(x), expected(x)) < 1e-12


@pytest.mark.parametrize(
    ("count", "groups", "share", "left"),
    [(128, 32, 0.5, 64), (96, 4, 0.5, 48), (20, 4, 0.1, 5), (24, 12, 0.5, 16), (6, 3, 0.5, 4)],
)
def test_groups_of_a_convolution_stay_whole(
    count: int, groups: int, share: float, left: int
) -> None:
    grouped = conv(count, count, 3, groups)
    norm = nn.BatchNorm2d(count)
    chain, block, x = chain_of(conv(6, count), norm, nn.ReLU(), grouped, conv(count, 6))
    expected, narrow = narrowed_by_groups(chain, block, share, left, count // groups)
    cut, size = narrow.branch[3], count // groups
    assert (cut.groups, cut.in_channels, cut.out_channels) == (left // size, left, left)
    assert error(narrow(x), expected(x)) < 1e-12


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (conv(6, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), conv(9, 6, 3)),
        lambda: (conv(6, 9), nn.PReLU(9), conv(9, 9, 3, 9), nn.BatchNorm2d(9), conv(9, 6)),
        lambda: (conv(6, 9), nn.BatchNorm2d(9, affine=False), nn.PReLU(), conv(9, 6)),
    ],
)
def test_cut_channels_count_as_if_their_weights_were_zero(
    layers: Callable[[], tuple[nn.Module, ...]],
) -> None:
    """As if the consumer's weights for all other channels were zero."""
    chain, block, x = chain_of(*layers())
    (inner,) = inner_channels(chain)
    wide, channels = copy.deepcopy(block), torch.tensor([1, 2, 5, 8])
    consumer = wide.branch[inner.consumer]
    with torch.no_grad():
        consumer.weight[:, [c for c in range(9) if c not in channels]] = 0
    expected = wide(x)
    narrow = copy.deepcopy(block)
    cut = on_modules(chain, {"branch": narrow.branch})
    inner.cut(cut, channels)
    assert error(narrow(x), expected) < 1e-12
    assert block.branch[0].weight.shape[0] == 9  # the block's own are as they were
    for module in narrow.branch:  # what they say of themselves is true
        if isinstance(module, nn.Conv2d):
            own = (module.out_channels, module.in_channels // module.groups)
            assert module.weight.shape[:2] == own
        assert getattr(module, "num_features", 4) == 4
        assert getattr(module, "num_parameters", 4) in (1, 4)


class Context(nn.Module):
    """A gate with norms on few channels inside."""

    def __init__(self, channels: int, norm: nn.Module) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(channels, 3, 1), norm
        self.expand = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x.mean((2, 3), keepdim=True)).movedim(1, -1)
        y = (
            self.norm(y).movedim(-1, 1)
            if isinstance(self.norm, nn.LayerNorm)
            else self.norm(y.movedim(-1, 1))
        )
        return x * torch.sigmoid(self.expand(torch.relu(y)))


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(3), lambda: nn.BatchNorm2d(3)])
def test_a_gate_is_cut_inside_where_it_is_as_wide(norm: Callable[[], nn.Module]) -> None:
    """With what it sees of other channels at zero, it does to the rest what it did."""
    gate = randomise(Context(12, norm())).double().eval()
    assert can_cut_gate(gate, 12, "first")
    cut, channels = copy.deepcopy(gate), torch.tensor([0, 3, 4, 7, 11])
    cut_gate(cut, channels, 12)
    assert (cut.reduce.in_channels, cut.expand.out_channels) == (5, 5)
    assert "(3" in repr(cut.norm)
    few = torch.zeros(2, 12, 7, 9).double()
    few[:, channels] = torch.randn(2, 5, 7, 9).double()
    with torch.no_grad():
        assert error(cut(few[:, channels]), gate(few)[:, channels]) < 1e-12


@pytest.mark.parametrize(
    ("gate", "layout", "can"),
    [
        (nn.GroupNorm(2, 12), "first", False),  # other groups
        (nn.Conv2d(12, 12, 1, groups=3), "first", False),  # likewise
        (nn.Conv2d(12, 12, 3, padding=1, groups=12), "first", True),
        (nn.LayerNorm(12), "last", True),
        (nn.LayerNorm((12, 7)), "first", False),
        (nn.Identity(), "first", True),
        (torch.relu, "first", False),
    ],
)
def test_which_gates_can_be_cut(gate: nn.Module, layout: str, can: bool) -> None:
    assert can_cut_gate(gate, 12, layout) == can


def test_the_largest_channels_have_the_largest_weights() -> None:
    chain, block, _ = chain_of(conv(6, 5, 3), nn.ReLU(), conv(5, 6))
    (inner,) = inner_channels(chain)
    with torch.no_grad():
        block.branch[0].weight[[0, 3]] *= 1e-3
        block.branch[2].weight[:, 1] *= 1e-3
    assert inner.largest(chain, 2).tolist() == [2, 4]
