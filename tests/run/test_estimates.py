"""Estimates by a clock whose every look takes a second, beside what a run really does."""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import updp
from tests import tiny
from tests.sampling import slow
from tests.tiny import open_inputs
from updp import UserError
from updp.models import load_model
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.estimates import Estimate, estimate_run
from updp.run.records import RunRecord
from updp.search import SearchResult
from updp.stages import subnet
from updp.stages.context import STAGES, Context
from updp.supernet import FitRecord

pytestmark = pytest.mark.usefixtures("fixed_clock")


def seconds_counted() -> Any:
    counter = itertools.count()
    return lambda: float(next(counter))


def estimated(
    spec: str, recipe: Recipe, out: Path | None = None, **given: Any
) -> dict[str, dict[str, tuple[int, float]]]:
    """Steps and seconds of the works of each stage that has not ended."""
    inputs = open_inputs(spec, "digits", recipe, **given)
    found = estimate_run(inputs, out, clock=seconds_counted())
    return works(found)


def works(found: Estimate) -> dict[str, dict[str, tuple[int, float]]]:
    return {
        stage.stage: {work.name: (work.steps, work.seconds) for work in stage.works}
        for stage in found.stages
        if not stage.done
    }


class Begun:
    """Progress that remembers how many steps each piece of work had."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    def begin(self, name: str, total: int, done: int = 0) -> None:
        self.totals[name] = total

    def advance(self, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def test_it_counts_the_steps_and_plans_that_a_run_has(finished: Path) -> None:
    found = estimated(RunRecord.read(finished).model, tiny.make_recipe())
    assert list(found) == [*STAGES]
    for stage in ("supernet", "subnet"):
        last = json.loads((finished / stage / "figures.jsonl").read_text().splitlines()[-1])
        assert found[stage]["training steps"] == (last["step"] + 1,) * 2  # a second each
    plans = found["search"]["single candidates"][0] + found["search"]["plans"][0]
    assert plans == len(SearchResult.read(finished).points)
    operators = len(FitRecord.read(finished).rows)
    assert abs(found["subnet"]["operators fitted"][0] - 1 - operators) <= 2  # of another plan
    assert found["merge"]["test batches"][0] == 4  # 500 images by 128
    # Of 5 networks 3 were measured, in as many seconds as there are batches, and one at the end.
    assert found["merge"]["test batches"][1] == pytest.approx(5 * 5 / 3)
    assert found["merge"]["rounds of timing"][0] == 2 * 3


def test_sites_trained_alone_are_counted(finished: Path) -> None:
    plan = Plan.load(finished / "plan.json")
    sites = 4 - int(min(plan.choices).removeprefix("blocks."))  # from the first pruned one on
    settings = {"epochs": 2, "images": 40, "batch_size": 8}
    recipe = tiny.make_recipe(reconstruct=settings)
    found = estimated(RunRecord.read(finished).model, recipe, plan=plan)
    assert (
        found["subnet"]["steps of sites trained alone"][0] == sites * 2 * 8
    )  # two whole batches of 32
    assert found["merge"]["test batches"][1] == pytest.approx(6 * 5 / 3)


def test_it_counts_the_plans_that_a_search_scores(tiny_model: str, tmp_path: Path) -> None:
    recipe = tiny.make_recipe(
        budget={"blocks": 1},
        candidates={"include": ["blocks.0", "blocks.1"]},
        supernet={"epochs": 0},
        search={"evaluations": 2, "population": 4, "refined": 3},
    )
    found = estimated(tiny_model, recipe)["search"]
    begun = Begun()
    tiny.make_run(tiny_model, recipe, tmp_path / "run", progress=begun).until("search")
    totals = begun.totals
    assert found["single candidates"][0] == totals["search: each candidate alone"]
    refined = [
        totals["search: candidates fitted and repaired"],
        totals["search: plans fitted and repaired"],
    ]
    assert found["refined candidates"][0] + found["refined plans"][0] == sum(refined) == 3
    # Refined plans are scored as the others are, too.
    assert found["plans"][0] == totals["search"] + 3


class Named(Dataset[dict[str, Any]]):
    """Images with their classes, each a dictionary."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < 60:
            raise IndexError(index)
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"x": image, "label": index % 10}


@pytest.mark.parametrize("start", ["fit", "inherit"])
def test_a_model_that_is_called_by_name_is_estimated(start: str, tiny_model: str) -> None:
    recipe = tiny.make_recipe(
        data={"held_out": 16, "calibration": 16, "batch_size": 8}, supernet={"start": start}
    )
    found = updp.estimate(load_model(tiny_model), (Named(), Named()), recipe)
    assert [stage.stage for stage in found.stages] == [*STAGES]
    assert ("sites fitted" in works(found)["supernet"]) == (start == "fit")


def test_a_step_of_the_ramp_may_be_longer_than_one_behind_it(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def train(context: Context, *_: Any) -> None:
        nonlocal now
        context.progress.begin("subnet", 40)
        for _ in range(40):
            now += 1.0 if context.recipe.subnet.hold == 1 else 3.0
            context.progress.advance()

    monkeypatch.setattr(subnet, "train_plan", train)
    recipe = tiny.make_recipe(supernet={"epochs": 0}, subnet={"hold": 0.25})
    found = estimate_run(open_inputs(tiny_model, "digits", recipe), clock=lambda: now)
    assert works(found)["subnet"]["training steps"] == (40, 30 * 3 + 10 * 1)
    assert found.minutes == 100 / 60


@pytest.mark.parametrize(
    "changes",
    [
        {"supernet": {"start": "inherit", "epochs": 0.1}, "subnet": {"start": "supernet"}},
        slow({"subnet": {"start": "baseline", "merge": "ramp", "hold": 0.5, "epochs": 0.3}}),
        slow({"search": {"searcher": "random", "evaluations": 3, "refined": 2}, "supernet": {}}),
    ],
)
def test_recipes_of_other_kinds_are_estimated(changes: dict[str, Any], tiny_model: str) -> None:
    found = estimated(tiny_model, tiny.make_recipe(**changes))
    assert list(found) == [*STAGES]
    fits = changes.get("supernet", {}).get("start") != "inherit"
    assert ("sites fitted" in found["supernet"]) == fits
    assert ("operators fitted" in found["subnet"]) == ("start" not in changes.get("subnet", {}))


def test_a_given_plan_is_not_searched_for(tiny_model: str, finished: Path) -> None:
    plan = Plan.read(finished)
    recipe = tiny.make_recipe(budget=None)
    assert estimated(tiny_model, recipe, plan=plan)["search"] == {}


def test_ended_stages_take_no_time_and_nothing_is_written(finished: Path, tmp_path: Path) -> None:
    spec, recipe = RunRecord.read(finished).model, tiny.make_recipe()
    out = shutil.copytree(finished, tmp_path / "run")
    assert estimated(spec, recipe, out) == {}
    for stage in ("subnet", "merge"):
        shutil.rmtree(out / stage)
    before = tiny.contents(out)
    found = estimated(spec, recipe, out)
    assert list(found) == ["subnet", "merge"]
    assert found["subnet"]["training steps"][0] == 12
    assert tiny.contents(out) == before
    with pytest.raises(UserError, match="holds another run: seed is 0 there and 1 here"):
        estimated(spec, recipe.updated("seed=1"), out)


def test_model_and_random_states_are_left_alone(tiny_model: str) -> None:
    inputs = open_inputs(tiny_model, "digits", tiny.make_recipe())
    weights = {name: t.clone() for name, t in inputs.baseline.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index, union-attr]
    estimate_run(inputs, clock=seconds_counted())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not inputs.baseline.training
    for name, tensor in inputs.baseline.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
