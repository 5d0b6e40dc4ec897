import os
from pathlib import Path

import pytest

from tests import tiny
from updp import UserError
from updp.io.files import read_json
from updp.run.directory import STAGES, RunDirectory, versions

KEY = {"model": "m", "recipe": {"data": {"shape": (1, 2)}, "seed": 0}}
KEYS = dict.fromkeys(STAGES, KEY)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run of which the first two stages ended."""
    made = RunDirectory(tmp_path / "run")
    made.describe({"model": "m"}, "seed: 0\n")
    for stage in STAGES[:2]:
        made.begin(stage, KEY)
        made.done(stage)
    return made


def test_only_the_teacher_changes_without_a_start_from_the_beginning(
    directory: RunDirectory,
) -> None:
    file = directory.path / "run.json"
    before = file.stat().st_ino
    directory.describe({"model": "n", "command": []}, "seed: 0\n")
    assert file.stat().st_ino == before
    directory.describe({"model": "n", "teacher": "t", "teacher_weights": "w"}, "seed: 0\n")
    assert read_json(file) == {"model": "m", "teacher": "t", "teacher_weights": "w"}
    directory.describe({"model": "n", "teacher": "", "teacher_weights": ""}, "seed: 0\n")
    assert read_json(file) == {"model": "m", "teacher": "", "teacher_weights": ""}


@pytest.mark.parametrize("make", [False, True])
def test_a_new_or_empty_folder_will_do(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".run.json.17.tmp").write_text("{")  # a kill's first file
        (tmp_path / "run" / ".lock").touch()
    RunDirectory(tmp_path / "run").claim(KEYS, "merge")
    RunDirectory(tmp_path / "run").clear("sites")


def test_the_same_keys_are_the_same_run(directory: RunDirectory) -> None:
    directory.claim(KEYS, "merge")
    assert [directory.is_done(stage) for stage in STAGES] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({**KEY, "model": "n"}, "model is 'm' there and 'n' here"),
        ({**KEY, "budget": "b"}, "budget is None there and 'b' here"),
        ({"recipe": KEY["recipe"]}, "model is 'm' there and None here"),
        (
            {**KEY, "recipe": {"data": {"shape": (1, 3)}, "seed": 0}},
            r"recipe.data.shape is \[1, 2\] there and \[1, 3\] here",
        ),
    ],
)
def test_the_first_difference_is_named(here: dict, said: str, directory: RunDirectory) -> None:
    before = tiny.contents(directory.path)
    with pytest.raises(UserError, match=f"holds another run: {said}; give another folder"):
        directory.claim({**KEYS, "supernet": here}, "supernet")
    directory.claim({**KEYS, "supernet": here}, "sites")  # later stages are not looked at
    directory.claim({**KEYS, "search": here}, "merge")  # nor are those that never began
    assert tiny.contents(directory.path) == before


def test_clear_forgets_from_a_stage_on(directory: RunDirectory) -> None:
    for name in ("plan.json", "model.safetensors", "result.json"):
        (directory.path / name).touch()
    directory.clear("supernet")
    assert directory.is_done("sites")
    assert not directory.stage("supernet").exists()
    kept = set(tiny.contents(directory.path))
    assert kept == {"run.json", "recipe.yaml", "sites/key.json", "sites/done.json"}


def test_a_run_is_described_once(directory: RunDirectory) -> None:
    directory.describe({"model": "another"}, "seed: 1\n")
    assert b'"m"' in (directory.path / "run.json").read_bytes()
    assert (directory.path / "recipe.yaml").read_text() == "seed: 1\n"
    directory.clear("sites")
    directory.describe({"model": "another"}, "seed: 1\n")
    assert b'"another"' in (directory.path / "run.json").read_bytes()


def test_one_process_at_a_time(directory: RunDirectory) -> None:
    torn = directory.stage("supernet") / ".checkpoint.safetensors.17.tmp"
    torn.touch()
    with directory.lock():
        assert not torn.exists()
        with pytest.raises(UserError, match="another process is at work"), directory.lock():
            pass
    with directory.lock():
        pass


def test_publishing_again_changes_nothing(directory: RunDirectory) -> None:
    (directory.stage("search") / "plan.json").parent.mkdir()
    (directory.stage("search") / "plan.json").write_text("{}")
    directory.publish("search", "plan.json")
    os.utime(directory.path / "plan.json", (1, 1))
    directory.publish("search", "plan.json")
    assert (directory.path / "plan.json").stat().st_mtime == 1


def test_the_end_of_a_stage_takes_its_checkpoint(directory: RunDirectory) -> None:
    (directory.stage("subnet")).mkdir()
    (directory.stage("subnet") / "checkpoint.safetensors").touch()
    directory.done("subnet")
    assert not (directory.stage("subnet") / "checkpoint.safetensors").exists()


def test_versions_of_all_that_decides_numbers() -> None:
    assert {"python", "updp", "torch", "timm", "optuna"} <= versions().keys()
