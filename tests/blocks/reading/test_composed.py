"""A linear layer with adapters beside it is read as one linear layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import error
from tests.fit.test_fitting import FIT
from updp.blocks import find
from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.composed import ComposedStep, read_composed
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.trace import trace_alone
from updp.candidates import inherit_cuts
from updp.supernet import Supernet, fit_plan

D = 6


class Adapted(nn.Module):
    """A layer with adapters of low rank, as in PEFT; they begin as zeros."""

    def __init__(self, base: nn.Linear, names: tuple[str, ...] = ("one", "two")) -> None:
        super().__init__()
        self.base_layer, self.dropout = base, nn.Dropout(0.5)
        self.down = nn.ModuleDict({n: nn.Linear(base.in_features, 2, bias=False) for n in names})
        self.up = nn.ModuleDict({n: nn.Linear(2, base.out_features, bias=False) for n in names})
        for layer in self.up.values():
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        dtype = result.dtype
        for name in self.down:
            result = result + self.up[name](self.down[name](self.dropout(x))) * 2.0
        return result.to(dtype)


Wrap = Callable[[nn.Linear], nn.Module]


class FeedForward(nn.Module):
    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.fc1, self.fc2 = wrap(nn.Linear(D, 9)), wrap(nn.Linear(9, D))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Attention(nn.Module):
    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.q, self.k, self.v = (wrap(nn.Linear(D, D)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        return x + scores.softmax(-1) @ self.v(x)


class Residual(nn.Module):
    """Of low rank, too, but beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(D, 2), nn.Linear(2, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


def model(trained: bool = True, wrap: Wrap = Adapted) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(FeedForward(wrap), Attention(wrap), FeedForward(wrap), Attention(wrap))
    for name, weight in made.named_parameters():
        if trained and ".up." in name:
            nn.init.normal_(weight)
    return made.eval()


@pytest.mark.parametrize("trained", [True, False])
def test_adapters_hide_no_site(trained: bool) -> None:
    plain, adapted = (find(model(trained, w), torch.randn(2, 7, D)) for w in (lambda x: x, Adapted))
    sites = [[(s.name, s.branch is None) for s in f.sites] for f in (plain, adapted)]
    assert sites[0] == sites[1] == [("0", False), ("1", True), ("2", False), ("3", True)]
    assert not adapted.unusable


def test_a_residual_block_of_low_rank_is_still_a_site() -> None:
    found = find(nn.Sequential(Residual(), Residual()).eval(), torch.randn(2, 7, D))
    assert [s.name for s in found.sites] == ["0", "1"]


@pytest.mark.parametrize("bias", [True, False])
def test_the_step_has_the_weight_of_all_paths(bias: bool) -> None:
    torch.manual_seed(0)
    layer = Adapted(nn.Linear(D, 9, bias=bias)).double()
    for up in layer.up.values():
        nn.init.normal_(up.weight)
    block, x = nn.Sequential(layer).train(), torch.randn(2, 7, D).double()
    graph = trace_alone(copy.deepcopy(block).eval())
    (step,) = read_chain(block.eval(), graph, ["_0"], x).steps
    assert isinstance(step, ComposedStep)
    assert (step.bias is None) == (not bias)
    block.train()  # what the weight is does not depend on dropout
    products = sum(layer.up[n].weight @ layer.down[n].weight for n in layer.down)
    wanted = layer.base_layer.weight + 2 * products
    torch.testing.assert_close(step.weight[..., 0, 0], wanted)
    torch.testing.assert_close(step.exact_weight[..., 0, 0], wanted)
    assert block.training
    assert layer.dropout.training
    step.weight.sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if "bias" not in n)


def merged_exactly(net: nn.Module, x: Tensor) -> tuple[list[str], nn.Module]:
    """Merge the first candidate that is shallower of each site; the sites, and the merged model."""
    wanted, findings = net(x), find(net, x[:2])
    sites = {s.name: list(inherit_cuts(s, end_activation=False))[:1] for s in findings.sites}
    pruned = Supernet(copy.deepcopy(net), findings, sites).eval()
    pruned.choose({})
    assert error(pruned(x), wanted) < 1e-12
    choices = {name: found[0].label for name, found in sites.items() if found}
    fit_plan(pruned, choices, [x[:4], x[4:]], FIT)
    merged = pruned.merged(torch.float64)
    assert error(merged(x), pruned(x)) < 1e-12
    assert not findings.unusable
    return [*choices], merged


def test_a_feed_forward_part_with_adapters_merges_exactly() -> None:
    sites, merged = merged_exactly(model().double(), torch.randn(8, 7, D).double())
    assert sites == ["0", "2"]
    assert not [n for n, _ in merged[0].named_modules() if "base_layer" in n]


class AdaptedConv(nn.Module):
    """A convolution with an adapter of low rank, as in LoRA."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        sizes = base.kernel_size, base.stride, base.padding, base.dilation
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, *sizes, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 0.5


class WeightedConv(AdaptedConv):
    """As in LyCORIS and DoRA: the weight is computed first, with a norm for each channel."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__(base)
        self.magnitude = nn.Parameter(torch.rand(base.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        own = self.base
        low = (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).view(own.weight.shape)
        weight = own.weight + low
        weight = self.magnitude * weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, own.bias, own.stride, own.padding, own.dilation)


class Weighted(nn.Module):
    """DoRA: the weight of a layer and its adapter gets a length for each channel."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 2))
        self.magnitude = nn.Parameter(torch.rand(base.out_features, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + 2 * (self.up @ self.down)
        weight = self.magnitude * weight / weight.norm(dim=1, keepdim=True)
        return F.linear(x, weight, self.base.bias)


class Scaled(Weighted):
    """DoRA, by a factor per channel of the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.up @ self.down
        factor = (self.magnitude / weight.norm(dim=1, keepdim=True)).flatten()
        y = F.linear(x, self.base.weight) + F.linear(F.linear(x / 2, self.down), self.up) * 2
        return y * factor + self.base.bias


class ConvBlock(nn.Module):
    def __init__(self, wrap: Callable[[nn.Conv2d], nn.Module], stride: int = 1) -> None:
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(D, 9, 3, stride, padding=1))
        self.norm, self.conv2 = nn.BatchNorm2d(9), wrap(nn.Conv2d(9, D, 3, padding=2, dilation=2))
        self.shortcut = nn.Conv2d(D, D, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.norm(self.conv1(x)))))


@pytest.mark.parametrize("wrap", [Weighted, Scaled])
def test_a_layer_whose_weight_is_computed_with_adapters_is_one_layer(wrap: Wrap) -> None:
    net, x = model(wrap=wrap).double(), torch.randn(8, 7, D).double()
    assert merged_exactly(net, x)[0] == ["0", "2"]
    layer = net[0].fc1
    (step,) = read_chain(nn.Sequential(layer), trace_alone(nn.Sequential(layer)), ["_0"], x).steps
    assert isinstance(step, ComposedStep)
    torch.testing.assert_close(step.keep(x, "last"), layer(x))
    (step.weight.square().sum() + step.bias.sum()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("wrap", [AdaptedConv, WeightedConv])
def test_a_convolution_with_adapters_is_one_convolution(
    wrap: Callable[[nn.Conv2d], nn.Module],
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ConvBlock(wrap), ConvBlock(wrap, 2)).eval().double()
    assert merged_exactly(net, torch.randn(8, D, 9, 8).double())[0] == ["0", "1"]
    step = find(net, torch.randn(2, D, 9, 8).double()).sites[1].chain.linears[0]
    assert isinstance(step, ComposedStep)
    assert (step.shape, step.stride, step.padding) == ((9, D, 3, 3), (2, 2), (1, 1, 1, 1))


class Grouped(AdaptedConv):
    """Not one convolution with the groups of the base."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__(base)
        self.base = nn.Conv2d(base.in_channels, base.out_channels, 3, padding=1, groups=3)


class Wider(AdaptedConv):
    """The adapter sees other pixels than the base."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__(base)
        self.down = nn.Conv2d(base.in_channels, 2, 5, base.stride, padding=2, bias=False)


class Squared(Weighted):
    """Its weight depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight * x.mean(), self.base.bias)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Grouped(nn.Conv2d(D, 9, 3, padding=1)), torch.randn(2, D, 9, 8)),
        (Wider(nn.Conv2d(D, 9, 3, padding=1)), torch.randn(2, D, 9, 8)),
        (Squared(nn.Linear(D, D)), torch.randn(2, 7, D)),
        (Residual(), torch.randn(2, 7, D)),
        (nn.Sequential(nn.Linear(D, 2), nn.Linear(2, D)), torch.randn(2, 7, D)),
    ],
)
def test_what_is_not_one_layer_is_not_read_as_one(module: nn.Module, x: Tensor) -> None:
    graph = trace_alone(module.eval(), Arguments((x,)))
    assert read_composed("it", module, graph) is None


@pytest.mark.parametrize("part", ["", "dropout"])
def test_a_module_with_a_hook_is_not_read_as_a_layer_but_is_no_block_either(part: str) -> None:
    net, x = model(), torch.randn(2, 7, D)
    layer = net[0].fc1
    graph = trace_alone(layer, Arguments((x,)))
    assert read_composed("it", layer, graph) is not None
    layer.get_submodule(part).register_forward_hook(lambda module, args, y: 3 * y)
    assert read_composed("it", layer, graph) is None
    sites = [(s.name, s.branch is None) for s in find(net, x).sites]
    assert sites == [("0", True), ("1", True), ("2", False), ("3", True)]


class InPlace(Scaled):
    """Its factors are applied in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.base.weight) + F.linear(F.linear(x, self.down), self.up)
        y *= 2
        y /= 3
        return y.mul_(self.magnitude.flatten()).div_(2) + self.base.bias


def test_factors_in_place_are_part_of_the_layer() -> None:
    torch.manual_seed(0)
    layer, x = InPlace(nn.Linear(D, 9)).double(), torch.randn(2, 7, D).double()
    step = read_composed("it", layer, trace_alone(layer, Arguments((x,))))
    assert step is not None
    wanted = layer.magnitude * (layer.base.weight + layer.up @ layer.down) / 3
    torch.testing.assert_close(step.weight[..., 0, 0], wanted)
    torch.testing.assert_close(step.keep(x, "last"), layer(x))


class Linearly(nn.Module):
    """Two convolutions beside a third, none of them an adapter: an operator of two would do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.d(x) + self.b(self.a(x))).relu()


def test_convolutions_that_merge_are_no_layer_with_adapters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Linearly(), Linearly()).eval()
    findings = find(model, torch.randn(2, 3, 9, 9))
    assert [site.name for site in findings.sites] == ["1", "2"]
    assert all(next(inherit_cuts(site)).label == "a+b" for site in findings.sites)
