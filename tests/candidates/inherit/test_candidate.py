from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.families import C, Net, conv, images, network
from tests.road import supernet
from updp.blocks import Site, find
from updp.blocks.values import difference
from updp.candidates import Inherit, baseline_macs, inherit_cuts
from updp.recipe import CandidateSettings


def site(model: nn.Module) -> Site:
    first, *_ = (s for s in find(model, images()).sites if s.branch is not None)
    return first


def labels(family: str) -> list[str]:
    return [c.label for c in inherit_cuts(site(network(family)))]


def test_a_basic_block_may_shrink_either_kernel_or_both() -> None:
    assert labels("basic") == [
        "conv1+conv2",
        "conv1+conv2(1x1)",  # the later one first, for both merge to the same size
        "conv1(1x1)+conv2",
        "conv1(1x1)+conv2(1x1)",
    ]


def test_a_convolution_that_strides_keeps_its_kernel() -> None:
    assert labels("strided") == ["conv1+conv2", "conv1+conv2(1x1)"]
    assert labels("strided_twice") == ["conv1+conv2"]


def test_a_kernel_is_shrunk_only_where_it_is_merged() -> None:
    found = labels("inverted")
    assert "conv.0.0 | conv.1.0+conv.2" in found
    assert "conv.0.0+conv.1.0 | conv.2" in found
    assert "conv.0.0 | conv.1.0(1x1)+conv.2" in found
    assert "conv.0.0 | conv.1.0 | conv.2" not in found  # nothing merges
    assert not any("conv.0.0(1x1)" in label or "conv.2(1x1)" in label for label in found)


@pytest.mark.parametrize(
    "family", ["basic_same", "plain"], ids=["even kernel", "first without padding"]
)
def test_a_kernel_is_not_shrunk_where_that_moves_or_resizes_the_map(family: str) -> None:
    assert labels(family) == ["conv1+conv2", "conv1+conv2(1x1)"]


@pytest.mark.parametrize("family", ["basic", "bottleneck", "inverted", "convnext"])
def test_candidates_come_least_shrunk_first_then_smallest(family: str) -> None:
    where = site(network(family))
    keys = [(len(c.shrunk), c.macs(where)) for c in inherit_cuts(where)]
    assert all(a <= b for a, b in pairwise(keys))


def test_options_reach_every_candidate() -> None:
    found = list(inherit_cuts(site(network("convnext")), end_activation=False, linearise=True))
    assert found
    assert not any(c.end_activation for c in found)
    assert all(c.linearise for c in found)


class Linear(nn.Module):
    """Linear already: two operators in a row."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.a, self.b = (conv(C, C, kernel, bias=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


def test_a_branch_that_is_linear_already_merges_without_loss() -> None:
    model, x = Net([Linear(1), Linear(1)]).eval(), images(5)
    findings, net = supernet(model, x)
    assert [s.name for s in findings.sites if "a+b" in net.switches[s.name].labels] == [
        *net.switches
    ]
    net.choose(dict.fromkeys(net.switches, "a+b"))
    with torch.no_grad():
        assert difference(net.merged()(x), model(x)) < 1e-6


def test_a_branch_that_is_linear_already_merges_only_to_fewer_macs() -> None:
    model = Net([Linear(3), Linear(3)])
    findings = find(model, images())
    traced = findings.traced(findings.sites[0], model)
    found = Inherit.propose(traced, CandidateSettings())
    assert "a+b" not in [c.label for c in found]


@pytest.mark.parametrize(
    "family",
    [
        "basic",
        "basic_dilated",
        "basic_groups",
        "basic_asymmetric",
        "plain",
        "bottleneck",
        "inverted",
        "inverted_strided",
        "strided_pooled",
        "convnext",
        "vit",
        "mlp_nhwc",
    ],
)
def test_baseline_macs_are_what_torch_counts(family: str) -> None:
    """Of the branch; identity and pooling cost nothing, the pooled skip's convolution is apart."""
    model = network(family)
    findings = find(model, images())
    for s in [s for s in findings.sites if s.branch is not None]:
        branch = findings.traced(s, model).until(s.region.branch[-1])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            branch(torch.randn(1, *s.shape_in[1:]))
        assert baseline_macs(s) == counter.get_total_flops() / 2


def activation(model: nn.Module, *, end: bool = True) -> object:
    findings = find(model, images())
    s = findings.sites[0]
    linears = tuple(step.name for step in s.branch.linears)
    form = Inherit((linears,), end_activation=end).build(findings.traced(s, model))
    return form.activation and form.activation.function


def test_the_end_activation_is_the_blocks_own_else_the_branchs_last() -> None:
    basic, pre = network("basic"), network("pre_activation")
    assert activation(basic) is basic.blocks[0].act2
    assert activation(basic, end=False) is basic.blocks[0].act2
    assert activation(pre) is pre.blocks[0].relu
    assert activation(pre, end=False) is None


class Prelu(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.a, self.act, self.b = conv(C, hidden), nn.PReLU(hidden), conv(hidden, C)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x)))


def test_a_prelu_ends_a_block_only_where_its_channels_fit() -> None:
    fits, wide = Net([Prelu(C)]), Net([Prelu(C + 2)])
    assert activation(fits) is fits.blocks[0].act
    assert activation(wide) is None
