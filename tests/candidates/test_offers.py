"""What a site is offered, and plans that come from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.candidates.clock import SetSpeedups
from tests.families import images, network
from updp.blocks import Findings, find
from updp.candidates import (
    KINDS,
    Drop,
    Inherit,
    Offer,
    candidates_of_plan,
    inherit_cuts,
    make_offers,
    proposals,
    read_candidate,
    register_candidate,
)
from updp.candidates.offers import only_shallower, without_lone_drops
from updp.errors import UserError
from updp.measure import LatencyTable
from updp.plan import Plan
from updp.recipe import Recipe

DEPTH = Recipe().updated("candidates.widths=[]")


def findings(family: str = "basic") -> tuple[nn.Module, Findings]:
    model = network(family)
    return model, find(model, images())


def plan_for(found: Findings, **changes: Any) -> Plan:
    site = found.sites[0]
    candidate = next(iter(inherit_cuts(site)))
    data = {
        "choices": {site.name: candidate.label},
        "candidates": {site.name: candidate.to_json()},
    }
    return Plan.model_validate(data | changes)


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatencyTable, "open", lambda *_: LatencyTable())


def test_the_least_shrunk_of_the_faster_ones_is_offered(set_speedups: SetSpeedups) -> None:
    model, found = findings()
    set_speedups({0: 0.9, 1: 1.5, 2: 3.0, 3: 10.0})
    offers, refused = make_offers(model, found, DEPTH, torch.device("cpu"))
    assert not refused
    for name, (offer, *others) in offers.items():
        assert offer.site == name
        # Of two that merge to the same size the clock decides nothing.
        assert offer.candidate.label.endswith("(1x1)")
        assert offer.candidate.label.count("(1x1)") == 1
        assert offer.macs <= offer.keep_macs
        assert offer.speedup == pytest.approx(1.5)
        assert offer.noise_ms > 0
        assert offer.saved_ms == pytest.approx(10 - 10 / 1.5)
        assert offer.keep_parameters > offer.parameters > 0
        assert Offer.model_validate_json(offer.model_dump_json()) == offer
        assert [o.candidate.label for o in others] == ["conv1(1x1)+conv2(1x1)", "drop"]


def test_equally_fast_candidates_keep_their_order_and_others_go_by_speed(
    set_speedups: SetSpeedups, no_table: None
) -> None:
    model, found = findings("bottleneck")
    site = found.sites[0]
    traced = found.traced(site, model)
    found_kinds = list(proposals(traced, DEPTH.candidates))
    pair = next(i for i in range(9) if found_kinds[i].rank == found_kinds[i + 1].rank)
    labels = [found_kinds[i].label for i in (pair, pair + 1)]
    for times, expected in (((2.0, 2.005), labels), ((2.0, 2.1), labels[::-1])):
        set_speedups(dict.fromkeys(range(9), 0.5) | {pair: times[0], pair + 1: times[1]})
        offers, _ = make_offers(model, found, DEPTH, torch.device("cpu"))
        assert [o.candidate.label for o in offers[site.name]] == expected


def test_a_branch_is_dropped_only_where_nothing_beside_it_merges(
    set_speedups: SetSpeedups,
) -> None:
    model, found = findings("vit")
    set_speedups(dict.fromkeys(range(9), 2.0))
    cpu = torch.device("cpu")
    depth = Recipe().updated("candidates.widths=[]")
    alone = depth.updated("candidates.drop=alone")
    offers, refused = make_offers(model, found, alone, cpu)
    assert set(offers) == {"blocks.0:mlp", "blocks.1:mlp"}
    assert [u.name for u in refused] == ["blocks.0:attn", "blocks.1:attn"]
    assert all("candidates.drop=always" in u.reason for u in refused)
    either, none = make_offers(model, found, depth, cpu)  # the budget will say
    assert not none
    assert without_lone_drops(either) == offers
    whole, _ = make_offers(model, found, Recipe(), cpu)
    narrow = {
        n: tuple(o for o in of if o.candidate.kind == "narrow")
        for n, of in whole.items()
        if n in offers
    }
    few = either | narrow  # where nothing merges a drop is as good as any
    assert without_lone_drops(few) == few
    assert only_shallower(few).keys() == {"blocks.0:attn", "blocks.1:attn"}
    always = depth.updated("candidates.drop=always")
    assert offered(make_offers(model, found, always, cpu)[0], "blocks.1:attn") == ["drop"]
    folded = always.updated("candidates.fold_norms=true")
    kinds = offered(make_offers(model, found, folded, cpu)[0], "blocks.1:attn")
    assert kinds == ["norm1>attn.qkv", "drop"]
    never = Recipe().updated("candidates.drop=never")
    assert "drop" not in offered(make_offers(model, found, never, cpu)[0], "blocks.1:mlp")


def offered(offers: dict[str, tuple[Offer, ...]], site: str) -> list[str]:
    return [offer.candidate.label for offer in offers[site]]


def test_a_kind_from_outside_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("updp.candidates.registry.KINDS", dict(KINDS))

    @register_candidate
    class Twice(Drop):
        kind = "twice"

    model, found = findings()
    site = found.sites[0]
    traced = found.traced(site, model)
    kinds = [c.kind for c in proposals(traced, Recipe().candidates)]
    assert kinds[-2:] == ["drop", "twice"]
    assert type(read_candidate({"kind": "twice"})) is Twice
    with pytest.raises(ValueError, match="kind 'twice' is taken by Twice"):
        register_candidate(type("Other", (Drop,), {"kind": "twice"}))


def test_candidates_that_are_not_faster_are_not_offered(set_speedups: SetSpeedups) -> None:
    model, found = findings()
    set_speedups({0: 0.9, 1: 1.005, 2: 0.8, 3: 0.9})  # 1.005 is within the noise
    offers, refused = make_offers(model, found, DEPTH, torch.device("cpu"))
    assert not offers
    assert {u.name for u in refused} == {site.name for site in found.sites}
    assert all("no merged form is faster than the block" in u.reason for u in refused)


def test_globs_select_sites() -> None:
    _, found = findings()
    names = [site.name for site in found.sites]
    assert found.selected((), ()).sites == found.sites
    assert [s.name for s in found.selected((names[0],), ()).sites] == names[:1]
    assert names[0] not in [s.name for s in found.selected((), (names[0],)).sites]
    with pytest.raises(UserError, match=r"'nothing\.\*' matches no site"):
        found.selected(("nothing.*",), ())
    with pytest.raises(UserError, match=r"'nothing\.\*' matches no site"):
        found.selected((), ("nothing.*",))


def test_a_plan_is_read_to_its_candidates() -> None:
    _, found = findings()
    plan = plan_for(found)
    ((name, (candidate,)),) = candidates_of_plan(plan, found).items()
    assert name == found.sites[0].name
    assert candidate == next(iter(inherit_cuts(found.sites[0])))


def test_a_plan_that_does_not_fit_is_refused() -> None:
    _, found = findings()
    name = found.sites[0].name
    good = plan_for(found).candidates[name]
    with pytest.raises(UserError, match=r"prunes 'nowhere', which is no site of this model"):
        candidates_of_plan(plan_for(found, choices={"nowhere": "a+b"}), found)
    with pytest.raises(UserError, match="names no candidate"):
        candidates_of_plan(plan_for(found, candidates={}), found)
    with pytest.raises(UserError, match="does not fit the site"):
        candidates_of_plan(plan_for(found, choices={name: "another"}), found)
    strange = Inherit((("a", "b"),))
    with pytest.raises(UserError, match="does not fit the site"):
        candidates_of_plan(
            plan_for(found, choices={name: "a+b"}, candidates={name: strange.to_json()}), found
        )
    with pytest.raises(UserError, match="is not understood"):
        candidates_of_plan(plan_for(found, candidates={name: {"kind": "inherit"}}), found)
    with pytest.raises(UserError, match="kind 'magic' is unknown"):
        candidates_of_plan(plan_for(found, candidates={name: good | {"kind": "magic"}}), found)


@pytest.mark.parametrize(
    "long", [{"kind": "9" * 5000}, {"kind": "inherit", "segments": "9" * 5000}]
)
def test_what_is_quoted_of_a_damaged_plan_is_short(long: dict[str, str]) -> None:
    with pytest.raises(UserError, match="999") as raised:
        read_candidate(long)
    assert len(str(raised.value)) < 500


def test_json_of_a_candidate_is_read_back() -> None:
    candidate = Inherit((("a",), ("b", "c")), ("b",), end_activation=True, linearise=True)
    assert read_candidate(candidate.to_json()) == candidate
