"""Sites by name, and a reason for every block that cannot be one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn

from tests.families import FAMILIES, Basic, C, Net, Parallel, conv, images, network, randomise
from updp.blocks import Findings, find


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_each_family(family: str) -> None:
    expected = FAMILIES[family]
    model = network(family)
    found = find(model, images(3))
    assert [s.name for s in found.sites] == list(expected.sites)
    assert set(found.graphs) == {s.block for s in found.sites}
    seen = calls(model, [s.block for s in found.sites], images(3))
    for site in found.sites:
        assert site.block == site.name.partition(":")[0]
        assert site.kind == type(model.get_submodule(site.block)).__name__
        assert (site.shape_in, site.shape_out) == seen[site.block]
        assert (site.post is not None) == expected.post
        skip = None
        if site.region.add is not None:
            skip = "opaque" if site.skip is None else "chain" if site.skip.steps else "identity"
        assert skip == expected.skip


def test_only_attention_is_unusable_in_a_vit() -> None:
    found = find(network("vit"), images())
    assert [(u.name, u.kind, u.reason) for u in found.unusable] == [
        (f"blocks.{i}:attn", "ViT", "`attn` takes several inputs") for i in (0, 1)
    ]


def calls(
    model: nn.Module, names: list[str], x: Tensor
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: seen.update(
                {name: (tuple(args[0].shape), tuple(out.shape))}
            )
        )
    model(x)
    return seen


class Two(nn.Module):
    """Two convolutions and an activation, for the forwards below."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.act = conv(C, C, bias=True), conv(C, C, bias=True), nn.ReLU()
        for name, module in modules.items():
            setattr(self, name, module)


def usable(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.act(self.a(x)))


def block(forward: Callable[..., Tensor], **modules: nn.Module) -> nn.Module:
    kind = type("Custom", (Two,), {"forward": forward})
    return kind(**modules)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(C, 2, 1), nn.Conv2d(2, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def through(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.extra(self.act(self.a(x))))


def two_modes(self: Two, x: Tensor) -> Tensor:
    return x + self.b(F.dropout(self.act(self.a(x)), 0.5, self.training))


def control_flow(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.a(x)) if x.sum() > 0 else self.b(x)


def overwritten_input(self: Two, x: Tensor) -> Tensor:
    return self.b(self.act(self.a(F.relu_(x)))) + x


def scaled_sum(self: Two, x: Tensor) -> Tensor:
    return torch.add(x, self.b(self.act(self.a(x))), alpha=0.5)


def dropped_result(self: Two, x: Tensor) -> Tensor:
    y = self.b(self.act(self.a(x))) + x
    y.relu_()
    return y


def dropped_inside(self: Two, x: Tensor) -> Tensor:
    y = self.a(x)
    self.act(y)
    return x + self.b(y)


def called_twice(self: Two, x: Tensor) -> Tensor:
    return x + self.a(self.act(self.b(self.act(self.a(x)))))


def masked(self: Two, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return x * mask + self.b(self.act(self.a(x)))


def own_tensor(self: Two, x: Tensor) -> Tensor:
    return x + torch.tensor(2.0) * self.b(self.act(self.a(x)))


def keywords(self: Two, x: Tensor, **kwargs: object) -> Tensor:
    return x + self.b(self.act(self.a(x)))


def any_arguments(self: Two, *args: Tensor) -> Tensor:
    return args[0] + self.b(self.act(self.a(args[0])))


def by_pixel(self: Two, x: Tensor) -> Tensor:
    return x + self.pixels.weight[None, None] * self.b(self.act(self.a(x)))


def one_operator(self: Two, x: Tensor) -> Tensor:
    return x + self.act(self.a(x))


def softmax(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.a(x).softmax(1))


def transposed(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.act(self.a(x)).permute(0, 1, 3, 2)).permute(0, 1, 3, 2)


UNUSABLE = {
    "squeeze and excitation": (lambda: block(through, extra=SqueezeExcite()), "`extra` (Squeeze"),
    "pooling": (lambda: block(through, extra=nn.AvgPool2d(3, 1, 1)), "`extra` (AvgPool2d)"),
    "control flow in a child": (lambda: block(through, extra=Branching()), "`extra` (Branching)"),
    "no running statistics": (
        lambda: block(through, extra=nn.BatchNorm2d(C, track_running_stats=False)),
        "`extra` is a BatchNorm without running statistics",
    ),
    "softmax": (lambda: block(softmax), "`softmax` is neither linear"),
    "transposed": (lambda: block(transposed), "`permute` permutes dimensions as (0, 1, 3, 2)"),
    "reflect": (
        lambda: Basic(conv(C, C), conv(C, C, padding_mode="reflect")),
        "`conv2` pads with 'reflect'",
    ),
    "two modes": (lambda: block(two_modes), "its forward differs between training and evaluation"),
    "control flow": (lambda: block(control_flow), "control flow"),
    "input overwritten": (lambda: block(overwritten_input), "overwrites"),
    "scaled sum": (lambda: block(scaled_sum), "it scales or overwrites"),
    "result dropped": (lambda: block(dropped_result), "drops what `relu_` returns"),
    "result dropped inside": (lambda: block(dropped_inside), "drops what `act` returns"),
    "called twice": (lambda: block(called_twice), "it calls `a` more than once"),
    "own tensor": (lambda: block(own_tensor), "makes a tensor of its own"),
    "keywords": (lambda: block(keywords), "'**kwargs' was not passed"),
    "any arguments": (lambda: block(any_arguments), "its input is no tensor"),
    "factor per pixel": (
        lambda: block(by_pixel, pixels=nn.Embedding(9, 7)),
        "`mul` is neither linear",
    ),
    "broadcast": (lambda: block(usable, b=conv(C, 1)), "its branch is broadcast onto its skip"),
    "one operator": (lambda: block(one_operator), "fewer than two linear operators"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_unusable_blocks_have_a_reason(what: str) -> None:
    make, reason = UNUSABLE[what]
    torch.manual_seed(0)
    found = find(Net([make(), Basic(conv(C, C), conv(C, C))]).eval(), images())
    assert [s.name for s in found.sites] == ["blocks.1"]
    (unusable,) = found.unusable
    assert unusable.name == "blocks.0"
    assert reason in unusable.reason


def test_a_mask_on_the_skip_is_named() -> None:
    class Masking(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x, mask=torch.ones(9, 7))

    found = find(Net([Masking(block(masked))]), images())
    assert [(u.name, u.reason) for u in found.unusable] == [
        ("blocks.0.0", "argument `mask` enters it")
    ]


def test_a_block_that_is_called_twice_or_never() -> None:
    class Again(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.blocks[0](self.stem(x)).mean()

    model = Again([block(usable), block(usable)])
    model.spare = block(usable)
    found = find(model, images())
    assert [s.name for s in found.sites] == ["blocks.1"]
    assert {u.name: u.reason for u in found.unusable} == {
        "blocks.0": "the model calls it 2 times, not once",
        "spare": "the model calls it 0 times, not once",
    }


def test_one_block_under_two_names_is_called_twice() -> None:
    shared = block(usable)
    found = find(Net([shared, shared]), images())
    assert [(u.name, u.reason) for u in found.unusable] == [
        ("blocks.0", "the model calls it 2 times, not once")
    ]


def test_of_overlapping_branches_the_first_is_a_site() -> None:
    found = find(Net([Parallel(C)]), images())
    assert [s.name for s in found.sites] == ["blocks.0:a1"]
    assert [(u.name, u.reason) for u in found.unusable] == [
        ("blocks.0:b1", "its skip holds the site blocks.0:a1")
    ]


def test_branches_of_one_name_are_not_both_sites() -> None:
    def forward(self: Two, x: Tensor) -> Tensor:
        x = x + self.b(self.act(self.a(x)))
        return x + self.b(self.act(self.a(x)))

    found = find(Net([block(forward)]), images())
    assert [s.name for s in found.sites] == ["blocks.0:a"]
    assert [u.name for u in found.unusable] == ["blocks.0:a"]


def test_what_may_look_odd_and_is_fine() -> None:
    def named_operands(self: Two, x: Tensor) -> Tensor:
        return torch.add(x, other=self.b(self.act(self.a(x))))

    def unused_sizes(self: Two, x: Tensor) -> Tensor:
        y = self.a(x)
        _n, c, _h, _w = y.shape
        torch._assert(c == C, "channels")
        return x + self.b(self.act(y))

    def keyword_only(self: Two, x: Tensor, *, factor: float = 1.0) -> Tensor:
        return x + self.b(self.act(self.a(x)))

    forwards = (named_operands, unused_sizes, keyword_only)
    found = find(Net([block(f) for f in forwards]), images())
    assert [s.name for s in found.sites] == ["blocks.0", "blocks.1", "blocks.2"]


def test_the_smallest_residual_module_is_the_block() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = block(usable), conv(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(self.inner(x))

    assert [s.name for s in find(Net([Outer()]), images()).sites] == ["blocks.0.inner"]


def test_a_module_without_a_skip_is_a_block_only_where_it_repeats() -> None:
    once = network("inverted_plain")
    once.blocks[1] = nn.Identity()
    assert find(once, images()).sites == ()


def test_tokens_are_not_normalised_along_their_number() -> None:
    """A BatchNorm on (N, L, C) works on L: no norm of the channels."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm1d(63), nn.Linear(C, C), nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(self.norm(x)).relu())

    found = find(Net([Tokens()], "tokens"), images())
    assert [(u.name, u.reason) for u in found.unusable] == [
        ("blocks.0", "`norm` does not work along the channels")
    ]


class Counting(Two):
    """Changes itself in its forward, with attributes, buffers and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.last: object = None
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last = x
        self.steps.add_(1)
        self.total = self.total + 1
        return x + self.b(self.act(self.a(x)))


def test_tracing_takes_back_what_a_forward_does_to_its_module() -> None:
    model = Net([Counting()])
    find(model, images())
    own = model.blocks[0]
    # once, by the one real forward
    assert (own.count, own.steps.item(), own.total.item()) == (1, 1, 1)
    assert isinstance(own.last, Tensor)
    assert not isinstance(own.last, fx.Proxy)


def fused() -> nn.Module:
    return nn.Sequential(
        randomise(block(usable, act=BatchNormAct2d(C))), Basic(conv(C, C), conv(C, C))
    )


@pytest.mark.parametrize("family", ["fused", "basic", "vit", "strided", "dropout", "own tensor"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    if family in FAMILIES:
        model = network(family)
    else:
        model = Net([fused() if family == "fused" else block(own_tensor)])
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
        module.register_forward_hook(lambda *_: None)
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    names = [set(vars(m)) for m in model.modules()]
    before = {n: (id(t), t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    x = images()
    find(model, x)
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [set(vars(m)) for m in model.modules()] == names
    after = model.state_dict(keep_vars=True)
    assert {n: id(t) for n, t in after.items()} == {n: i for n, (i, _) in before.items()}
    assert all(torch.equal(t, before[n][1]) for n, t in after.items())
    assert torch.equal(x, images())
    assert not any(p.grad is not None for p in model.parameters())


def test_a_failing_model_is_left_as_it_was_too() -> None:
    model = network("basic").train()
    with pytest.raises(RuntimeError):
        find(model, torch.randn(1, 5, 9, 7))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_findings_do_not_depend_on_the_mode_or_the_batch() -> None:
    def summary(found: Findings) -> list[tuple]:
        return [(s.name, s.region, s.shape_in[1:], s.shape_out[1:]) for s in found.sites]

    model = network("bottleneck")
    expected = summary(find(copy.deepcopy(model).train(), images(1)))
    assert summary(find(model, images(4))) == expected
