"""The space of plans from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from updp import UserError
from updp.blocks import find
from updp.candidates import make_offers
from updp.io.files import read_json
from updp.measure import count_macs, count_parameters, live_at, peak_memory, use_clock
from updp.models import load_model
from updp.search import Survey
from updp.stages import sites
from updp.supernet import Supernet


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_the_in_place_factor_follows_the_clock(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed_clock: None
) -> None:
    recipe = tiny.make_recipe()
    model = load_model(tiny.write_model(tmp_path), seed=1).eval()
    offers, _ = make_offers(
        model, find(model, torch.randn(2, 1, 8, 8)), recipe, torch.device("cpu")
    )
    copied = load_model(tiny.write_model(tmp_path), seed=1).eval()
    candidates = {n: [o.candidate for o in found] for n, found in offers.items()}
    net = Supernet(copied, find(copied, torch.randn(2, 1, 8, 8)), candidates)
    net.eval()
    whole = 4 * sum(found[0].keep_ms for found in offers.values())
    chosen: list[float] = []
    merged = net.merged

    def watched() -> nn.Module:
        ms = 0.0
        for name, found in offers.items():
            labels = {o.candidate.label: o.saved_ms for o in found}
            ms += labels.get(net.switches[name].choice, 0.0)
        chosen.append(ms)
        return merged()

    def clock(functions: Mapping[str, object], rounds: int, *_: Any) -> dict[str, list[float]]:
        times = [whole, *(whole - factor * saved for saved in chosen)]
        return {name: [t] * rounds for name, t in zip(functions, times, strict=True)}

    monkeypatch.setattr(net, "merged", watched)
    x = torch.randn(2, 1, 8, 8)
    with use_clock(clock):
        found = sites.in_place(model, net, offers, whole, x, recipe.measure)
    assert found == pytest.approx(factor)
    assert len(set(chosen)) > 1


def test_the_space_has_the_plans_of_the_offers(finished: Path) -> None:
    survey = Survey.read(finished)
    offers = survey.offers()
    space = survey.space(offers)
    assert space.names == tuple(offers)
    model = load_model(read_json(finished / "run.json")["model"], seed=0).eval()
    x = torch.randn(2, 1, 8, 8)
    assert space.baseline.parameters == count_parameters(model)
    assert space.baseline.memory == peak_memory(model, x).peak + peak_memory(model, x).weights
    for choice, found in zip(space.sites, offers.values(), strict=True):
        for option, offer in zip(choice.options, found, strict=True):
            assert option.saved_ms == pytest.approx(offer.saved_ms * survey.in_place)
            assert option.saved_macs == offer.keep_macs - offer.macs


def test_depth_alone_may_be_asked_for(finished: Path) -> None:
    survey = Survey.read(finished)
    depth, costs = tiny.make_recipe(), tiny.make_recipe(budget={"blocks": 2, "macs": 0.7})
    every = survey.offers()
    assert survey.offers(costs) == every
    assert all(any(o.candidate.kind == "narrow" for o in found) for found in every.values())
    for name, found in survey.offers(depth).items():
        assert found == tuple(o for o in every[name] if o.candidate.kind != "narrow")
    data = survey.model_dump(mode="json")
    for row in data["sites"][1:]:  # of the others nothing takes depth away
        row["offers"] = [o for o in row["offers"] if o["candidate"]["kind"] == "narrow"]
    few = Survey.model_validate(data)
    first = data["sites"][0]["site"]
    assert list(few.offers(depth)) == [first]
    assert few.space(few.offers(depth)).names == (first,)
    assert len(few.space(few.offers(costs)).names) == len(every)


def test_a_budget_of_blocks_where_there_is_only_width_says_which_budgets_take_it(
    tiny_model: str, tmp_path: Path
) -> None:
    recipe = tiny.make_recipe(budget={"blocks": 1})
    run = tiny.make_run(tiny_model, recipe, tmp_path / "run")
    run.until("sites")
    context, rows = run.context, []
    for row in context.survey.sites:
        offers = tuple(o for o in row.offers if not o.candidate.shallower)
        rows.append(row.model_copy(update={"offers": offers}))
    vars(context)["survey"] = context.survey.model_copy(update={"sites": tuple(rows)})
    with pytest.raises(UserError, match="only some that can lose width: give a budget of latency"):
        _ = context.offers


@pytest.mark.parametrize("number", [0, 1, 5, 6])
def test_what_a_merged_plan_costs_is_what_was_predicted(number: int, finished: Path) -> None:
    """Parameters, MACs, weights and the peak of memory: all but latency is exact."""
    survey = Survey.read(finished)
    offers = survey.offers()
    space = survey.space(offers)
    model = load_model(read_json(finished / "run.json")["model"], seed=0).eval()
    x = torch.randn(2, 1, 8, 8)
    candidates = {n: [o.candidate for o in found] for n, found in offers.items()}
    net = Supernet(model, find(model, x), candidates).eval()
    genome = tuple(min(number + i % 2, len(s.options)) for i, s in enumerate(space.sites))
    net.choose(space.choices(genome))
    merged, cost = net.merged(), space.cost(genome)
    assert cost.parameters == count_parameters(merged)
    assert cost.macs == count_macs(merged, x[:1])
    memory = peak_memory(merged, x)
    outside, _ = live_at(merged, {}, x)
    assert memory.peak == outside
    assert cost.memory == memory.peak + memory.weights


def test_a_model_that_the_clock_refused_says_how_to_time_it_again(
    tmp_path: Path, fixed_clock: None
) -> None:
    def slow(functions: Mapping[str, Any], rounds: int, *_: Any) -> dict[str, list[float]]:
        return {name: [float(i + 1)] * rounds for i, name in enumerate(functions)}

    spec, recipe = tiny.write_model(tmp_path), tiny.make_recipe()
    for name, says in ((spec, True), (spec.replace(":tiny", ":plain"), False)):
        out = tmp_path / str(says)
        with use_clock(slow), pytest.raises(UserError) as raised:
            tiny.make_run(name, recipe, out).until("search")
        assert "has no block that can be pruned" in str(raised.value)
        assert (
            "`--fresh --set measure.cache=false` added times them again" in str(raised.value)
        ) is says
    tiny.make_run(spec, recipe, tmp_path / "True", restart_from="sites").until("sites")
    assert len(Survey.read(tmp_path / "True").sites) == 4


def test_globs_that_leave_nothing_are_named_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tiny.make_recipe().updated("candidates.include=[blocks.0]")
    recipe = recipe.updated("candidates.exclude=['blocks.*']")
    run = tiny.make_run(tiny.write_model(tmp_path), recipe, tmp_path / "run", last="sites")
    with pytest.raises(UserError, match=r"include blocks\.0; exclude blocks\.\*: of the 4 sites"):
        run.until("sites")
    assert not (tmp_path / "run/sites").exists()
