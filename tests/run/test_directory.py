import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.tiny import open_inputs
from updp import UserError
from updp.recipe import Recipe
from updp.run.directory import RunDirectory
from updp.run.integrity import PUBLISHED
from updp.run.pipeline import open_run_directory
from updp.run.records import RunRecord, versions
from updp.stages.context import STAGES, StageKey


class Key(StageKey):
    model: str | None = "m"
    recipe: dict[str, Any] = {"data": {"shape": [1, 2]}, "seed": 0}  # noqa: RUF012
    budget: str | None = None


def key(stage: str, **changes: Any) -> Key:
    """The key of a stage."""
    kind = type(stage, (Key,), {"FILE": f"{stage}/key.json"})
    return kind(**changes)


KEYS = {stage: key(stage) for stage in STAGES}


def record(model: str, **changes: Any) -> RunRecord:
    return RunRecord(model=model, data="", classes=(), input_shape=(), **changes)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run of which the first two stages ended."""
    made = RunDirectory(tmp_path / "run")
    made.write_records(record("m"), Recipe())
    for stage in STAGES[:2]:
        KEYS[stage].write(made.path)
        made.mark_done(stage)
    return made


def test_only_the_teacher_changes_without_a_start_from_the_beginning(
    directory: RunDirectory,
) -> None:
    file = directory.path / "run.json"
    before = file.stat().st_ino
    directory.write_records(record("n"), Recipe())
    assert file.stat().st_ino == before
    directory.write_records(record("n", teacher="t", teacher_weights="w"), Recipe())
    assert RunRecord.read(directory.path) == record("m", teacher="t", teacher_weights="w")
    directory.write_records(record("n"), Recipe())
    assert RunRecord.read(directory.path) == record("m")


@pytest.mark.parametrize("shape", [(3, 2**14, 2**14), (2**40,), (1, 512, 512, 513), (3, 0, 8)])
def test_a_run_cannot_ask_for_an_input_that_fills_memory(
    shape: tuple[int, ...], directory: RunDirectory
) -> None:
    file = directory.path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"input_shape": shape}))
    with pytest.raises(UserError, match=r"run\.json.*input_shape"):
        RunRecord.read(directory.path)


@pytest.mark.parametrize("make", [False, True])
def test_a_new_or_empty_folder_is_accepted(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".run.json.17.tmp").write_text("{")  # a kill's first file
        (tmp_path / "run" / ".lock").touch()
    RunDirectory(tmp_path / "run").check_keys(KEYS, "merge")
    RunDirectory(tmp_path / "run").clear("sites")


def test_the_same_keys_are_the_same_run(directory: RunDirectory) -> None:
    directory.check_keys(KEYS, "merge")
    assert [directory.is_done(stage) for stage in STAGES] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"model": "n"}, "model is 'm' there and 'n' here"),
        ({"budget": "b"}, "budget is None there and 'b' here"),
        ({"model": None}, "model is 'm' there and None here"),
        (
            {"recipe": {"data": {"shape": [1, 3]}, "seed": 0}},
            r"recipe.data.shape is \[1, 2\] there and \[1, 3\] here",
        ),
    ],
)
def test_the_first_difference_is_named(here: dict, said: str, directory: RunDirectory) -> None:
    before = tiny.contents(directory.path)
    with pytest.raises(UserError, match=f"holds another run: {said}; give another folder"):
        directory.check_keys({**KEYS, "supernet": key("supernet", **here)}, "supernet")
    directory.check_keys(
        {**KEYS, "supernet": key("supernet", **here)}, "sites"
    )  # later stages are not looked at
    directory.check_keys(
        {**KEYS, "search": key("search", **here)}, "merge"
    )  # nor are those that never began
    assert tiny.contents(directory.path) == before


def test_clear_forgets_from_a_stage_on(directory: RunDirectory) -> None:
    for name in ("plan.json", "model.safetensors", "result.json"):
        (directory.path / name).touch()
    directory.clear("supernet")
    assert directory.is_done("sites")
    assert not directory.folder("supernet").exists()
    kept = set(tiny.contents(directory.path))
    assert kept == {"run.json", "recipe.yaml", "sites/key.json", "sites/done.json", ".lock"}


def test_a_run_is_described_once(directory: RunDirectory) -> None:
    directory.write_records(record("another"), Recipe(seed=1))
    assert RunRecord.read(directory.path).model == "m"
    assert Recipe.load(directory.path / "recipe.yaml").seed == 1
    directory.clear("sites")
    directory.write_records(record("another"), Recipe(seed=1))
    assert RunRecord.read(directory.path).model == "another"


def test_a_second_process_is_refused(directory: RunDirectory) -> None:
    torn = directory.folder("supernet") / ".checkpoint.safetensors.17.tmp"
    torn.touch()
    with directory.lock():
        assert not torn.exists()
        with pytest.raises(UserError, match="another process is at work"), directory.lock():
            pass
    with directory.lock():
        pass


def test_publishing_again_changes_nothing(directory: RunDirectory) -> None:
    for name, stage in PUBLISHED.items():
        directory.folder(stage).mkdir(exist_ok=True)
        (directory.folder(stage) / name).write_text("{}")
    directory.publish()
    os.utime(directory.path / "plan.json", (1, 1))
    directory.publish()
    assert (directory.path / "plan.json").stat().st_mtime == 1


def test_what_a_kill_left_beside_the_results_goes(directory: RunDirectory) -> None:
    for name, stage in PUBLISHED.items():
        directory.folder(stage).mkdir(exist_ok=True)
        (directory.folder(stage) / name).write_text("{}")
    left = directory.path / ".model.safetensors.17.tmp"
    for _ in range(2):  # with results that are missing, and with those that are there
        left.touch()
        directory.publish()
        assert not left.exists()


def test_the_end_of_a_stage_removes_its_checkpoint(directory: RunDirectory) -> None:
    (directory.folder("subnet")).mkdir()
    (directory.folder("subnet") / "checkpoint.safetensors").touch()
    directory.mark_done("subnet")
    assert not (directory.folder("subnet") / "checkpoint.safetensors").exists()


def test_versions_of_packages_are_recorded() -> None:
    assert {"python", "updp", "torch", "timm", "optuna"} <= versions().keys()


@pytest.mark.parametrize(
    ("out", "splits", "refused"),
    [
        ("images/train/run", ("train", "test"), True),
        ("images/test/deeper/run", ("train", "test"), True),
        ("images/run", ("train", "test"), False),
        ("run", ("train", "test"), False),
        ("images/run", ("",), True),
    ],
)
def test_a_run_directory_among_images_is_refused(
    out: str, splits: tuple[str, ...], refused: bool, tmp_path: Path, tiny_model: str
) -> None:
    """As a class of its own it would be read, and the same command would not go on."""
    for split, number, name in product(splits, range(10), range(12)):
        folder = tmp_path / "images" / split / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), 20 * name + number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    inputs = open_inputs(tiny_model, tmp_path / "images", recipe)
    if not refused:
        open_run_directory(inputs, tmp_path / out)
        return
    with pytest.raises(UserError, match=r"lies among the images of .*: give a folder outside"):
        open_run_directory(inputs, tmp_path / out)


def test_the_command_of_another_recipe_is_that_which_is_recorded(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(shutil.copytree(finished, tmp_path / "run"))
    record = RunRecord.read(directory.path).model_copy(update={"command": ("updp", "again")})
    before = RunRecord.read(directory.path).command
    directory.write_records(record, Recipe.of_run(directory.path))
    assert RunRecord.read(directory.path).command == before
    directory.write_records(record, Recipe.of_run(directory.path).updated("subnet.lr=0.5"))
    assert RunRecord.read(directory.path).command == ("updp", "again")
