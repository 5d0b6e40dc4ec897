import json
import shutil
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.sampling import every_other
from updp import MergeError, UserError
from updp.io.files import read_json, read_tensors, write_json
from updp.models import load_model
from updp.plan import Plan
from updp.recipe import Recipe, TrainingSettings
from updp.run.directory import RunDirectory
from updp.run.load import load
from updp.search import SEARCHERS
from updp.stages import merge, search, sites, subnet, supernet
from updp.supernet import FitRecord, Supernet

pytestmark = pytest.mark.usefixtures("fixed_clock")

RESULTS = ("plan.json", "model.safetensors")


def results(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in RESULTS]


def test_a_run_leaves_all_that_its_directory_promises(finished: Path) -> None:
    assert {path.name for path in finished.iterdir() if not path.name.startswith(".")} == {
        *("run.json", "recipe.yaml", "plan.json", "model.safetensors", "result.json"),
        *("sites", "supernet", "search", "subnet", "merge"),
    }
    for stage in ("sites", "supernet", "search", "subnet", "merge"):
        assert (finished / stage / "done.json").exists()
        assert not (finished / stage / "checkpoint.safetensors").exists()
    assert not list(finished.rglob("*.tmp"))
    plan = read_json(finished / "plan.json")
    assert len(plan["choices"]) == 2
    assert plan["candidates"].keys() == plan["choices"].keys()
    assert plan["budget"] == "blocks=2"


def test_the_result_is_about_the_plan(finished: Path) -> None:
    result = read_json(finished / "result.json")
    # Two of 6 channels on 4x4 pixels: a 3x3 and a 3x3 became one operator of `taps`.
    choices = read_json(finished / "plan.json")["choices"]
    taps = {"conv1+conv2(1x1)": 9, "conv1(1x1)+conv2(1x1)": 1, "conv1+conv2": 25}
    left = sum(taps.get(label, 0) for label in choices.values())
    saved = (2 * 2 * 9 - left) * 36 * 16
    # What a dropped branch leaves is a factor per channel.
    drops = sum(label == "drop" for label in choices.values())
    assert abs(result["baseline"]["macs"] - result["merged"]["macs"] - saved) <= drops * 6 * 16
    assert result["test_images"] == 500
    stages = result["by_stage"]
    assert list(stages) == [
        "baseline",
        "after search",
        "after fit",
        "after subnet training",
        "merged",
    ]
    assert stages["merged"] == result["merged"]["metric"]
    assert result["merge_error"]["float64"] <= 1e-12


def test_the_recipe_in_the_directory_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    spec = read_json(finished / "run.json")["model"]
    recipe = Recipe.load(finished / "recipe.yaml")
    assert recipe == tiny.make_recipe()
    tiny.make_run(spec, recipe, tmp_path / "again").until("merge")
    assert results(tmp_path / "again") == results(finished)


@pytest.mark.slow  # tests/cli/test_stages.py has it with the commands
def test_stages_in_one_process_and_apart_are_the_same(tiny_model: str, tmp_path: Path) -> None:
    # From the baseline, so that nothing may be left over from the supernet; see also tests/cli.
    recipe = tiny.make_recipe().updated("subnet.start=baseline")
    tiny.make_run(tiny_model, recipe, tmp_path / "together").until("merge")
    for stage in ("supernet", "search", "subnet", "merge"):
        tiny.make_run(tiny_model, recipe, tmp_path / "apart", last=stage).only(stage)
    assert results(tmp_path / "apart") == results(tmp_path / "together")


def test_no_stage_does_its_work_twice(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = tiny.contents(out)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was done before")

    for stage in (sites, supernet, search, subnet, merge):
        monkeypatch.setattr(stage, "run", refuse)
    monkeypatch.setattr("updp.run.pipeline.write_table", refuse)
    run = tiny.make_run(read_json(out / "run.json")["model"], tiny.make_recipe(), out)
    run.until("merge")
    model, plan, result = run.results()
    assert tiny.contents(out) == before
    assert list(plan.choices) == list(read_json(out / "plan.json")["choices"])
    saved, _ = read_tensors(out / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert result.test_images == 500


def test_results_that_were_removed_come_back(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = tiny.contents(out)
    for name in (*RESULTS, "result.json"):
        (out / name).unlink()
    tiny.make_run(read_json(out / "run.json")["model"], tiny.make_recipe(), out).until("merge")
    assert tiny.contents(out) == before


def test_the_measured_sites_decide_and_how_they_were_measured_does_not(
    finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    recipe = tiny.make_recipe().updated("measure.rounds=5")
    tiny.make_run(read_json(out / "run.json")["model"], recipe, out).until("merge")
    assert results(out) == results(finished)


def test_how_often_checkpoints_are_written_is_no_other_run(finished: Path, tmp_path: Path) -> None:
    spec, out = read_json(finished / "run.json")["model"], tmp_path / "run"
    shutil.copytree(finished, out)
    before = tiny.contents(out)
    changes = ("supernet.checkpoint_seconds=7", "subnet.checkpoint_seconds=8")
    recipe = tiny.make_recipe().updated(*changes)
    tiny.make_run(spec, recipe, out).until("merge")
    assert tiny.contents(out) == before
    assert "checkpoint_seconds" not in read_json(out / "subnet" / "key.json")["subnet"]


def test_a_run_whose_keys_tell_how_often_checkpoints_are_written_goes_on(
    tiny_model: str, tmp_path: Path
) -> None:
    """As those of earlier versions do."""
    recipe, out = tiny.make_recipe(), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingSettings, "ASIDE", frozenset())
        tiny.make_run(tiny_model, recipe, out).until("subnet")
        keys = {s: (out / s / "key.json").read_bytes() for s in ("supernet", "search", "subnet")}
    assert b"checkpoint_seconds" in keys["supernet"]
    other = recipe.updated("supernet.checkpoint_seconds=7", "subnet.checkpoint_seconds=8")
    with pytest.raises(UserError, match=r"subnet.gate is 'blend' there and 'anneal' here"):
        tiny.make_run(tiny_model, other.updated("subnet.gate=anneal"), out)
    tiny.make_run(tiny_model, other, out).until("merge")
    assert keys == {s: (out / s / "key.json").read_bytes() for s in keys}
    # Stages that are begun anew go on from those keys, and have the field no more.
    tiny.make_run(tiny_model, other, out, restart_from="subnet").until("merge")
    assert keys["search"] == (out / "search" / "key.json").read_bytes()
    assert "checkpoint_seconds" not in read_json(out / "subnet" / "key.json")["subnet"]
    tiny.make_run(tiny_model, recipe, out).until("merge")


def test_fresh_starts_over_from_one_stage(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    spec = read_json(out / "run.json")["model"]
    kept = {name: (out / name).stat().st_ino for name in ("supernet/done.json", "sites/sites.json")}
    recipe = tiny.make_recipe(budget={"blocks": 3})
    with pytest.raises(UserError, match="budget is 'blocks=2' there and 'blocks=3' here"):
        tiny.make_run(spec, recipe, out, last="search")
    tiny.make_run(spec, recipe, out, last="search", restart_from="search").only("search")
    assert kept == {name: (out / name).stat().st_ino for name in kept}
    assert not (out / "subnet").exists()
    assert not (out / "merge").exists()
    assert not any((out / name).exists() for name in RESULTS)
    tiny.make_run(spec, recipe, out).until("merge")
    assert len(read_json(out / "plan.json")["choices"]) == 3


def test_fresh_starts_over_with_another_model(finished: Path, tmp_path: Path) -> None:
    from updp import load

    out = shutil.copytree(finished, tmp_path / "run")
    spec = tiny.write_model(tmp_path).replace(":tiny", ":tokens")
    tiny.make_run(spec, tiny.make_recipe(), out, restart_from="sites").until("merge")
    assert read_json(out / "run.json")["model"] == spec
    assert type(load(out)).__name__ == "Tokens"


@pytest.mark.parametrize("stage", ["sites", "search"])
def test_starting_over_never_removes_what_is_not_a_run(
    stage: str, tiny_model: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "project"
    for name in ("search/engine.py", "merge/notes.txt", "model.safetensors"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("years of work")
    with pytest.raises(UserError, match="holds other files and no run"):
        tiny.make_run(tiny_model, tiny_recipe, out, restart_from=stage)
    assert len(tiny.contents(out)) == 3


def test_starting_over_with_a_budget_out_of_reach_removes_nothing(
    finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = tiny.contents(out)
    recipe = tiny.make_recipe(budget={"blocks": 9})
    spec = read_json(out / "run.json")["model"]
    with pytest.raises(UserError, match="more than the 4 sites"):
        tiny.make_run(spec, recipe, out, last="search", restart_from="search")
    assert tiny.contents(out) == before


def test_a_wrong_glob_leaves_no_trace(tiny_model: str, tmp_path: Path) -> None:
    recipe = tiny.make_recipe(candidates={"include": ["layer*"]})
    with pytest.raises(UserError, match=r"'layer\*' matches no site"):
        tiny.make_run(tiny_model, recipe, tmp_path / "run").until("merge")
    # The same command, put right, is no "other run".
    recipe = tiny.make_recipe(candidates={"include": ["blocks.*"], "exclude": ["blocks.0"]})
    run = tiny.make_run(tiny_model, recipe, tmp_path / "run")
    run.until("sites")
    assert list(run.context.offers) == ["blocks.1", "blocks.2", "blocks.3"]


def test_a_model_without_blocks_is_refused(tmp_path: Path, tiny_recipe: Recipe) -> None:
    spec = tiny.write_model(tmp_path).replace(":tiny", ":plain")
    with pytest.raises(UserError, match="no block that can be pruned"):
        tiny.make_run(spec, tiny_recipe, tmp_path / "run").until("merge")


def test_a_stage_without_its_predecessor_leaves_no_trace(
    tiny_model: str, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    tiny.make_run(tiny_model, tiny_recipe, out, last="supernet").only("supernet")
    before = tiny.contents(out)
    for stage, first in (("subnet", "search"), ("merge", "search")):
        with pytest.raises(UserError, match=f"run `updp {first}` first"):
            tiny.make_run(tiny_model, tiny_recipe, out, last=stage).only(stage)
    assert tiny.contents(out) == before


def test_a_merge_that_is_wrong_writes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    exact = Supernet.merged

    def tampered(net: Supernet, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        model = exact(net, dtype)
        with torch.no_grad():
            model.get_parameter("head.bias")[0] += 1e-3
        return model

    spec = read_json(out / "run.json")["model"]
    monkeypatch.setattr(Supernet, "merged", tampered)
    run = tiny.make_run(spec, tiny.make_recipe(), out, restart_from="merge")
    with pytest.raises(MergeError, match="merged model differs from what was trained"):
        run.only("merge")
    assert not (out / "model.safetensors").exists()
    assert not (out / "result.json").exists()
    assert not list((out / "merge").glob("*.safetensors"))
    monkeypatch.undo()
    tiny.make_run(spec, tiny.make_recipe(), out).only("merge")
    assert results(out) == results(finished)


def test_training_that_diverges_says_so(tiny_model: str, tmp_path: Path) -> None:
    recipe = tiny.make_recipe(supernet={"epochs": 0.3, "lr": 1e30})
    run = tiny.make_run(tiny_model, recipe, tmp_path / "run")
    with pytest.raises(UserError, match=r"supernet training broke down .* lower supernet\.lr"):
        run.until("merge")


def test_every_file_of_a_run_can_be_read_without_us(finished: Path) -> None:
    for path in finished.rglob("*.json"):
        json.loads(path.read_text())
    for path in finished.rglob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_given_plan_takes_the_place_of_the_search(finished: Path, tmp_path: Path) -> None:
    plan = Plan.from_json((finished / "plan.json").read_text())
    spec = read_json(finished / "run.json")["model"]
    recipe = tiny.make_recipe().model_copy(update={"budget": None})
    run = tiny.make_run(spec, recipe, tmp_path / "run", plan=plan)
    run.until("merge")
    assert run.directory.plan() == plan
    assert not (tmp_path / "run" / "search" / "scores.jsonl").exists()
    assert results(tmp_path / "run") == results(finished)


def test_blocks_become_narrower_through_all_stages(tiny_model: str, tmp_path: Path) -> None:
    """Within a budget that is not of blocks alone; what is loaded again is what was merged."""
    recipe = tiny.make_recipe(budget={"macs": 0.7}).updated(*FITTED)
    run = tiny.make_run(tiny_model, recipe, tmp_path / "searched", last="search")
    run.only("supernet")
    run.only("search")
    kinds = {c["kind"] for c in run.directory.plan().candidates.values()}
    labels = {label for p in run.directory.search_result().points for label in p.choices.values()}
    assert kinds <= {"inherit", "narrow", "drop"}
    assert "narrow 50%" in labels
    choices = {"blocks.0": "narrow 50%", "blocks.2": "narrow 25%"}
    widths = {name: float(label.split()[1].rstrip("%")) / 100 for name, label in choices.items()}
    plan = Plan(
        choices=choices,
        candidates={name: {"kind": "narrow", "width": w} for name, w in widths.items()},
    )
    free = recipe.model_copy(update={"budget": None})
    tiny.make_run(tiny_model, free, tmp_path / "run", last="sites", plan=plan).until("sites")
    file = tmp_path / "run" / "sites" / "sites.json"
    data = read_json(file)
    for row in data["sites"]:  # as where nothing that is shallower is faster
        row["offers"] = [o for o in row["offers"] if o["candidate"]["kind"] == "narrow"]
    write_json(file, data)
    RunDirectory(tmp_path / "run").mark_done("sites")
    run = tiny.make_run(tiny_model, free, tmp_path / "run", plan=plan)
    run.until("merge")
    model, taken, _ = run.results()
    assert taken == plan
    assert model.blocks[0].conv1_narrow.out_channels == 3
    # A budget beside a plan is nothing.
    other = tiny.make_run(tiny_model, recipe, tmp_path / "run", plan=plan)
    other.until("merge")
    assert other.directory.plan() == plan
    again = load(tmp_path / "run", load_model(tiny_model, seed=0))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))


def test_a_budget_of_blocks_is_one_of_depth(tiny_model: str, tmp_path: Path) -> None:
    run = tiny.make_run(tiny_model, tiny.make_recipe(), tmp_path / "run", last="search")
    run.until("sites")
    kinds = {o.candidate.kind for found in run.context.offers.values() for o in found}
    assert kinds == {"inherit", "drop"}
    assert {option.blocks for site in run.context.space.sites for option in site.options} == {1}


def test_a_given_plan_that_does_not_fit_is_refused(finished: Path, tmp_path: Path) -> None:
    plan = Plan.from_json((finished / "plan.json").read_text())
    spec = read_json(finished / "run.json")["model"].replace(":tiny", ":five")
    tokens = spec.replace(":five", ":tokens")
    first = next(iter(plan.choices))
    other = Plan.from_json(plan.to_json().replace(first, "blocks.7"))
    run = tiny.make_run(tokens, tiny.make_recipe(), tmp_path / "run", plan=other)
    with pytest.raises(UserError, match=r"the plan prunes 'blocks\.\d', which is no site"):
        run.until("merge")
    assert not (tmp_path / "run" / "supernet").exists()


FITTED = ("supernet.epochs=0",)  # the default


@pytest.mark.parametrize("searcher", every_other(SEARCHERS))
def test_every_search_ends_with_plans_as_fitted_and_repaired(
    searcher: str, tiny_model: str, tmp_path: Path
) -> None:
    recipe = tiny.make_recipe().updated(*FITTED, f"search.searcher={searcher}", "search.refined=5")
    run = tiny.make_run(tiny_model, recipe, tmp_path / "run", last="search")
    run.only("supernet")
    run.only("search")
    outcome = run.directory.search_result()
    refined = [p for p in outcome.points if p.fitted is not None and p.blocks == 2]
    assert outcome.plan.fitted == min(p.fitted for p in refined if p.fitted is not None)
    assert sum(p.fitted is not None for p in outcome.points) == 5
    assert all(p.score is not None for p in refined)


def test_what_stage_3_does_not_fit_is_not_refined(tiny_model: str, tmp_path: Path) -> None:
    recipe = tiny.make_recipe().updated(*FITTED, "subnet.start=supernet")
    run = tiny.make_run(tiny_model, recipe, tmp_path / "run", last="search")
    run.only("supernet")
    run.only("search")
    assert all(point.fitted is None for point in run.directory.search_result().points)
    fitted = tiny.make_recipe().updated(*FITTED)
    with pytest.raises(UserError, match="refines is False there and True here"):
        tiny.make_run(tiny_model, fitted, tmp_path / "run", last="search")


TRANSFORMER = """
from timm.models.vision_transformer import VisionTransformer

def vit():
    sizes = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=16)
    return VisionTransformer(**sizes, depth=2, num_heads=2, mlp_ratio=1, num_classes=10)
"""


def test_attention_becomes_smaller_through_all_stages(tmp_path: Path) -> None:
    """It comes back as it was by its plan; a plan that tells other layers is refused."""
    (tmp_path / "net.py").write_text(TRANSFORMER)
    spec = f"{tmp_path / 'net.py'}:vit"
    recipe = tiny.make_recipe(budget={"macs": 0.9}).updated(
        *FITTED, "candidates.include=['*:attn']", "candidates.drop=never", "subnet.epochs=0"
    )
    run = tiny.make_run(spec, recipe, tmp_path / "run")
    run.until("merge")
    model, plan, _ = run.results()
    assert {c["kind"] for c in plan.candidates.values()} == {"attention"}
    rows = FitRecord.read(tmp_path / "run").rows  # what may not be pruned is repaired as a site
    assert [r.operator for r in rows if r.site == "blocks.1:mlp"] == ["mlp.fc1", "mlp.fc2"]
    again = load(tmp_path / "run", load_model(spec, seed=0))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))
    words = json.loads(json.dumps(plan.model_dump(mode="json")))
    for candidate in words["candidates"].values():
        candidate["layout"]["layers"] = ["attn.none"]
    wrong = Plan.model_validate(words)
    free = recipe.model_copy(update={"budget": None})
    other = tiny.make_run(spec, free, tmp_path / "other", plan=wrong)
    with pytest.raises(UserError, match="does not fit the site"):
        other.until("merge")


def test_latencies_of_another_device_are_not_searched_with(tmp_path: Path) -> None:
    spec, out = tiny.write_model(tmp_path), tmp_path / "run"
    tiny.make_run(spec, tiny.make_recipe(), out, last="sites").until("sites")
    file = out / "run.json"
    write_json(file, read_json(file) | {"device": "cuda:1"})
    run = tiny.make_run(spec, tiny.make_recipe(), out)
    with pytest.raises(UserError, match="timed on 'cuda:1', and plans would be on cpu: go on with"):
        run.until()
    assert not run.directory.is_done("supernet")
