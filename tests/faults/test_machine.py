"""Faults of the machine: a full disk, a missing permission, a file in the way, a signal."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import updp
from tests import tiny
from tests.faults.conftest import Said
from tests.sampling import slow
from updp.errors import explain, printable
from updp.io import files
from updp.io.files import read_tensors
from updp.run import model_and_data
from updp.run.records import RunRecord
from updp.stages import search
from updp.training.precision import MixedPrecision

pytestmark = pytest.mark.usefixtures("fixed_clock")


def nth(number: int, function: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """The function, with a fault at its `number`th call."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            fault()
        return function(*args, **kwargs)

    return call


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def command(finished: Path, tmp_path: Path) -> list[str]:
    """`updp prune` of the finished run, into a folder that is not there yet."""
    spec = RunRecord.read(finished).model
    return ["prune", *tiny.options(tiny.make_recipe(), spec), "--out", str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [
        (errno.EROFS, 3, "give a folder that can be written to"),
        (errno.EACCES, 3, "change its permissions, or give another place"),
        (errno.EEXIST, 2, "move away what is there, or give another place"),
    ],
)
def test_a_folder_that_cannot_be_made(
    number: int,
    code: int,
    advice: str,
    command: list[str],
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    assert said(*command) == (code, f"{tmp_path}/run: {os.strerror(number)}; {advice}")


def test_something_in_the_way_is_one_line(command: list[str], tmp_path: Path, said: Said) -> None:
    run = tmp_path / "run"
    (run / ".lock").mkdir(parents=True)
    code, line = said(*command)
    assert code in (2, 3)  # as the version of filelock has it
    assert f"{run}/.lock" in line
    (run / ".lock").rmdir()
    assert tiny.updp("supernet", *command[1:]).code == 0
    (run / "search").write_text("")
    code, line = said(*command)
    assert (code, line) == (
        2,
        f"{run}/search: File exists; move away what is there, or give another place",
    )


def test_a_dangling_link_is_one_line(command: list[str], tmp_path: Path, said: Said) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    code, line = said(*command)
    assert code == 2
    assert line == f"--out '{tmp_path}/run': '{tmp_path}/run' is a link to nothing, give a folder"


def test_errors_of_the_system_are_user_errors_in_python(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, "fsync", nth(2, os.fsync, full))
    with pytest.raises(updp.UserError, match="No space left on device"):
        updp.prune(tiny_model, "digits", tiny.make_recipe(), out=tmp_path / "run")


def test_a_bug_has_a_traceback_and_says_that_it_is_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise AssertionError("of ours")

    monkeypatch.setattr(search, "make_task", nth(1, search.make_task, broken))
    outcome = tiny.updp(*command)
    assert outcome.code == 1
    assert "AssertionError: of ours" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("updp: this is a bug of updp: report it")


def test_memory_that_does_not_suffice_names_stage_and_setting(
    command: list[str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much() -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(MixedPrecision, "step", nth(1, MixedPrecision.step, too_much))
    code, line = said(*command)
    assert code == 3
    assert line.startswith("memory does not suffice for the stage supernet: lower fit.rows_mb")


def test_memory_that_does_not_suffice_for_data_is_one_line(
    command: list[str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(model_and_data, "open_source", too_much)
    line = "memory does not suffice: free some, or take smaller inputs"
    assert said(*command) == (3, line)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, said: Said) -> None:
    assert printable("a\x1b[31m\x07ä\ud800") == "a\\x1b[31m\\x07ä\\ud800"
    given = ["--model", "timm/\x1b[31mred\n", "--data", "digits", "--budget", "blocks=1"]
    code, line = said("prune", *given)
    assert code == 2
    assert "\\x1b[31mred\\n" in line
    error = explain(FileNotFoundError(errno.ENOENT, "No such file or directory", b"\xff\n"))
    assert printable(str(error)).count("\n") == 0


def test_names_of_classes_are_no_commands(tiny_model: str, tmp_path: Path) -> None:
    """In warnings, tables and lines: a data set's folders may be called anything."""
    for number, name in enumerate(["\x1b[31mred", "\x07b", "c", "d", "e", "f", "g", "h", "i", "j"]):
        for split in ("train", "test"):
            (folder := tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(12):
                grey = np.full((8, 8), 25 * number + i, np.uint8)
                Image.fromarray(grey).save(folder / f"{split}{i}.png")
    settings = ["data.held_out=30", "data.calibration=30", "search.evaluations=2"]
    recipe = ["--recipe=fit-only", "--budget=blocks=1", *(f"--set={s}" for s in settings)]
    arguments = ["--model", tiny_model, "--data", tmp_path / "data", *recipe]
    outcome = tiny.updp("prune", *arguments, "--out", tmp_path / "run", guess=True)
    report = tiny.updp("report", tmp_path / "run", "--format", "markdown")
    assert (outcome.code, report.code) == (0, 0), outcome
    assert "order of the data's (\\x07b, \\x1b[31mred, c, ...)?" in outcome.err
    for text in (outcome.out, outcome.err, report.out, *tiny.contents(tmp_path / "run").values()):
        text = text if isinstance(text, str) else text.decode("latin-1")
        if text.isprintable() or "tensors" not in text:
            assert "\x1b[31m" not in text


@pytest.mark.parametrize("name", ["[/b]x", "[red]v1", "a\x1b[2J"])
def test_a_path_is_no_markup(name: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    out = run.rename(tmp_path / name)
    outcome = tiny.updp("merge", "--model", RunRecord.read(out).model, "--out", out)
    assert outcome.code == 0, outcome
    assert f"result: {printable(str(out))} (load it" in outcome.out
    assert "\x1b" not in outcome.out


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), slow(signal.SIGINT, 130)])
def test_a_signal_in_training_saves_the_step_and_says_how_to_go_on(
    number: int,
    code: int,
    command: list[str],
    finished: Path,
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = ["--set=supernet.checkpoint_seconds=1e6", "--set=subnet.checkpoint_seconds=1e6"]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        step = nth(3, MixedPrecision.step, lambda: signal.raise_signal(number))
        patch.setattr(MixedPrecision, "step", step)
        found, line = said(*command, *slow)
    assert found == code
    assert line == (
        "stopped in the stage supernet after step 3 of 10: the same command goes on from there"
    )
    assert read_tensors(tmp_path / "run/supernet/checkpoint.safetensors")[1]["step"] == 3
    assert signal.getsignal(number) is before
    assert tiny.updp(*command, *slow).code == 0
    ours, theirs = (folder / "model.safetensors" for folder in (tmp_path / "run", finished))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_signal_elsewhere_stops_at_once(
    command: list[str], tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        choose = nth(1, search.choose, lambda: signal.raise_signal(signal.SIGINT))
        patch.setattr(search, "choose", choose)
        assert said(*command, "--fresh") == (
            130,
            "stopped in the stage search: the same command, without --fresh, goes on from there",
        )
    assert (tmp_path / "run/search/scores.jsonl").exists()
    assert tiny.updp(*command).code == 0


def test_a_signal_before_a_run_begins(
    command: list[str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = nth(1, updp.Recipe.updated, lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(updp.Recipe, "updated", stop)
    assert said(*command) == (143, "stopped; the same command starts again")
