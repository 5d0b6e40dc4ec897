import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from updp import UserError
from updp.io.files import read_json
from updp.run.finished import open_finished_run

pytestmark = pytest.mark.usefixtures("fixed_clock")

STAGES = ("supernet", "search", "subnet", "merge")


def test_stages_one_by_one_are_prune(finished: Path, tmp_path: Path) -> None:
    spec, out = read_json(finished / "run.json")["model"], tmp_path / "run"
    first = tiny.updp("supernet", *tiny.options(tiny.make_recipe(), spec), "--out", out)
    assert (first.code, first.err) == (0, "")
    assert "supernet: done" in first.out
    for stage in STAGES[1:]:
        outcome = tiny.updp(stage, "--out", out)  # the directory knows the rest
        assert (outcome.code, outcome.err) == (0, "")
    assert "speed-up" in outcome.out
    for name in ("plan.json", "model.safetensors", "recipe.yaml"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("command", ["prune", *STAGES])
def test_a_finished_run_again_changes_nothing(command: str, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = tiny.contents(out)
    outcome = tiny.updp(command, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert tiny.contents(out) == before


def test_fresh_starts_over(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    spec = read_json(out / "run.json")["model"]
    # Starting over forgets the recipe that is there, so all of it is given.
    changed = (*tiny.options(tiny.make_recipe(), spec), "--set", "seed=3", "--out", out)
    refused = tiny.updp("prune", *changed)
    assert (refused.code, refused.err.count("updp: ")) == (2, 1)  # beside a warning
    assert "seed is 0 there and 3 here" in refused.err
    outcome = tiny.updp("prune", *changed, "--fresh")
    assert (outcome.code, outcome.err) == (0, "")
    assert read_json(out / "sites" / "key.json")["seed"] == 3
    weights = "supernet/weights.safetensors"
    assert (out / weights).read_bytes() != (finished / weights).read_bytes()


def test_a_test_split_given_apart_is_remembered_and_part_of_the_run(
    finished: Path, tmp_path: Path
) -> None:
    greys = np.random.default_rng(0).integers(0, 255, (3, 400, 8, 8), np.uint8)
    for name, pixels in zip(("data", "test", "other"), greys, strict=True):
        for number, grey in enumerate(pixels[: None if name == "data" else 20]):
            folder = tmp_path / name / str(number % 10)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey).save(folder / f"{number}.png")
    out, given = tmp_path / "run", tiny.options(tiny.make_recipe(), tiny.write_model(tmp_path))
    given[given.index("digits")] = str(tmp_path / "data")
    outcome = tiny.updp("prune", *given, "--test", tmp_path / "test", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "split off" not in outcome.err
    assert read_json(out / "result.json")["test_images"] == 20
    assert tiny.updp("merge", "--out", out).code == 0
    assert open_finished_run(out).record.test == str(tmp_path / "test")
    refused = tiny.updp("merge", "--test", tmp_path / "other", "--out", out)
    assert (refused.code, refused.err.count("updp: ")) == (2, 1)  # beside a warning
    assert "holds another run: the images, their labels or what is made of them" in refused.err
    with pytest.raises(UserError, match=r"other data than .*' and --test have: give that with"):
        open_finished_run(out, test=tmp_path / "other")


def test_images_without_labels_are_enough_to_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Top-1 is then of a test split with labels alone; else there is agreement in its place."""
    greys = np.random.default_rng(0).integers(0, 255, (400, 8, 8), np.uint8)
    for name in ("flat", *(f"test/{label}" for label in range(10))):
        (tmp_path / name).mkdir(parents=True)
    for number, grey in enumerate(greys):
        Image.fromarray(grey).save(tmp_path / "flat" / f"{number}.png")
        Image.fromarray(255 - grey).save(tmp_path / f"test/{number % 10}/{number}.png")
    out, spec = tmp_path / "run", tiny.write_model(tmp_path)
    options = tiny.options(tiny.make_recipe(), spec)
    options[options.index("digits")] = str(tmp_path / "flat")
    refused = tiny.updp("prune", *options, "--out", out)
    assert (refused.code, refused.err.count("\nupdp: ")) == (2, 1)  # beside a warning
    assert "has no labels, and supernet.epochs=0.3 trains on them: take" in refused.err
    fits = (*options, "--set=supernet.epochs=0", "--set=subnet.epochs=0")

    outcome = tiny.updp("prune", *fits, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "the data and test split of" in caplog.text
    caplog.clear()
    assert "top-1" not in outcome.out  # which has the progress and both tables
    assert "agreement with the baseline on 40 test images, %: baseline 100.00" in outcome.out
    result = read_json(out / "result.json")
    figures = [result[name] for name in ("baseline", "merged")]
    assert (result["metric"]["name"], figures[0]["metric"]) == ("agreement", 100)
    run = open_finished_run(out)
    with torch.no_grad():
        same = [run.baseline(x).argmax(1) == run.merged(x).argmax(1) for x, _ in run.feed.test()]
    assert figures[1]["metric"] == pytest.approx(100 * torch.cat(same).double().mean().item())
    front = read_json(out / "search" / "front.json")
    assert (front["metric"]["name"], front["baseline"]["metric"]) == ("agreement", 100)
    page = tiny.updp("report", out, "--format", "markdown")
    assert page.code == 0, page.err

    tested = ("--test", tmp_path / "test", "--out", tmp_path / "tested")
    assert tiny.updp("prune", *fits, *tested, "--plan", out / "plan.json").code == 0
    assert "the data of" in caplog.text
    result = read_json(tmp_path / "tested/result.json")
    run = open_finished_run(tmp_path / "tested")
    with torch.no_grad():
        right = [run.baseline(x).argmax(1) == labels for x, labels in run.feed.test()]
    top1 = 100 * torch.cat(right).double().mean().item()
    assert result["baseline"]["metric"] == pytest.approx(top1)
    assert result["metric"]["name"] == "top-1"


@pytest.mark.parametrize(
    ("stage", "ended", "first"),
    [
        ("search", (), "supernet"),
        ("subnet", (), "supernet"),
        ("merge", (), "supernet"),
        ("subnet", ("supernet",), "search"),
        ("merge", ("supernet",), "search"),
        ("merge", ("supernet", "search"), "subnet"),
    ],
)
def test_a_stage_says_which_comes_first(
    stage: str, ended: tuple[str, ...], first: str, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gone = [name for name in STAGES if name not in ended]
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns(*gone, "plan.json", "model.*"))
    if "search" in ended:
        shutil.copy(finished / "search" / "plan.json", out / "search")
    before = tiny.contents(out)
    outcome = tiny.updp(stage, "--out", out)
    assert outcome.code == 2
    assert outcome.err == f"updp: '{out}' has no {first} yet: run `updp {first}` first\n"
    assert tiny.contents(out) == before


def test_weights_are_remembered_with_their_model(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from updp.models import load_model

    spec, out = tiny.write_model(tmp_path), tmp_path / "run"
    save_file(load_model(spec, seed=9).state_dict(), tmp_path / "w.safetensors")
    options = tiny.options(tiny.make_recipe(), spec)
    weights = ("--weights", tmp_path / "w.safetensors")
    assert tiny.updp("supernet", *options, *weights, "--out", out).code == 0
    key = (out / "supernet" / "key.json").read_bytes()
    assert tiny.updp("supernet", "--out", out).code == 0
    assert tiny.updp("supernet", "--model", spec, "--out", out).code == 0
    assert (out / "supernet" / "key.json").read_bytes() == key
    # Another model does not get them.
    other = spec.replace(":tiny", ":tokens")
    refused = tiny.updp("supernet", "--model", other, "--out", out)
    assert "holds another run: model is" in refused.err
    assert tiny.updp("supernet", "--model", other, "--out", out, "--fresh").code == 0
    assert read_json(out / "run.json")["weights"] == ""


def test_inspect_prints_sites_and_json(tmp_path: Path) -> None:
    spec = tiny.write_model(tmp_path).replace(":tiny", ":tokens")
    outcome = tiny.updp("inspect", spec, "--input-size", "1x8x8", "--set", "measure.rounds=3")
    assert outcome.code == 0
    assert "3 sites; baseline " in outcome.out
    assert "for a batch of 32" in outcome.out
    assert "blocks.2" in outcome.out
    outcome = tiny.updp("inspect", spec, "--input-size", "1x8x8", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert [site["site"] for site in found["sites"]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert found["sites"][0]["macs"] == 16 * 8 * 8  # one linear layer on 16 tokens
    assert found["sites"][0]["keep_macs"] == 2 * 16 * 8 * 16
    others = [other["candidate"]["kind"] for other in found["sites"][0]["others"]]
    assert set(others) - {"narrow"} == {"drop"}  # on the clock of this machine


def test_globs_choose_sites(tmp_path: Path) -> None:
    spec = tiny.write_model(tmp_path)
    few = ("--set", "measure.rounds=3", "--input-size", "1x8x8", "--json")
    globs = ("--include", "blocks.[012]", "--exclude", "*.1")
    found = json.loads(tiny.updp("inspect", spec, *few, *globs).out)
    assert [site["site"] for site in found["sites"]] == ["blocks.0", "blocks.2"]
    outcome = tiny.updp("inspect", spec, *few, "--exclude", "stage.*")
    assert outcome.code == 2
    assert "'stage.*' matches no site" in outcome.err


def test_inspect_says_why_a_block_cannot_be_pruned(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        tiny.MODEL
        + """

class Odd(Block):
    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)) * x.mean())


def odd():
    model = Tiny()
    model.blocks[1] = Odd(6)
    return model
"""
    )
    outcome = tiny.updp("inspect", f"{tmp_path}/model.py:odd", "--input-size", "1x8x8")
    assert outcome.code == 0
    assert "4 sites" in outcome.out
    odd = ("--set", "candidates.drop=never")
    outcome = tiny.updp("inspect", f"{tmp_path}/model.py:odd", "--input-size", "1x8x8", *odd)
    assert "3 sites" in outcome.out
    assert "1 that cannot be pruned:\n  blocks.1 (Odd): `mul` takes several" in outcome.out
