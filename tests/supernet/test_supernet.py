from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.families import FAMILIES, Basic, C, Net, ViT, conv, error, images, network, randomise
from tests.sampling import every_other
from updp.blocks import find
from updp.candidates import Drop, baseline_macs, inherit_cuts, proposals
from updp.measure import runner
from updp.recipe import CandidateSettings, MeasureSettings, MergeSettings
from updp.stages.merge import verify
from updp.supernet import KEEP, Supernet


def supernet(model: nn.Module, x: Tensor | None = None, count: int = 2) -> Supernet:
    """With the first candidates of each site, random norms, in evaluation."""
    findings = find(model, images() if x is None else x)
    net = Supernet(model, findings, {s.name: list(inherit_cuts(s))[:count] for s in findings.sites})
    for switch in net.switches.values():
        randomise(switch.forms)
    return net.eval()


def first(net: Supernet) -> dict[str, str]:
    return {name: switch.labels[0] for name, switch in net.switches.items()}


@pytest.fixture
def net() -> Supernet:
    return supernet(network("basic"))


def test_sites_that_are_not_named_keep_their_baseline(net: Supernet) -> None:
    net.choose({"blocks.1": "conv1+conv2"})
    assert [s.choice for s in net.switches.values()] == [KEEP, "conv1+conv2"]
    assert net.pruned_blocks() == ["blocks.1"]
    net.choose({"blocks.0": "conv1+conv2", "blocks.1": KEEP})
    assert net.pruned_blocks() == ["blocks.0"]
    net.choose({})
    assert net.pruned_blocks() == []


def test_wrong_choices_are_named(net: Supernet) -> None:
    with pytest.raises(ValueError, match=r"no such site: blocks\.7"):
        net.choose({"blocks.7": KEEP})
    with pytest.raises(ValueError, match=r"site blocks\.1 has no candidate 'nonsense'"):
        net.choose({"blocks.1": "nonsense"})


def test_a_site_without_candidates_stays_the_users_own_object() -> None:
    model = network("basic")
    block, other = model.blocks
    kinds = type(block), type(other)
    findings = find(model, images())
    site = findings.sites[1]
    net = Supernet(model, findings, {site.name: list(inherit_cuts(site)), "blocks.0": []})
    assert list(net.switches) == ["blocks.1"]
    assert [*model.blocks] == [block, other]
    assert (type(block), type(other)) == kinds
    assert ["forward" in vars(b) for b in model.blocks] == [False, True]


def test_a_site_may_be_kept_for_fits_without_any_candidate() -> None:
    model, x = network("basic"), images()
    wanted = model(x)
    findings = find(model, x)
    site = findings.sites[1]
    net = Supernet(model, findings, {site.name: list(inherit_cuts(site))}, kept=["blocks.0"]).eval()
    assert (list(net.switches), list(net.kept)) == (["blocks.1"], ["blocks.0"])
    assert torch.equal(net(x), wanted)
    with pytest.raises(ValueError, match=r"no such site: blocks\.0"):
        net.choose({"blocks.0": "drop"})
    net.choose(first(net))
    assert net.pruned_blocks() == ["blocks.1"]
    assert error(net.merged()(x), net(x)) < 1e-5
    assert "forward" not in vars(net.merged().blocks[0])


@pytest.mark.parametrize("family", [n for n, f in FAMILIES.items() if f.sites])
def test_base_names_are_those_of_the_users_state_dict(family: str) -> None:
    model = network(family)
    expected = {f"model.{n}": t.clone() for n, t in model.state_dict().items()}
    weights = supernet(model).weights()
    assert {n for n in weights if n.startswith("model.")} == expected.keys()
    assert all(torch.equal(weights[n], t) for n, t in expected.items())
    own = weights.keys() - expected.keys()
    assert own
    assert {n.split(".")[0] for n in own} == {"site"}
    assert {n.rpartition(".")[2] for n in own} == {
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


@pytest.mark.parametrize("family", ["basic", "strided", "vit", "convnext", "scaled_learnt"])
def test_weights_travel_through_a_file(family: str, tmp_path: Path) -> None:
    net, other = supernet(network(family)), supernet(network(family, seed=5))
    x = images()
    net.choose(first(net))
    other.choose(first(other))
    assert not torch.equal(net(x), other(x))
    save_file({n: t.contiguous() for n, t in net.weights().items()}, tmp_path / "w.safetensors")
    other.load_weights(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(net(x), other(x))
    net.choose({})
    other.choose({})
    assert torch.equal(net(x), other(x))


def test_weights_of_other_names_are_refused(net: Supernet) -> None:
    weights = net.weights()
    weights.pop("model.head.bias")
    weights["model.foot.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"model\.foot\.bias.*model\.head\.bias"):
        net.load_weights(weights)


def test_weights_are_the_present_ones_after_a_move(net: Supernet) -> None:
    net.double()
    floats = [t for t in net.weights().values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float64}
    net.train()
    net(images().double())
    assert net.weights()["model.blocks.0.bn1.num_batches_tracked"] == 1


def test_tied_weights_and_buffers_that_are_not_saved() -> None:
    model = network("basic")
    model.blocks[1].conv1 = model.blocks[0].conv1
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    net = supernet(model)
    names = net.weights().keys()
    assert "model.blocks.0.conv1.weight" in names
    assert "model.blocks.1.conv1.weight" not in names
    assert "model.scratch" not in names
    assert net.baseline().blocks[1].conv1.weight.shape == (6, 4, 3, 3)


def test_the_baseline_is_the_users_class_with_trained_weights(net: Supernet) -> None:
    net.choose(first(net))
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    before = net.baseline().state_dict()
    net(images()).square().sum().backward()
    optimiser.step()
    baseline = net.baseline()
    assert type(baseline) is Net
    assert [type(m) for m in baseline.modules()] == [type(m) for m in network("basic").modules()]
    after = baseline.state_dict()
    assert not torch.equal(after["blocks.0.conv1.weight"], before["blocks.0.conv1.weight"])
    x = images()
    net.choose({})
    assert torch.equal(net.eval()(x), baseline.eval()(x))
    with torch.no_grad():
        baseline.head.weight.zero_()
    assert net.model.head.weight.any()


def test_a_deep_copy_is_independent_and_whole(net: Supernet) -> None:
    net.choose(first(net))
    x = images()
    expected = net(x).clone()
    other = copy.deepcopy(net)
    assert torch.equal(other(x), expected)
    mine = {t.data_ptr() for t in net.weights().values()}
    assert not mine & {t.data_ptr() for t in other.weights().values()}
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.mul_(2)
    other.choose({"blocks.1": "conv1+conv2"})
    assert torch.equal(net(x), expected)
    assert net.pruned_blocks() == ["blocks.0", "blocks.1"]
    # within the copy everything still hangs together
    assert torch.equal(other.weights()["model.blocks.0.conv1.weight"].sum(), 2 * weight_sum(net))
    assert (
        error(other.merged(torch.float64)(x.double()), copy.deepcopy(other).double()(x.double()))
        < 1e-12
    )
    other.choose({})
    assert torch.equal(other(x), other.baseline()(x))


def weight_sum(net: Supernet) -> Tensor:
    return net.weights()["model.blocks.0.conv1.weight"].sum()


def test_blocks_keep_their_class_and_where_nothing_is_pruned_their_forward(net: Supernet) -> None:
    net.choose({"blocks.1": "conv1+conv2"})
    merged = net.merged()
    own = network("basic")
    assert type(merged) is Net
    assert [type(b) for b in merged.blocks] == [type(b) for b in own.blocks]
    assert ["forward" in vars(b) for b in merged.blocks] == [False, True]
    for name, tensor in own.blocks[0].state_dict().items():
        assert torch.equal(tensor, merged.blocks[0].state_dict()[name])


@pytest.mark.parametrize("family", ["basic", "basic_prelu", "strided_pooled"])
def test_merging_leaves_the_supernet_alone(family: str) -> None:
    net = supernet(network(family))
    net.choose(first(net))
    x = images()
    before, modules = net(x), list(net.modules())
    merged = net.merged(torch.float64)
    with torch.no_grad():
        for tensor in (*merged.parameters(), *merged.buffers()):
            tensor.zero_()
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert torch.equal(net(x), before)


def test_merging_in_training_mode_is_an_error_that_says_so(net: Supernet) -> None:
    net.choose(first(net))
    with pytest.raises(ValueError, match="training mode"):
        net.train().merged()


def test_training_statistics_are_refreshed_where_a_form_runs(net: Supernet) -> None:
    net.choose({"blocks.0": "conv1+conv2"})
    before = {n: t.clone() for n, t in net.weights().items()}
    net.train()
    net(images())
    changed = {n for n, t in net.weights().items() if not torch.equal(t, before[n])}
    sites = {n.rpartition(".")[0].removesuffix(".end_norm") for n in changed if "site." in n}
    assert "site.blocks.0.conv1+conv2" in sites
    assert not any("conv1(1x1)" in n or "site.blocks.1" in n for n in changed)
    assert not any(n.startswith("model.blocks.0") for n in changed)  # the form has its own norms
    assert "model.blocks.1.bn1.running_mean" in changed


def test_calibrate_keeps_the_mode_and_every_weight_of_the_user(net: Supernet) -> None:
    net.train()
    before = {n: t.clone() for n, t in net.weights().items()}
    net.calibrate(images())
    assert net.training
    changed = {n for n, t in net.weights().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(n.startswith("site.") for n in changed)
    assert not any(s._forward_pre_hooks for s in net.switches.values())
    assert not any(p.grad_fn for p in net.parameters())


def test_a_model_in_float64_stays_so() -> None:
    model = network("strided").double()
    x = images().double()
    expected = model(x)
    net = supernet(model, x)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    net.choose(first(net))
    net.set_lambda(0.0, "anneal")
    assert error(net(x), expected) < 1e-12
    net.set_lambda(1.0)
    assert error(net.merged(torch.float64)(x), net(x)) < 1e-12


class Fourier(nn.Module):
    """A filter in the frequency domain, with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(C, 1, 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[2:])


def test_complex_weights_keep_their_imaginary_part() -> None:
    block = Basic(conv(C, C), conv(C, C))
    model = nn.Sequential(conv(3, C), Fourier(), block, nn.Flatten(), nn.Linear(C * 63, 5)).eval()
    net = supernet(model)
    with torch.no_grad():
        assert error(net.merged()(images()), net(images())) < 1e-5  # nothing pruned
        net.choose(first(net))
        merged = net.merged()
        assert error(merged(images()), net(images())) < 1e-5
    assert merged[1].filter.dtype == torch.complex64
    runner(merged, (images(),), MeasureSettings())()


def test_hooks_on_what_is_kept_still_run() -> None:
    model = network("vit")
    calls: list[nn.Module] = []
    model.blocks[0].attn.register_forward_hook(lambda module, *_: calls.append(module))
    net = supernet(model)
    calls.clear()
    net.choose(first(net))
    net(images())
    net.merged()(images())
    assert [type(m).__name__ for m in calls] == ["Attention"] * 2


NETWORKS = {
    "resnet34": (16, 0, 64, {}),
    "mobilenetv2_100": (16, 0, 64, {}),
    "convnext_tiny": (18, 0, 64, {}),
    "deit_tiny_patch16_224": (12, 12, 64, {"img_size": 64}),
}


@pytest.mark.parametrize("name", every_other(NETWORKS))
def test_known_networks_are_unchanged_until_pruned_and_merge_exactly(name: str) -> None:
    count, lost, size, options = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=10, **options)).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
    findings = find(model, x)
    chains = [site for site in findings.sites if site.branch is not None]
    others = [site.name.rpartition(":")[2] for site in findings.sites if site.branch is None]
    assert (len(chains), others, findings.unusable) == (count, ["attn"] * lost, ())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    candidates = {}
    for site in chains[::3]:
        candidates[site.name] = [
            c for c in inherit_cuts(site) if c.macs(site) <= baseline_macs(site)
        ][:1]
        assert candidates[site.name]
    net = Supernet(model, findings, candidates).eval()
    for switch in net.switches.values():
        randomise(switch.forms)
    with torch.no_grad():
        assert torch.equal(net(x), expected)
        net.choose(first(net))
        for gate in ("blend", "anneal"):
            net.set_lambda(0.0, gate)
            assert error(net(x), expected) < 1e-5
        net.set_lambda(1.0)
        assert error(net.merged()(x), net(x)) < 1e-5
        merged = net.merged(torch.float64)
        assert error(merged(x.double()), net.double()(x.double())) < 1e-12
    assert type(merged) is type(model)


class Rooted(nn.Module):
    """A residual add in the network's own forward, around a block that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, C), conv(C, 6), conv(6, C)
        self.block, self.head = Basic(conv(C, C), conv(C, C)), nn.Linear(C, 5)
        self.again = nn.ModuleList([self.block])  # the same, under another name

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).relu())
        return self.head(self.again[0](self.block(x)).mean((2, 3)))


class Crossed(nn.Module):
    """Blocks that are told a mask, with chains inside branches that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 1), nn.Linear(C, 5)
        self.blocks = nn.ModuleList([ViT(C), ViT(C)])
        self.blocks[1].attn.qkv = nn.Sequential(  # type: ignore[union-attr]
            nn.Linear(C, 6), nn.GELU(), nn.Linear(6, 3 * C)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        mask = torch.ones(x.shape[1], x.shape[1], device=x.device).tril().bool()
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (Rooted, {"": ["drop", "inherit", "narrow"], "block": ["drop", "inherit", "narrow"]}),
        (
            Crossed,
            {
                "blocks.0": ["drop", "fold", "inherit", "narrow"],
                "blocks.1": ["drop", "inherit", "narrow"],
                "blocks.1.attn.qkv": ["inherit", "narrow"],
            },
        ),
    ],
)
def test_roots_shared_blocks_masks_and_blocks_within_blocks(
    make: type[nn.Module], sites: dict[str, list[str]]
) -> None:
    torch.manual_seed(0)
    model, x = randomise(make()).eval(), images()
    expected, state = model(x), copy.deepcopy(model.state_dict())
    findings = find(model, x)
    settings = CandidateSettings(drop="always", fold_norms=True)
    options, kinds = {}, {}
    for site in findings.sites:
        traced = findings.traced(site, model)
        options[site.name] = list(proposals(traced, settings))
        kinds.setdefault(site.block, set()).update(c.kind for c in options[site.name])
    assert kinds == {block: set(found) for block, found in sites.items()}
    net = Supernet(model, findings, options).eval()
    net.calibrate(x)
    with torch.no_grad():
        assert error(net(x), expected) < 1e-6
        plain = net.baseline()
        assert type(plain) is make
        assert all(torch.equal(t, state[n]) for n, t in plain.state_dict().items())
        for i in range(7):
            net.choose({n: found[i % len(found)].label for n, found in options.items()})
            assert error(net.merged()(x), net(x)) < 1e-5
            assert error(net.merged(torch.float64)(x.double()), net(x).double()) < 1e-5
            checks = verify(net, x, MergeSettings())
            assert {c.where for c in checks} == {*net.pruned_blocks(), ""}
            assert error(net(x), expected) > 1e-3
        net.choose({})
        assert error(net(x), expected) < 1e-6


def test_what_replaces_frozen_parameters_is_frozen() -> None:
    model = network("basic")
    model.blocks[0].requires_grad_(False)
    net = supernet(model, count=9)
    frozen, free = (net.switches[f"blocks.{number}"].forms for number in (0, 1))
    for form in [*frozen, *free]:
        form.set_shape("reserved")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in free.parameters())
    net.choose(first(net))
    merged = net.merged()
    assert not any(p.requires_grad for p in merged.blocks[0].parameters())
    assert all(p.requires_grad for p in merged.blocks[1].parameters())
    part = net.merged_site("blocks.0", torch.float32)
    assert not any(p.requires_grad for p in part.parameters())


def test_what_replaces_a_partly_frozen_site_can_be_trained() -> None:
    model = network("basic")
    model.blocks[0].conv1.requires_grad_(False)
    net = supernet(model)
    net.choose(first(net))
    assert all(p.requires_grad for p in net.merged().blocks[0].parameters())


class Smoothed(nn.Module):
    """A branch without parameters, in a block that has some."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.bn = nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x + self.pool(x))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_site_without_parameters_is_frozen_with_its_block(frozen: bool) -> None:
    model = nn.Sequential(Smoothed()).requires_grad_(not frozen).eval()
    x = torch.randn(2, C, 9, 7)
    findings = find(model, x)
    (site,) = findings.sites
    net = Supernet(model, findings, {site.name: [Drop()]}).eval()
    net.choose({site.name: "drop"})
    assert {p.requires_grad for p in net.merged().parameters()} == {not frozen}
