"""Another teacher on the command line: what is remembered, and that it teaches stage 3 alone."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests import tiny
from tests.run.test_unlabelled import images
from updp.cli.options import RunOptions, RunRecipeOptions, TeacherOptions
from updp.cli.run_context import read_inputs
from updp.io.files import read_json
from updp.io.progress import Silent
from updp.models import load_model

pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


def done(*arguments: str | Path) -> None:
    outcome = tiny.updp(*arguments)
    assert (outcome.code, outcome.err) == (0, "")


def refused(*arguments: str | Path) -> str:
    outcome = tiny.updp(*arguments)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    return outcome.err


def test_a_teacher_is_chosen_remembered_and_left(run: Path, finished: Path, tmp_path: Path) -> None:
    spec = str(read_json(run / "run.json")["model"])
    other, weights = spec.replace(":tiny", ":tokens"), tmp_path / "w.safetensors"
    save_file(load_model(other, seed=9).state_dict(), weights)
    given = ("--teacher", other, "--teacher-weights", weights)
    line = refused("prune", *given, "--out", run)
    assert "holds another run: teacher is the baseline there and '" in line
    assert "`updp subnet --fresh` keeps the stages before it" in line

    done("subnet", *given, "--fresh", "--out", run)
    about = read_json(run / "run.json")
    assert (about["teacher"], about["teacher_weights"]) == (other, str(weights))
    assert about["command"] == read_json(finished / "run.json")["command"]
    for stage in ("supernet", "search"):
        assert (run / stage / "key.json").read_bytes() == (
            finished / stage / "key.json"
        ).read_bytes()
    taught = (run / "subnet" / "weights.safetensors").read_bytes()
    assert taught != (finished / "subnet" / "weights.safetensors").read_bytes()
    done("merge", "--out", run)  # with what the directory knows
    assert (run / "subnet" / "weights.safetensors").read_bytes() == taught
    done("prune", "--teacher", other, "--out", run)  # its weights too

    save_file(load_model(other, seed=8).state_dict(), weights)
    assert "another run: the teacher's weights are not those" in refused("merge", "--out", run)

    # Back to the baseline.
    done("subnet", "--teacher", "baseline", "--fresh", "--out", run)
    done("merge", "--out", run)
    assert read_json(run / "run.json")["teacher"] == ""
    for name in ("plan.json", "model.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--teacher", "timm/resnet17"), "model 'timm/resnet17' is unknown: did you mean"),
        (("--teacher", "resnet18"), "model 'resnet18': write timm/NAME, torchvision/NAME, hf/DIR"),
        (("--teacher", "timm/test_vit"), "teacher 'timm/test_vit' would be untrained"),
        (("--teacher-weights", "w.safetensors"), "teacher weights are for a teacher given by name"),
    ],
)
def test_wrong_teachers_are_one_line(arguments: tuple[str, ...], said: str, run: Path) -> None:
    before = tiny.contents(run)
    assert refused("prune", *arguments, "--out", run).startswith(f"updp: {said}")
    assert tiny.contents(run) == before


def test_a_teacher_with_other_classes_or_for_features_is_refused(run: Path) -> None:
    spec = str(read_json(run / "run.json")["model"])
    five = spec.replace(":tiny", ":five")
    line = refused("prune", "--teacher", five, "--out", run)
    assert line.startswith(f"updp: teacher '{five}' has 5 classes and the data 10: ")
    features = ("--set", "subnet.features=1")
    line = refused("prune", "--teacher", spec.replace(":tiny", ":tokens"), *features, "--out", run)
    assert line.startswith("updp: subnet.features compares the pruned blocks with the model's own")


def test_starting_over_forgets_teacher_and_further_images(run: Path, tmp_path: Path) -> None:
    """But not the model and the data, where these are not named again."""
    about, spec = read_json(run / "run.json"), str(read_json(run / "run.json")["model"])
    further = str(images(tmp_path / "more", 20, 0))
    more = {"teacher": spec.replace(":tiny", ":tokens"), "unlabelled": further, "weights": "w"}
    (run / "run.json").write_text(json.dumps(about | more))
    options = RunOptions(model=spec, data="digits", out=run)
    names = read_inputs(
        options, RunRecipeOptions(budget=["blocks=1"]), Silent(), starts_over=True
    ).names
    assert (names.teacher, names.unlabelled, names.weights) == ("", "", "")
    (run / "run.json").write_text(json.dumps(about | {"unlabelled": further}))
    names = read_inputs(options, RunRecipeOptions(settings=["subnet.distill=1"]), Silent()).names
    assert names.unlabelled == further
    taken_off = TeacherOptions(unlabelled="none")
    names = read_inputs(options, RunRecipeOptions(), Silent(), teacher=taken_off).names
    assert names.unlabelled == ""
