"""What holds for every candidate of every kind on every family of blocks."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.candidates.supernets import (
    KINDS,
    Case,
    case,
    choices,
    features,
    merge,
    output_and_macs,
    restored,
)
from tests.families import FAMILIES, RANDOM, Family, error, ring
from tests.sampling import every_other
from updp.blocks import to_layout
from updp.blocks.surgery import extract
from updp.candidates import Form, Inherit, read_candidate
from updp.candidates.parts.channel_norm import ChannelNorm
from updp.supernet import GATES, Supernet

EXACT = 1e-12


# Kinds that differ from `inherit` only there: where an activation has no norm before it, and where
# no activation ends the block.
UNNORMED = (
    *("convnext", "vit", "mlp_tokens", "mlp_nhwc", "to_last", "scaled", "scaled_learnt"),
    *RANDOM,
)


# No chains: paths that are multiplied or joined.
GATED = ("gated", "gated_map", "wavenet", "concatenated")


# Where nothing inside the branch acts on each channel alone, or a weight is made in the forward.
UNCUT = (
    *("basic_groups", "basic_groupnorm", "nhwc_grouped", "excited", "standardised", "windows"),
    *("repvgg", "repvgg_strided", "repvgg_tokens", "shuffled", *GATED),
)


def applies(kind: str, name: str, family: Family) -> bool:
    if kind == "drop":
        return family.skip is not None or name == "inverted_plain"
    if kind == "narrow":
        return bool(family.sites) and name not in (*UNCUT, *RANDOM)  # it has noise of its own
    if kind == "fuse":
        return name in ("repvgg", "repvgg_strided", "repvgg_tokens")
    if kind == "linear":
        return name in ("vit", "windows", *GATED)
    if kind == "attention":
        return name == "vit"
    if kind == "fold":
        return name in ("vit", "dropout", "windows")
    linearised = kind != "inherit-linearised" or name in UNNORMED
    return bool(family.sites) and linearised and not (kind == "inherit-bare" and family.post)


CASES = [
    (kind, name)
    for kind, (name, family) in product(KINDS, FAMILIES.items())
    if applies(kind, name, family)
]
# Of these the quick tests take half of the families, all of which `inherit` meets there.
SAMPLED = ("drop", "inherit-bare", "inherit-linearised", "narrow")
QUICK = [case for case in CASES if case[0] not in SAMPLED]
SOME = every_other(case for case in CASES if case[0] in SAMPLED)


@pytest.fixture(scope="module", params=[*QUICK, *SOME], ids="-".join)
def made(request: pytest.FixtureRequest) -> Case:
    return case(*request.param)


def test_every_site_has_candidates_with_unique_labels(made: Case) -> None:
    if made.kind.startswith("inherit"):
        assert list(made.candidates) == list(made.family.sites)
    assert made.candidates
    for options in made.candidates.values():
        labels = [c.label for c in options]
        assert labels
        assert len(set(labels)) == len(labels)


def test_json_round_trip_gives_an_equal_candidate(made: Case) -> None:
    for options in made.candidates.values():
        for candidate in options:
            assert read_candidate(json.loads(json.dumps(candidate.to_json()))) == candidate


def test_macs_are_those_of_the_merged_operators(made: Case) -> None:
    for site in made.findings.sites:
        for candidate in made.candidates.get(site.name, []):
            if not isinstance(candidate, Inherit):
                continue
            _, *size = site.shape_in
            channels = size.pop(0 if site.branch.layout_in == "first" else -1)
            if len(size) != site.branch.dims:  # tokens are one column
                size = [size[0], 1]
            merged = made.net.switches[site.name].form(candidate.label).merged()
            assert merged.operators[0].in_channels == channels
            total = 0
            for operator in merged.operators:
                size, macs = output_and_macs(operator, size)
                total += macs
            assert candidate.macs(site) == total, (site.name, candidate.label)


def test_keep_is_the_baseline(made: Case) -> None:
    net, base, x = made.net, made.base, made.images
    net.choose({})
    for training in (False, True):
        with restored(net, base):
            with seeded(3):
                expected = base.train(training)(x)
            with seeded(3):
                assert torch.equal(net.train(training)(x), expected)
            for name, buffer in base.named_buffers():
                assert torch.equal(net.weights()[f"model.{name}"], buffer), name


@pytest.mark.parametrize("gate", GATES)
def test_lambda_0_is_the_baseline(made: Case, gate: str) -> None:
    net, base, x = made.double
    for choice in choices(net):
        net.choose(choice)
        net.set_lambda(0.0, gate)
        assert error(features(net, x), features(base, x)) <= EXACT, choice


@pytest.mark.parametrize("gate", GATES)
def test_lambda_0_is_the_baseline_in_training(made: Case, gate: str) -> None:
    """Up to the noise of drop path, which a pruned block does not have."""
    net, base, x = made.double
    with restored(net, base):
        net.train()
        base.train()
        for choice in choices(net):
            net.choose(choice)
            net.set_lambda(0.0, gate)
            with seeded(3), without_noise(net, base, only=gate == "anneal"):
                expected = features(base, x)
            with seeded(3), without_noise(net, base, only=gate == "anneal"):
                assert error(features(net, x), expected) <= EXACT, choice


@pytest.mark.parametrize("gate", GATES)
def test_lambda_reaches_1_without_a_step(made: Case, gate: str) -> None:
    net, base, x = made.double
    for choice in choices(net):
        net.choose(choice)
        net.set_lambda(1.0, gate)
        end = features(net, x)
        net.set_lambda(1 - 1e-9, gate)
        assert error(features(net, x), end) <= 1e-7, choice
        assert made.kind == "fuse" or error(end, features(base, x)) > 1e-3, choice


def test_gradients_reach_the_shared_weights_and_the_norms(made: Case) -> None:
    net, x = made.net, made.images
    ways = [("blend", 1.0), ("blend", 0.5), ("anneal", 0.5)]
    with restored(net):
        net.train()
        for choice, (gate, progress) in product(choices(net), ways):
            net.choose(choice)
            net.set_lambda(progress, gate)
            net.zero_grad()
            net(x).square().sum().backward()
            for name, label in choice.items():
                inherits = made.kind.startswith("inherit")
                chain = net.sites[name].branch if inherits else None
                shared = [s.module.weight for s in chain.linears] if chain else []
                own = [n.weight for n in norms_of(net.switches[name].form(label))][-1:]
                for parameter in (*shared, *own):
                    assert parameter.grad is not None, (name, label, gate)
                    assert parameter.grad.isfinite().all()
                    assert parameter.grad.any(), (name, label, gate)


def test_forms_own_nothing_but_their_norms(made: Case) -> None:
    base = {id(getattr(owner, key)) for owner, key in made.net._base.values()}
    for switch in made.net.switches.values():
        for form in switch.forms:
            inner = (m for m in form.modules() if m is not form and not any(m.children()))
            kinds = {type(m).__name__ for m in inner}
            own_kinds = {"ChannelNorm", "LinearBranch", "ModuleList"}
            assert made.kind in ("narrow", "attention", "linear") or kinds <= own_kinds
            own = [*form.parameters(), *form.state_dict(keep_vars=True).values()]
            assert own or made.kind == "fuse"
            assert not base & {id(t) for t in own}


def test_merged_is_exact_with_its_border(made: Case) -> None:
    net64, _, x64 = made.double
    for choice in choices(made.net):
        for net, x, tolerance in ((net64, x64, EXACT), (made.net, made.images, 1e-5)):
            net.choose(choice)
            net.set_lambda(1.0)
            with torch.no_grad():
                merged = merge(made.net, choice, x.dtype)
                actual, expected = features(merged, x), features(net, x)
                assert error(merged(x), net(x)) <= tolerance, choice
            assert error(actual, expected) <= tolerance, choice
            assert error(ring(actual), ring(expected)) <= tolerance, choice


def test_merged_holds_ordinary_modules_only(made: Case) -> None:
    for choice in choices(made.net):
        merged = merge(made.net, choice)
        assert not merged.training
        for path in made.net.pruned_blocks():
            block = merged.get_submodule(path)
            assert type(block) is type(made.base.get_submodule(path))
            assert "updp" not in block.forward.code
            for name, module in block.named_modules():
                assert not type(module).__module__.startswith("updp")
                stays = made.kind in ("drop", "narrow") or name.startswith("shortcut")
                if not stays:
                    assert not isinstance(module, nn.modules.batchnorm._BatchNorm)


def test_merged_can_be_copied_and_switched_between_modes(made: Case) -> None:
    *_, choice = choices(made.net)
    merged = merge(made.net, choice)
    assert torch.equal(copy.deepcopy(merged).train().eval()(made.images), merged(made.images))


def test_calibrated_norms_know_what_they_see(made: Case) -> None:
    """Their statistics are those of their input, and the last one is a least-squares line."""
    net, _, x = made.double
    with torch.no_grad(), restored(net):
        net.set_lambda(1.0)
        net.calibrate(x)
        for name, switch in net.switches.items():
            for label in switch.labels:
                net.choose({name: label})
                form = switch.form(label)
                norms = norms_of(form)
                if made.kind in ("fuse", "narrow", "attention", "linear"):
                    assert norms == []
                    continue
                seen = _inputs(net, name, label, x)
                assert len(seen) == len(norms) + 1
                for norm, (rows, _) in zip(norms, seen[1:], strict=True):
                    assert error(norm.running_mean, rows.mean(0)) <= 1e-9
                    assert error(norm.running_var, rows.var(0, unbiased=False)) <= 1e-9
                rows, line = seen[-1]
                if made.kind == "fold":  # its line is to the norm that it replaces
                    wanted = _rows(form._original[0](seen[0][0]), "last")
                else:
                    wanted = _before_activation(net, name, seen[0][0])
                left = wanted - line
                centred = rows - rows.mean(0)
                scale = left.norm(dim=0) * centred.norm(dim=0)
                assert (left.mean(0).abs() <= 1e-9 * line.abs().max()).all()
                assert ((left * centred).sum(0).abs() <= 1e-6 * scale + 1e-9).all()


def _inputs(net: Supernet, name: str, label: str, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The site's input, then each norm's input and output as rows, in the form's order."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    form = net.switches[name].form(label)
    modules = [net.switches[name], *norms_of(form)]

    def hook(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        seen[module] = args[0].clone(), out.clone()

    handles = [m.register_forward_hook(hook) for m in modules]
    net(x)
    for handle in handles:
        handle.remove()
    layout = norms_of(form)[0].layout
    site, *norms = (seen[m] for m in modules)
    return [site, *((_rows(a, layout), _rows(b, layout)) for a, b in norms)]


def norms_of(form: Form) -> list[ChannelNorm]:
    """In the form's order."""
    return [m for m in form.modules() if isinstance(m, ChannelNorm)]


def _before_activation(net: Supernet, name: str, x: Tensor) -> Tensor:
    site, block = net.sites[name], net._originals[net.sites[name].block]
    region, norm = site.region, norms_of(net.switches[name].forms[0])[0]
    if site.region.add is None:
        y = site.chain.keep(x)
    else:
        y = extract(block, net._graphs[site.block], region.entry, region.add, region.extras)(
            x.clone(), *site.extras
        )
    return _rows(to_layout(y, site.layout, norm.layout), norm.layout)


def _rows(x: Tensor, layout: str) -> Tensor:
    return (x.movedim(1, -1) if layout == "first" else x).flatten(0, -2)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def without_noise(*modules: nn.Module, only: bool) -> Iterator[None]:
    noisy = [m for module in modules for m in module.modules() if hasattr(m, "p") and only]
    before = [m.p for m in noisy]
    for module in noisy:
        module.p = 0.0
    yield
    for module, p in zip(noisy, before, strict=True):
        module.p = p
