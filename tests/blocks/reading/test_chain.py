from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import FAMILIES, C, conv, error, images, network
from updp.blocks import ActStep, Chain, LinearStep, NormStep, ScaleStep, find
from updp.blocks.modules import seeded_input
from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.probe import channels_if_near_a_line
from updp.blocks.tracing.region import whole_region
from updp.blocks.tracing.trace import trace_alone


def read(module: nn.Module, shape: tuple[int, ...] = (2, C, 9, 7)) -> Chain:
    graph = trace_alone(module)
    region = whole_region(graph)
    assert region is not None
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return read_chain(module, graph, region.branch, x)


def steps(chain: Chain) -> list[str]:
    kinds = {LinearStep: "linear", NormStep: "norm", ActStep: "act", ScaleStep: "scale"}
    return [f"{kinds[type(s)]} {s.name}" for s in chain.steps]


def test_steps_are_named_by_their_path_in_the_block() -> None:
    site = find(network("inverted"), images()).sites[0]
    assert steps(site.branch) == [
        *("linear conv.0.0", "norm conv.0.1", "act conv.0.2"),
        *("linear conv.1.0", "norm conv.1.1", "act conv.1.2"),
        *("linear conv.2", "norm conv.3"),
    ]


def test_layer_scale_and_layouts_are_read_through_permutes() -> None:
    site = find(network("convnext"), images()).sites[0]
    assert steps(site.branch) == [
        *("linear dw", "norm norm", "linear pw1", "act act", "linear pw2", "scale mul")
    ]
    chain = site.branch
    assert (chain.layout, chain.layout_in, chain.layout_out) == ("first", "first", "first")
    (norm,) = (s for s in chain.steps if isinstance(s, NormStep))
    assert norm.layout == "last"


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("mlp_nhwc", ("last", "last", "last")),
        ("nhwc_pointwise", ("last", "last", "last")),
        ("nhwc_grouped", ("first", "last", "last")),
        ("nhwc_spatial", ("first", "last", "last")),
        ("to_last", ("first", "first", "last")),
        ("mlp_tokens", ("last", "last", "last")),
    ],
)
def test_the_canonical_layout_is_first_where_something_convolves(
    family: str, layouts: tuple[str, str, str]
) -> None:
    chain = find(network(family), images()).sites[0].branch
    assert (chain.layout, chain.layout_in, chain.layout_out) == layouts


@pytest.mark.parametrize("family", [n for n, f in FAMILIES.items() if f.skip is None])
def test_a_chain_computes_what_its_block_computes(family: str) -> None:
    model = network(family)
    for site in find(model, images()).sites:
        x = torch.randn(site.shape_in)
        y = site.chain.keep(x)
        y = y if site.post is None else site.post.function(y)
        assert error(y, model.get_submodule(site.block)(x.clone())) < 1e-6


class Do(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


class Swish(nn.Module):
    """A function of its own, traced through."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    "function",
    [
        *(nn.GELU(), nn.Hardswish(inplace=True), nn.PReLU(), F.silu, torch.tanh, Swish()),
        *(lambda x: F.relu(x, inplace=True), lambda x: x.clamp(min=0), lambda x: x.relu_()),
    ],
)
def test_elementwise_functions_are_activations(function: object) -> None:
    module = nn.Sequential(function) if isinstance(function, nn.Module) else Do(function)
    (step,) = read(module).steps
    assert isinstance(step, ActStep)
    x = torch.randn(2, 3, 4, 4)
    before = x.clone()
    assert torch.equal(step.keep(x, "first"), module(x.clone()))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "module",
    [nn.Identity(), nn.Dropout(0.5), Do(lambda x: x.contiguous()), Do(lambda x: x.clone())],
)
def test_identities_in_evaluation_are_not_steps(module: nn.Module) -> None:
    wrapped = nn.Sequential(module).train()
    assert read(wrapped).steps == ()
    assert module.training


@pytest.mark.parametrize(
    ("function", "factor"), [(lambda x: 0.1 * x, 0.1), (lambda x: x / 3, 1 / 3), (lambda x: -x, -1)]
)
def test_constant_factors_are_exact(function: object, factor: float) -> None:
    (step,) = read(Do(function)).steps
    assert isinstance(step, ScaleStep)
    assert step.parameter.item() == pytest.approx(factor, rel=1e-15)
    assert step.keep(torch.ones(1, 2, 3, 3), "first").dtype == torch.float32


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: x.flip(3),
        lambda x: x[:, :, ::2],
        lambda x: F.pad(x, (1, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: x.roll(1, 3),
    ],
)
def test_other_functions_are_refused_by_name(function: object) -> None:
    with pytest.raises(NotAChain, match=r"`.+` is neither linear on channels nor elementwise"):
        read(Do(function))


class Gate(nn.Module):
    """Squeeze and excitation, written out in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(C, 1, 1), nn.Conv2d(1, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


@pytest.mark.parametrize(
    "function",
    [
        *(Gate(), nn.Softmax(1), nn.InstanceNorm2d(C)),
        *(lambda x: F.normalize(x, dim=1), lambda x: x - x.mean()),
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    ],
)
def test_functions_near_a_line_per_channel_are_norm_steps(function: object) -> None:
    module = nn.Sequential(
        conv(C, C), function if isinstance(function, nn.Module) else Do(function)
    )
    _, step = read(module).steps
    assert isinstance(step, NormStep)
    assert step.channels == C
    x = torch.randn(2, C, 9, 7)
    assert torch.equal(step.keep(x, "first"), module[1](x))


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


class PadsFirst(nn.Conv2d):
    """Uneven padding of its own, as TensorFlow's `same`."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 1, 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Lists(nn.Conv2d):
    """Sizes in lists, as in efficientnet_pytorch, also where it convolves as PyTorch does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stride, self.padding, self.dilation = (  # type: ignore[assignment]
            list(size) for size in (self.stride, self.padding, self.dilation)
        )


class ListsPadsFirst(Lists, PadsFirst):
    pass


class Normed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


@pytest.mark.parametrize(
    "module",
    [
        Standardised(C, 6, 3, padding=1),
        Standardised(C, C, (3, 1), stride=2, groups=2, bias=False),
        PadsFirst(C, 5, 3, 2),
        PadsFirst(C, 5, 3, dilation=2),
        Lists(C, 5, 3, 2, padding=1),
        ListsPadsFirst(C, 5, 3, 2, padding=1, dilation=2),
        Normed(C, 5),
    ],
)
def test_the_weight_and_padding_of_a_subclass_are_those_that_it_uses(
    module: nn.Conv2d | nn.Linear,
) -> None:
    x = torch.randn(2, 9, 7, C) if isinstance(module, nn.Linear) else torch.randn(2, C, 9, 7)
    step = LinearStep.read("c", module, x)
    assert step.derived == isinstance(module, Standardised | Normed)
    assert {type(step.stride), type(step.padding), type(step.dilation)} == {tuple}
    expected = module(x)
    if isinstance(module, nn.Linear):
        x = x.permute(0, 3, 1, 2)
        expected = expected.permute(0, 3, 1, 2)
    y = F.conv2d(
        F.pad(x, step.padding), step.weight, module.bias, step.stride, 0, step.dilation, step.groups
    )
    assert error(y, expected) < 1e-6
    assert error(step.exact_weight, step.weight.double()) < 1e-6
    y.sum().backward()
    assert module.weight.grad is not None
    assert step.keep(x, "first").shape == y.shape


def forwards() -> dict[str, object]:
    def twice(self: nn.Conv2d, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, nn.Conv2d.forward(self, x))

    def doubled(self: nn.Conv2d, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x) * 2

    def rectified(self: nn.Conv2d, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x.relu())

    def reflected(self: nn.Conv2d, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (1, 1, 1, 1), "reflect"), self.weight, self.bias)

    def other_bias(self: nn.Conv2d, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.weight.sum((1, 2, 3)))

    def other_stride(self: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 2)

    def nothing(self: nn.Conv2d, x: Tensor) -> Tensor:
        return x

    found = (twice, doubled, rectified, reflected, other_bias, other_stride, nothing)
    return {f.__name__: f for f in found}


@pytest.mark.parametrize("name", forwards())
def test_subclasses_that_compute_something_else_are_refused(name: str) -> None:
    kind = type("Other", (nn.Conv2d,), {"forward": forwards()[name]})
    with pytest.raises(NotAChain, match="`0` \\(Other\\)"):
        read(nn.Sequential(kind(C, C, 3)))


def test_further_operations_of_a_norm_subclass_are_read() -> None:
    class Squared(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    found = read(nn.Sequential(conv(C, C), Squared(C), conv(C, C)).eval())
    assert steps(found) == ["linear 0", "norm 1", "act 1.pow_1", "linear 2"]


def test_a_wrong_layout_is_refused() -> None:
    with pytest.raises(NotAChain, match="`1` does not work along the channels"):
        read(nn.Sequential(conv(C, C), nn.Linear(7, 7)))


@pytest.mark.parametrize("inner", [(), (2,), (2, 3), (2, 3, 2), (2, 3, 2, 2)])
def test_linear_layers_read_tokens_in_any_number_of_dimensions(inner: tuple[int, ...]) -> None:
    chain = read(nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 3), nn.GELU()), (2, *inner, C))
    assert (chain.layout, chain.layout_in, chain.dims) == ("last", "last", 2)
    assert steps(chain) == ["norm 0", "linear 1", "act 2"]


def test_padding_is_read_in_pixels() -> None:
    def padding(**kwargs: object) -> tuple[int, ...]:
        return LinearStep.read("c", nn.Conv2d(1, 1, **kwargs), torch.empty(0)).padding

    assert padding(kernel_size=(2, 5), padding="same", dilation=(3, 1)) == (2, 2, 1, 2)
    assert padding(kernel_size=3, padding="valid") == (0, 0, 0, 0)
    assert padding(kernel_size=3, padding=(1, 2)) == (2, 2, 1, 1)
    assert LinearStep.read("l", nn.Linear(2, 3), torch.empty(0)).padding == (0, 0, 0, 0)


def test_a_batchnorm_in_a_chain_works_in_its_own_mode() -> None:
    norm = nn.BatchNorm2d(C).train()
    step = NormStep("norm", norm, "first", C)
    x = torch.randn(4, C, 5, 5) * 3 + 2
    y = step.keep(x, "first")
    assert y.mean().abs() < 1e-5
    reference = nn.BatchNorm2d(C).train()
    assert torch.equal(reference(x), y)
    assert torch.equal(reference.running_var, norm.running_var)
    assert not torch.equal(
        step.keep(x, "first"), NormStep("n", norm.eval(), "first", C).keep(x, "first")
    )


def test_a_layer_whose_output_a_hook_changes_is_not_read() -> None:
    part = nn.Sequential(conv(C, C), nn.ReLU(), conv(C, C))
    assert len(read(part).steps) == 3
    part[2].register_forward_hook(lambda module, x, y: 0.5 * y)
    with pytest.raises(NotAChain):
        read(part)
    part[2]._forward_hooks.clear()
    part[2].register_forward_hook(lambda module, x, y: y.clone())  # changes nothing
    assert len(read(part).steps) == 3


class TokenMixing(nn.Module):
    """A linear layer across 6 tokens; what follows is scaled by a factor of `size` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mix, self.gamma = nn.Linear(6, 6), nn.Parameter(torch.rand(size) + 0.5)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x.transpose(1, 2))
        if self.size == 6:
            return (y * self.gamma).transpose(1, 2)
        return y.transpose(1, 2) * self.gamma


def test_a_factor_along_the_axis_of_a_layer_is_a_step() -> None:
    module = TokenMixing(6)
    chain, x = read(module, (2, 6, 8)), torch.randn(2, 6, 8)
    assert [type(step) for step in chain.steps] == [LinearStep, ScaleStep]
    torch.testing.assert_close(chain.keep(x), module(x))


def test_a_factor_along_another_axis_than_the_layers_ends_the_chain() -> None:
    with pytest.raises(NotAChain, match="`mul` scales along another axis"):
        read(TokenMixing(8), (2, 6, 8))


def test_a_norm_that_is_tried_on_other_channels_warns_of_nothing(
    recwarn: pytest.WarningsRecorder,
) -> None:
    chain = read(nn.Sequential(nn.Conv2d(C, C, 1), nn.InstanceNorm2d(C), nn.ReLU()))
    assert [type(step) for step in chain.steps] == [LinearStep, NormStep, ActStep]
    assert not recwarn.list


class Shift(nn.Module):
    """Some channels of each frame go to the last one, and some to the next."""

    def __init__(self, frames: int, some: int) -> None:
        super().__init__()
        self.frames, self.some = frames, some

    def forward(self, x: Tensor) -> Tensor:
        clips, some = x.view(-1, self.frames, *x.shape[1:]), self.some
        moved = torch.zeros_like(clips)
        moved[:, :-1, :some] = clips[:, 1:, :some]
        moved[:, 1:, some : 2 * some] = clips[:, :-1, some : 2 * some]
        moved[:, :, 2 * some :] = clips[:, :, 2 * some :]
        return moved.view(x.shape)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = Shift(4, 2)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.shift(x))))


def test_a_shift_of_some_channels_to_other_frames_is_no_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(0, 1), Shifted()).eval()  # of clips
    sites = find(model, torch.randn(2, 4, 16, 9, 7)).sites
    assert sites
    assert not [s.name for s in sites if s.branch is not None and "shift" in s.region.branch]


def refuse(x: Tensor) -> Tensor:
    raise ValueError("not in the range of the data")


class Checked(nn.Module):
    """A norm that does something else if the last sample begins with a positive value."""

    def __init__(self, otherwise: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.otherwise = otherwise

    def forward(self, x: Tensor) -> Any:
        return self.otherwise(x) if x[-1].flatten()[0] > 0 else F.instance_norm(x)


@pytest.mark.parametrize(
    ("otherwise", "channels"),
    [(F.instance_norm, C), (refuse, 0), (lambda x: None, 0), (lambda x: x[:-1], 0)],
)
def test_a_norm_takes_the_negative_of_a_sample(
    otherwise: Callable[[Tensor], Any], channels: int
) -> None:
    x = torch.zeros(2, C, 9, 7)
    assert seeded_input(x.shape, x)[-1, 0, 0, 0] < 0
    assert channels_if_near_a_line(Checked(otherwise), x, "first") == channels


def test_a_model_whose_norm_refuses_the_negative_of_its_data_is_searched() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(C, C, 1), Checked(refuse), nn.ReLU(), nn.Conv2d(C, C, 1))
    with torch.no_grad():
        block[0].weight.abs_().neg_()  # so that positive images give no positive values
        block[0].bias.zero_()
    assert not find(nn.Sequential(block).eval(), torch.rand(2, C, 9, 7)).sites
