"""Kills at any moment: what is continued ends bit by bit as what was never killed."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import tiny
from updp.io.files import read_json

STAGES = ("supernet", "search", "subnet", "merge")
# What tells that a stage is well under way.
SIGNS = {
    "supernet": "supernet/checkpoint.safetensors",
    "search": "search/scores.jsonl",
    "subnet": "subnet/checkpoint.safetensors",
    "merge": "merge/key.json",
}
KILLED = -signal.SIGKILL


def arguments(folder: Path, out: Path) -> list[str]:
    """AdamW with dropout and all that training has, every step a checkpoint, long enough to hit."""
    recipe = tiny.make_recipe()
    changes = (
        "--set=supernet.epochs=0.6",
        "--set=subnet.epochs=0.9",
        "--set=subnet.optimizer=adamw",
        "--set=subnet.features=0.5",
        "--set=subnet.mixup=0.3",
        "--set=subnet.cutmix=1",
        "--set=subnet.label_smoothing=0.1",
        "--set=supernet.ema=0.9",
        "--set=subnet.ema=0.9",
        "--set=search.evaluations=6",
        "--set=reconstruct.epochs=1",
        "--set=reconstruct.images=48",
        "--set=subnet.checks=3",
    )
    spec = tiny.write_model(folder)
    return ["prune", *tiny.options(recipe, spec), *changes, "--out", str(out)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.fresh(tiny.prune_quietly, *arguments(folder, folder / "run"))
    return folder / "run"


def assert_same(out: Path, whole: Path) -> None:
    for name in (
        *("plan.json", "model.safetensors", "result.json", "recipe.yaml", "merge/checks.json"),
        *("supernet/figures.jsonl", "supernet/weights.safetensors"),
        *("subnet/figures.jsonl", "subnet/weights.safetensors", "subnet/reconstruct.json"),
    ):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert searched(out) == searched(whole)
    assert not list(out.rglob("*.tmp"))


def searched(out: Path) -> list[tuple]:
    points = read_json(out / "search" / "front.json")["points"]
    return [(p["choices"], p["score"], p["metric"], p["complete"]) for p in points]


def wait_for(path: Path, process: BaseProcess) -> None:
    while not path.exists() and process.is_alive():
        time.sleep(0.002)


def test_a_run_killed_in_every_stage_ends_bit_identically(whole: Path, tmp_path: Path) -> None:
    # The file is the same one, as for a user.
    command = arguments(whole.parent, out := tmp_path / "run")
    hit = []
    for stage in STAGES:
        process = tiny.start(tiny.prune_quietly, *command)
        wait_for(out / SIGNS[stage], process)
        process.kill()
        process.join()
        if process.exitcode == KILLED and not (out / stage / "done.json").exists():
            hit.append(stage)
    tiny.fresh(tiny.prune_quietly, *command)
    # On a busy machine a stage may end before the signal comes, but not all of them.
    assert len(hit) >= 2
    assert_same(out, whole)


def kill_at(number: int, *command: str) -> None:
    """Run until the `number`th file is about to be safe on the disk, and die there."""
    sync, count = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        tiny.prune_quietly(*command)


def test_a_kill_between_a_file_and_its_name_loses_nothing(whole: Path, tmp_path: Path) -> None:
    """Odd ones are of a file not yet renamed, even ones of its folder."""
    command = arguments(whole.parent, out := tmp_path / "run")
    for number in (3, 18, 57):
        process = tiny.start(kill_at, number, *command)
        process.join()
        assert process.exitcode == KILLED
    tiny.fresh(tiny.prune_quietly, *command)
    assert_same(out, whole)


def test_two_processes_do_not_share_a_directory(
    tiny_model: str, tmp_path: Path, fixed_clock: None
) -> None:
    from filelock import FileLock

    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"):
        outcome = tiny.updp("prune", *tiny.options(tiny.make_recipe(), tiny_model), "--out", out)
    assert outcome.code == 2
    assert outcome.err == (
        f"updp: another process is at work in '{out}': wait for it, or give another folder\n"
    )
