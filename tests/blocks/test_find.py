"""Sites by name, and a reason for every block that cannot be one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from tests.families import FAMILIES, Basic, C, Mlp, Net, Parallel, conv, images, network, randomise
from tests.sampling import every_other
from updp.blocks import Findings, find
from updp.candidates import proposals
from updp.recipe import CandidateSettings
from updp.supernet import Supernet


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_expected_sites(family: str) -> None:
    expected = FAMILIES[family]
    model = network(family)
    found = find(model, images(3))
    chains = [s for s in found.sites if s.branch is not None]
    assert [s.name for s in chains] == list(expected.sites)
    assert set(found.graphs) == {s.block for s in found.sites}
    seen = calls(model, [s.block for s in found.sites], images(3))
    for site in chains:
        assert site.block == site.name.partition(":")[0]
        assert site.kind == type(model.get_submodule(site.block)).__name__
        assert (site.shape_in, site.shape_out) == seen[site.block]
        assert (site.post is not None) == expected.post
        skip = None
        if site.region.add is not None:
            skip = "opaque" if site.skip is None else "chain" if site.skip.steps else "identity"
        assert skip == expected.skip


def test_only_attention_is_no_chain_in_a_vit() -> None:
    found = find(network("vit"), images())
    assert [(s.name, s.kind, s.why) for s in found.sites if s.branch is None] == [
        (f"blocks.{i}:attn", "ViT", "`attn` takes several inputs") for i in (0, 1)
    ]
    assert found.unusable == ()


def whys(found: Findings) -> dict[str, str]:
    """Of each block in which nothing merges, why."""
    unusable = {u.name: u.reason for u in found.unusable}
    return unusable | {s.name: s.why for s in found.sites if s.branch is None}


def chains(found: Findings) -> list[str]:
    return [s.name for s in found.sites if s.branch is not None]


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


def through(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.extra(self.act(self.a(x))))


def control_flow(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.a(x)) if x.sum() > 0 else self.b(x)


def scaled_by(self: Two, x: Tensor, mask: Tensor) -> Tensor:
    return x + mask * self.b(self.act(self.a(x)))


def read_after(self: Two, x: Tensor) -> Tensor:
    y = self.a(x)
    y.flatten(1).relu_()
    return x + self.b(y)


def effect(self: Two, x: Tensor) -> Tensor:
    y = x + self.b(self.act(self.a(x)))
    x.add_(1)
    return y


def called_twice(self: Two, x: Tensor) -> Tensor:
    return x + self.a(self.act(self.b(self.act(self.a(x)))))


def masked(self: Two, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return x * mask + self.b(self.act(self.a(x)))


def foreign(self: Two, x: Tensor) -> Tensor:
    return x + torch.from_numpy(np.ones(1, np.float32)) * self.b(self.act(self.a(x)))


def one_operator(self: Two, x: Tensor) -> Tensor:
    return x + self.act(self.a(x))


def transposed(self: Two, x: Tensor) -> Tensor:
    return x + self.b(self.act(self.a(x)).permute(0, 1, 3, 2)).permute(0, 1, 3, 2)


NO_CHAIN = {
    "pooling": (lambda: block(through, extra=nn.AvgPool2d(5, 1, 2)), "`extra` (AvgPool2d)"),
    "no running statistics": (
        lambda: block(through, extra=nn.BatchNorm2d(C, track_running_stats=False)),
        "`extra` is a BatchNorm without running statistics",
    ),
    "transposed": (lambda: block(transposed), "`permute` permutes dimensions as (0, 1, 3, 2)"),
    "reflect": (
        lambda: Basic(conv(C, C), conv(C, C, padding_mode="reflect")),
        "`conv2` (Conv2d) pads with 'reflect'",
    ),
    "one operator": (lambda: block(one_operator), "fewer than two linear operators"),
}
UNUSABLE = {
    "control flow": (lambda: block(control_flow), "what `gt` holds decides"),
    "read after": (lambda: block(read_after), "it reads `a`, which `relu_` overwrites in part"),
    "input overwritten for its caller": (lambda: block(effect), "drops what `add_` returns"),
    "foreign result": (lambda: block(foreign), "its forward makes a tensor of its own"),
}


@pytest.mark.parametrize("what", [*NO_CHAIN, *UNUSABLE])
def test_blocks_in_which_nothing_merges_have_a_reason(what: str) -> None:
    make, reason = (NO_CHAIN | UNUSABLE)[what]
    torch.manual_seed(0)
    found = find(Net([make(), Basic(conv(C, C), conv(C, C))]).eval(), images())
    assert chains(found) == ["blocks.1"]
    assert whys(found).keys() == {"blocks.0"}
    assert reason in whys(found)["blocks.0"]
    assert (what in UNUSABLE) == bool(found.unusable)


ONLY_INSIDE = {
    "an extra on the branch": (lambda: Masking(block(scaled_by)), ""),
    "called twice": (lambda: block(called_twice), ""),
    "broadcast": (lambda: block(usable, b=conv(C, 1)), "its branch is broadcast onto its skip"),
    "masked skip": (lambda: Masking(block(masked)), ""),
}


@pytest.mark.parametrize("what", ONLY_INSIDE)
def test_a_chain_is_found_where_its_skip_cannot_be_merged(what: str) -> None:
    make, reason = ONLY_INSIDE[what]
    torch.manual_seed(0)
    found = find(Net([make()]).eval(), images())
    (site,) = (s for s in found.sites if s.branch is not None)
    assert site.region.add is None
    assert [s.name for s in site.chain.linears] == ["a", "b"]
    assert [u.reason for u in found.unusable if reason in u.reason] or not reason


class Masking(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x, mask=torch.ones(9, 7))


def test_calls_are_counted_and_uncalled_blocks_refused() -> None:
    class Again(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.blocks[0](self.stem(x)).mean()

    model = Again([block(usable), block(usable)])
    model.spare = block(usable)
    found = find(model, images())
    assert {s.name: s.calls for s in found.sites} == {"blocks.0": 2, "blocks.1": 1}
    assert whys(found)["spare"] == "the model never calls it"


def test_one_block_under_two_names_is_one_site() -> None:
    shared = block(usable)
    found = find(Net([shared, shared]), images())
    assert {s.name: s.calls for s in found.sites} == {"blocks.0": 2}


def test_the_first_of_overlapping_branches_keeps_the_skip() -> None:
    found = find(Net([Parallel(C)]), images())
    sites = {s.name: s.region.add is not None for s in found.sites}
    assert sites == {"blocks.0:a1": True, "blocks.0:b1": False}
    assert not found.unusable


def test_branches_of_modules_that_run_again_are_refused_once() -> None:
    def forward(self: Two, x: Tensor) -> Tensor:
        x = x + self.b(self.act(self.a(x)))
        return x + self.b(self.act(self.a(x)))

    found = find(Net([block(forward)]), images())
    assert not found.sites
    assert [(u.name, u.reason) for u in found.unusable] == [
        ("blocks.0:a", "`a` runs 2 times in one forward, each time with other neighbours")
    ]


class Looped(nn.Module):
    """Runs one part several times, each time behind a norm of its own."""

    def __init__(self, part: nn.Module, residual: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(3))
        self.part, self.residual = part, residual

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = self.part(norm(x)) + (x if self.residual else 0)
        return x.mean(1)


@pytest.mark.parametrize("residual", [True, False])
def test_a_part_that_runs_several_times_is_a_site_for_all_runs(residual: bool) -> None:
    part = nn.Sequential(nn.Linear(C, 9), nn.GELU(), nn.Linear(9, C))
    found = find(Looped(part, residual).eval(), torch.randn(2, 7, C))
    assert {s.name: (s.block, s.calls) for s in found.sites} == {"part": ("part", 3)}
    reasons = [(":part", "it holds the site part")] if residual else []
    assert [(u.name, u.reason) for u in found.unusable] == reasons


def test_unusual_spellings_of_a_forward_are_sites() -> None:
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


class Vgg(nn.Module):
    """Everything in the root: convolutions in a row, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.ModuleList(conv(i, o, bias=True) for i, o in [(3, 4), (4, 5), (5, 6), (6, 7)])
        self.last, self.head = (
            conv(7, 8),
            nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c[1](F.relu(self.c[0](x))))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.c[3](F.relu(self.c[2](x))))
        x = F.relu(self.last(x))
        return self.head(x.mean((2, 3)))


def test_convolutions_in_a_row_are_paired_and_the_head_is_left_alone() -> None:
    found = find(Vgg(), images())
    assert {s.name: [step.name for step in s.chain.linears] for s in found.sites} == {
        ":c.1": ["c.0", "c.1"],
        ":c.3": ["c.2", "c.3"],
    }
    assert all(s.block == "" and s.post is not None for s in found.sites)


def test_residual_adds_in_the_root_are_found() -> None:
    class Flat(Two):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, C), nn.Linear(C, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((x + self.b(self.act(self.a(x)))).mean((2, 3)))

    (site,) = find(Flat(), images()).sites
    assert (site.name, site.block) == (":a", "")


class Dense(nn.Module):
    """DenseNet's layer: a list of maps in, a new map out."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, 5, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), conv(5, C)

    def forward(self, maps: list[Tensor]) -> Tensor:
        y = self.conv1(F.relu(self.bn1(torch.cat(maps, 1))))
        return self.conv2(F.relu(self.bn2(y)))


class Sized(nn.Module):
    """Its branch on tokens reads sizes of the map that they were made from."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(C, C), conv(C, C)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        y = self.fc(t).cumsum(1).transpose(1, 2).reshape(n, c, h, w)
        t = t + self.conv(y).flatten(2).transpose(1, 2)
        return t.transpose(1, 2).reshape(n, c, h, w)


def test_a_branch_that_reads_an_outer_size_where_it_is_no_chain_is_a_site() -> None:
    found = find(nn.Sequential(conv(3, C), Sized(), Sized()).eval(), images())
    assert [site.name for site in found.sites] == ["1", "2"]


class Shuffle(nn.Module):
    """ShuffleNet's: one half of the channels goes through the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(2, 3, 1), nn.ReLU(), conv(3, 3, groups=3), conv(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat((a, self.branch(b)), 1)
        return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def cat_takes_a_proxy() -> bool:
    try:
        fx.symbolic_trace(lambda maps: torch.cat(maps, 1))
    except TypeError:
        return False
    return True


@pytest.mark.skipif(not cat_takes_a_proxy(), reason="this PyTorch cannot trace torch.cat(maps)")
def test_chains_beside_concatenations_are_found() -> None:
    class Densely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Dense(C), Dense(2 * C)
            self.last = conv(3 * C, C, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = [x]
            for layer in (self.one, self.two):
                maps.append(layer(maps))
            return self.last(torch.cat(maps, 1))

    found = find(Net([Densely(), Shuffle()]), images())
    assert chains(found) == ["blocks.0.one", "blocks.0.two", "blocks.1.branch"]


class Few(nn.Module):
    """The first rows of a tensor; that is all of a smaller one."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :8]


FIXED = {
    "pool": nn.AdaptiveAvgPool2d(4),
    "maximum": nn.AdaptiveMaxPool2d((4, 4)),
    "upsample": nn.Upsample(size=4),
    "slice": Few(),
}


@pytest.mark.parametrize("module", FIXED.values(), ids=FIXED)
def test_a_chain_ends_before_what_makes_a_fixed_size(module: nn.Module) -> None:
    layers = [conv(3, C), nn.ReLU(), conv(C, C), nn.ReLU(), module, nn.Flatten()]
    site = find(nn.Sequential(*layers).eval(), torch.randn(2, 3, 16, 16)).sites[0]
    assert site.region.branch == ("_0", "_1", "_2", "_3")


def test_a_chain_whose_steps_compute_something_else_has_its_reason_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as an activation of large numbers only, of which random ones show nothing."""

    class Cap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp_max(100)

    caplog.set_level("INFO")
    model = nn.Sequential(conv(3, C), Cap(), conv(C, C)).eval()
    find(model, 1e6 * torch.randn(2, 3, 16, 16))
    assert "is no chain" in caplog.text


def test_token_mixing_chains_are_found_between_transposes() -> None:
    """Mixer's: a network along the tokens, between two transposes."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.tokens = nn.LayerNorm(C), nn.Sequential(nn.Linear(63, 8), nn.GELU())
            self.tokens.append(nn.Linear(8, 63))
            self.norm2, self.channels = nn.LayerNorm(C), Mlp(C)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    found = find(Net([Mixer()], "tokens"), images())
    assert chains(found) == ["blocks.0:channels", "blocks.0.tokens"]
    site = found.sites[-1]
    assert site.shape_in == (2, C, 63)
    assert site.region.add is None


class Fire(nn.Module):
    """SqueezeNet's, as wide at its end as at its start."""

    def __init__(self, i: int = C, o: int = 2) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = conv(i, 2, 1), conv(2, o, 1), conv(2, o)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def test_repeated_modules_that_keep_their_shape_can_be_dropped() -> None:
    found = find(Net([Fire(), Fire(C, 3), conv(6, C)]), images())
    assert [(s.name, s.branch, s.shape_in) for s in found.sites] == [
        ("blocks.0", None, (2, C, 9, 7)),
    ]
    assert whys(found).keys() == {"blocks.0", "blocks.1"}


def test_parallel_paths_that_are_linear_are_read_as_paths() -> None:
    class RepVgg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three, self.norm3 = conv(C, C), nn.BatchNorm2d(C)
            self.one, self.norm1 = conv(C, C, 1), nn.BatchNorm2d(C)
            self.norm0, self.act = nn.BatchNorm2d(C), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm3(self.three(x)) - self.norm0(x)
            return self.act(y + self.norm1(self.one(x)))

    (site,) = find(Net([RepVgg()]), images()).sites
    assert (site.name, site.branch, len(site.paths)) == ("blocks.0", None, 3)
    assert site.post is not None


def test_an_add_in_a_child_belongs_to_its_caller() -> None:
    """BERT's and older ViTs' output modules take the residual as an argument."""

    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(2 * C, C)

        def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
            return self.dense(hidden) + residual

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.output = nn.LayerNorm(C), nn.Linear(C, 2 * C), Output()

        def forward(self, x: Tensor) -> Tensor:
            return self.output(F.gelu(self.up(self.norm(x))), x)

    (site,) = find(Net([Layer()], "tokens"), images()).sites
    assert site.name == "blocks.0"
    assert [s.name for s in site.chain.linears] == ["up", "output.dense"]


def test_sizes_may_decide_conditions_but_the_batch_size_may_not() -> None:
    def by_size(self: Two, x: Tensor) -> Tensor:
        if x.shape[-1] < 4 or len(x.shape) != 4:
            raise ValueError("too small")
        side = int(x.shape[2] ** 0.5)
        return x + self.b(self.act(self.a(x))) * (side / 3)

    def by_count(self: Two, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x))) * float(x.shape[0])

    found = find(Net([block(by_size), block(by_count)]), images())
    assert chains(found) == ["blocks.0"]
    assert whys(found) == {"blocks.1": "its graph holds for one number of images only"}


def test_a_batchnorm_over_tokens_is_not_read_as_a_channel_norm() -> None:
    """A BatchNorm on (N, L, C) works on L: no norm of the channels."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm1d(63), nn.Linear(C, C), nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(self.norm(x)).relu())

    found = find(Net([Tokens()], "tokens"), images())
    (site,) = found.sites
    assert (site.name, site.region.add) == ("blocks.0:a", None)
    assert [type(s).__name__ for s in site.chain.steps] == ["LinearStep", "ActStep", "LinearStep"]


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


def test_tracing_restores_what_a_forward_changes_in_its_module() -> None:
    model = Net([Counting()])
    find(model, images())
    own = model.blocks[0]
    assert (own.count, own.steps.item(), own.total.item()) == (0, 0, 0)
    assert own.last is None


def fused() -> nn.Module:
    return nn.Sequential(
        randomise(block(usable, act=BatchNormAct2d(C))), Basic(conv(C, C), conv(C, C))
    )


@pytest.mark.parametrize("family", ["fused", "basic", "vit", "strided", "dropout", "foreign"])
def test_find_leaves_the_model_unchanged(family: str) -> None:
    if family in FAMILIES:
        model = network(family)
    else:
        model = Net([fused() if family == "fused" else block(foreign)])
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


def test_find_leaves_a_failing_model_unchanged() -> None:
    model = network("basic").train()
    with pytest.raises(RuntimeError):
        find(model, torch.randn(1, 5, 9, 7))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", every_other(FAMILIES))
def test_findings_do_not_depend_on_weights_or_images(family: str) -> None:
    """For a run is found again by its model's structure alone."""

    def summary(found: Findings) -> list[tuple]:
        return [
            (s.name, s.region, s.branch and [t.name for t in s.branch.steps]) for s in found.sites
        ]

    expected = summary(find(network(family), images()))
    assert summary(find(network(family, seed=7), images(3) * 5 + 1)) == expected
    fresh = FAMILIES[family]
    model = Net([fresh.make(), fresh.make()], fresh.form)
    assert summary(find(model, images())) == expected


def test_findings_do_not_depend_on_the_mode_or_the_batch() -> None:
    def summary(found: Findings) -> list[tuple]:
        return [(s.name, s.region, s.shape_in[1:], s.shape_out[1:]) for s in found.sites]

    model = network("bottleneck")
    expected = summary(find(copy.deepcopy(model).train(), images(1)))
    assert summary(find(model, images(4))) == expected


@pytest.mark.parametrize("model", [nn.Identity(), nn.Sequential(), nn.Linear(4, 2)])
def test_a_model_without_parts_has_a_reason(model: nn.Module) -> None:
    found = find(model, torch.randn(2, 4))
    assert [(u.name, u.kind) for u in found.unusable] == [("", type(model).__name__)]
    assert found.unusable[0].reason.startswith("nothing in it adds a branch")


def test_layers_in_a_row_are_paired_where_a_model_has_vectors_only() -> None:
    layers = [nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(9, 4)).eval()
    assert chains(find(model, torch.randn(2, 8))) == [":2", ":4"]
    assert chains(find(nn.Sequential(nn.Flatten(), model), torch.randn(2, 2, 4))) == []


WITHOUT = {
    "vectors": (
        nn.Sequential(
            nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
        ),
        "its chains are on vectors (N, C), which are taken for heads",
    ),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2)),
        "its chains are of transposed convolutions, whose output grid is finer",
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_chains_that_are_left_out_have_their_reason(case: str) -> None:
    model, reason = WITHOUT[case]
    found = find(model.eval(), torch.randn(2, 3, 8, 8))
    assert [(u.name, u.reason) for u in found.unusable] == [("", reason)]
    assert not found.sites


class Listed(Basic):
    """Adds to a list that it is given."""

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        y = super().forward(x)
        seen.append(y.mean((2, 3)))
        return y


class Wavenet(nn.Module):
    """A residual add, and a second output from within the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.skip = conv(C, C), conv(C, C), conv(C, C)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.inner(x).relu()
        return x + self.outer(z), self.skip(z)


class Held(nn.Module):
    """Runs its blocks as `run` says."""

    def __init__(self, blocks: list[nn.Module], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stem, self.blocks, self.run = conv(3, C), nn.ModuleList(blocks), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.blocks, self.stem(x))


def basic() -> Basic:
    return Basic(conv(C, 6), conv(6, C))


def test_a_list_that_a_forward_changes_is_named() -> None:
    def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for block in blocks:
            x = block(x, seen)
        return sum(seen) + x.mean((2, 3))

    blocks: list[nn.Module] = [Listed(conv(C, 6), conv(6, C)) for _ in range(2)]
    found = find(Held(blocks, run), images())
    assert found.sites == ()
    assert {u.reason for u in found.unusable} == {
        "it cannot be traced: its forward changes a list or a dictionary that it is given"
    }


def test_a_branch_that_is_read_outside_has_that_reason() -> None:
    def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        total = 0
        for block in blocks:
            x, part = block(x)
            total = total + part
        return total + x

    found = find(Held([Wavenet(), Wavenet()], run), images())
    reasons = {u.reason for u in found.unusable if u.name.startswith("blocks")}
    assert reasons
    assert not any("no residual add" in reason for reason in reasons)


def test_blocks_whose_parts_are_called_are_not_said_to_be_never_called() -> None:
    def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = block.forward(x)
        return x

    found = find(Held([basic(), basic()], run), images())
    names = [site.name for site in found.sites]
    assert any("blocks.0" in name for name in names)
    assert not any(u.reason == "the model never calls it" for u in found.unusable)


class Skipped(Basic):
    """Left out at random in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(()).item() < 0.5:
            return x
        return super().forward(x)


def test_blocks_left_out_at_random_in_training_are_all_found() -> None:
    def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    blocks: list[nn.Module] = [Skipped(conv(C, 6), conv(6, C)) for _ in range(5)]
    found = find(Held(blocks, run), images())
    assert found.modal == {f"blocks.{number}" for number in range(5)}


class Hybrid(nn.Module):
    """A residual block in front of branches that its own forward adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = Basic(conv(C, C), conv(C, C)), Basic(conv(C, C), conv(C, C))
        self.parts = nn.ModuleList(Mlp(C) for _ in range(2))
        self.head, self.other = nn.Linear(C, 5), nn.Linear(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.inner(x)  # the smaller residual is the site
        x = x.flatten(2).transpose(1, 2)
        for part in self.parts:
            x = x + part(x)
        x = x.mean(1)
        return self.head(x) + self.other(x)  # two heads, of which none is a branch


def test_a_module_with_residual_children_has_branches_of_its_own() -> None:
    found = find(randomise(Hybrid()).eval(), torch.randn(3, C, 9, 7))
    assert [s.name for s in found.sites] == [":parts.0", ":parts.1", "stem", "inner"]
    assert all(s.branch is not None for s in found.sites)
    assert [(u.name, u.reason) for u in found.unusable] == [(":inner", "it holds the site inner")]


class Resized(nn.Module):
    """Attention that adds sizes of its tensor up, as those that rotate queries do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1).view(x.shape[:1] + (1,) * (x.dim() - 2) + x.shape[-1:])
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(C), Resized()
        self.norm2, self.mlp = nn.LayerNorm(C), nn.Sequential(nn.Linear(C, 9), nn.Linear(9, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def test_sizes_that_are_added_are_no_branch() -> None:
    found = find(nn.Sequential(Around(), Around()).eval(), torch.randn(2, 7, C))
    assert [s.name for s in found.sites] == ["0:attn", "0:mlp", "1:attn", "1:mlp"]


class OfItsSkipsSize(nn.Module):
    """A branch that is brought to the size of its skip, as in networks that pool their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pool = nn.LayerNorm(C), nn.AvgPool1d(2)
        self.proj, self.mix = nn.Linear(C, C), nn.Linear(2 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        skip = self.pool(self.proj(x).transpose(1, 2)).transpose(1, 2)
        y = self.mix(torch.cat([x, x.flip(1)], 2))
        return skip + y[:, : skip.shape[1]].reshape(skip.shape)


def test_what_reads_the_size_of_a_skip_does_not_start_at_it() -> None:
    model = nn.Sequential(OfItsSkipsSize(), OfItsSkipsSize()).eval()
    found = find(model, torch.randn(2, 8, C))
    for site in found.sites:
        node = next(n for n in found.graphs[site.block].nodes if n.name == site.region.entry)
        assert str(node.target) in ("x", "norm")


class Tries(nn.Module):
    """It calls each layer with a further argument, and without where the layer takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            layer for _ in range(3) for layer in (conv(C, C), nn.BatchNorm2d(C), nn.ReLU())
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            try:
                x = layer(x, lengths=lengths)
            except TypeError:
                x = layer(x)
        return x


def test_calls_that_a_forward_tries_in_vain_leave_nothing() -> None:
    found = find(Tries().eval(), torch.randn(2, C, 9, 7))
    assert chains(found)
    assert found.unusable == ()


class FlexibleNorm(nn.LayerNorm):
    """A LayerNorm for maps and tokens."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(x)


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = FlexibleNorm(C), nn.Linear(C, C)
        self.attn = nn.MultiheadAttention(C, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attn(y, y, y, need_weights=False)[0] * torch.sigmoid(self.gate(y))


@pytest.mark.parametrize("tokens", [C - 2, C])
def test_as_many_tokens_as_channels_are_still_tokens(tokens: int) -> None:
    found = find(nn.Sequential(Square(), Square()).eval(), torch.randn(2, tokens, C))
    assert [site.layout for site in found.sites] == ["last", "last"]


class OfPositions(nn.Module):
    """It computes of a table of its own, and takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.coords = (
            nn.Linear(2, 9),
            nn.Linear(9, C),
            nn.Parameter(torch.rand(7, 2)),
        )

    def forward(self) -> Tensor:
        return self.b(F.relu(self.a(self.coords)))


class Positioned(Mlp):
    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.positions = OfPositions()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.positions())


class LowRank(nn.Module):
    """An addition to a weight, as LoRA's."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, C)), nn.Parameter(torch.randn(C, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def test_modules_that_take_nothing_are_no_sites() -> None:
    model = nn.Sequential(Positioned(C), Positioned(C)).eval()
    found = find(model, torch.randn(2, 7, C))
    assert not [s.name for s in found.sites if "positions" in s.name]


def test_a_parametrised_weight_is_no_site() -> None:
    model = nn.Sequential(Mlp(C), nn.Linear(C, C))
    parametrize.register_parametrization(model[1], "weight", LowRank())
    found = find(model.eval(), torch.randn(2, 7, C))
    assert not [s.name for s in found.sites if "parametrizations" in s.name]


class Windowed(nn.Module):
    """Its parent writes down how many samples its windows are of."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b = 0, nn.Linear(C, 2 * C), nn.Linear(2 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.view(self.n, -1, C)
        return x + self.b(F.relu(self.a(windows))).view(x.shape)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Windowed(), Windowed()])

    def forward(self, x: Tensor) -> Tensor:
        y = x.view(-1, C)
        for block in self.blocks:
            block.n = len(x)
            y = block(y)
        return y.view(x.shape)


def test_a_block_that_fails_without_its_parent_is_refused() -> None:
    found = find(Windows().eval(), torch.randn(2, 7, C))
    assert not found.sites
    assert (
        "its forward fails where it is called alone (RuntimeError: shape" in whys(found)["blocks.0"]
    )


class ScaledAdd(nn.Module):
    """A residual block that adds by a factor."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mlp, self.add = Mlp(C), add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.mlp(x))


SCALED_ADDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "function": lambda x, y: torch.add(x, y, alpha=0.5),
    "method": lambda x, y: x.add(y, alpha=0.5),
    "in place": lambda x, y: y.add_(x, alpha=0.5),
    "named": lambda x, y: torch.add(x, other=y, alpha=0.5),
    "all named": lambda x, y: torch.add(input=x, other=y, alpha=0.5),
    "named in another order": lambda x, y: torch.add(alpha=0.5, other=y, input=x),
    "method, named": lambda x, y: x.add(other=y, alpha=0.5),
    "in place, named": lambda x, y: y.add_(alpha=0.5, other=x),
    "old": lambda x, y: torch.add(x, 0.5, y),
    "old method": lambda x, y: x.add(0.5, y),
    "of the skip": lambda x, y: torch.add(y, x, alpha=0.5),
}


@pytest.mark.filterwarnings("ignore:This overload of add:UserWarning")
@pytest.mark.parametrize("name", SCALED_ADDS)
def test_an_add_by_a_factor_is_residual(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(ScaledAdd(SCALED_ADDS[name]) for _ in range(2))).eval()
    x = torch.randn(2, 7, C)
    found = find(model, x)
    assert chains(found) == ["0", "1"]
    assert not found.unusable
    for site in found.sites:
        assert site.region.add is not None
        assert site.skip is not None
        y = model.get_submodule(site.name)(x.clone())
        torch.testing.assert_close(site.chain.keep(x) + site.skip.keep(x), y)


def test_an_instance_norm_without_weights_is_a_step_of_its_module() -> None:
    blocks = (Basic(conv(C, C), conv(C, C), norm=nn.InstanceNorm2d) for _ in range(2))
    for site in find(nn.Sequential(*blocks).eval(), torch.randn(2, C, 9, 7)).sites:
        assert [step.name for step in site.chain.steps] == ["conv1", "bn1", "act1", "conv2", "bn2"]


class Squashing(nn.Module):
    """It adds its input to what it computes of it, without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        return torch.tanh(x) + x


def test_an_add_of_the_identity_behind_a_function_ends_no_search() -> None:
    model = nn.Sequential(ScaledAdd(torch.add), Squashing(), ScaledAdd(torch.add)).eval()
    found = find(model, torch.randn(2, 7, C))
    assert {"0", "2"} <= {site.name for site in found.sites}


class Backcast(nn.Module):
    """N-BEATS' block: a pair of outputs, so that its caller's graph has its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)])
        self.theta = nn.Linear(16, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = layer(x).relu()
        y = self.theta(x)
        return y[:, :12], y[:, 12:]


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Backcast(), Backcast()])

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, :8])
        for block in self.blocks:
            back, ahead = block(x)
            x, total = x - back, total + ahead
        return total


def test_a_module_whose_forward_is_part_of_a_site_s_block_is_no_block_of_its_own() -> None:
    torch.manual_seed(0)
    model, x = Forecast().eval(), torch.randn(4, 12)
    findings, expected = find(model, x), model(x)
    assert [site.block for site in findings.sites] == ["", ""]
    for site in findings.sites:
        candidate = next(iter(proposals(findings.traced(site, model), CandidateSettings())))
        net = Supernet(model, findings, {site.name: [candidate]}).eval()
        net.choose({site.name: candidate.label})
        net.set_lambda(1.0)
        assert not torch.allclose(net(x), expected)  # so the site runs


class Undecided(nn.Module):
    """Residual adds in a forward that cannot be traced, beside chains that can."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            raise ValueError
        for part in self.parts:
            x = x + part(x)
        return x


def test_a_model_that_cannot_be_traced_is_told_beside_chains_within_it() -> None:
    findings = find(Undecided().eval(), torch.randn(2, 5, C))
    assert [site.name for site in findings.sites] == ["parts.0", "parts.1"]
    (unusable,) = findings.unusable
    assert unusable.name == ""
    assert unusable.reason.startswith("it cannot be traced: what `any")
