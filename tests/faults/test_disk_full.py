"""A disk that is full at any change of any file: one line, exit code 3, and the run goes on."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.faults.kills import assert_same, options
from tests.faults.operations import Operation, watched
from updp.run.records import RunRecord

pytestmark = pytest.mark.usefixtures("fixed_clock")

# What takes room.
KINDS = ("open", "write", "close", "fsync", "rename", "mkdir")
ADVICE = "No space left on device; make room, and the same command goes on"


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at(kind: str, number: int) -> Callable[[Operation], None]:
    """The disk is full at the `number`th change of this kind."""
    left = number

    def before(operation: Operation) -> None:
        nonlocal left
        left -= operation.kind == kind
        if not left:
            left = -1
            full()

    return before


def at_each(seen: set[Operation]) -> Callable[[Operation], None]:
    """The disk is full at each change that was not met before."""

    def before(operation: Operation) -> None:
        if operation.kind in KINDS and operation not in seen:
            seen.add(operation)
            full()

    return before


def refused(root: Path, before: Callable[[Operation], None], *command: str | Path) -> bool:
    """Whether the command met a full disk, and said so as it should; else it has ended well."""
    with watched(root, before):
        outcome = tiny.updp(*command)
    if outcome.code == 0:
        return False
    *_, line = outcome.err.splitlines()
    assert (outcome.code, "Traceback" in outcome.err) == (3, False), outcome
    assert line.startswith(f"updp: {root}"), outcome
    assert line.endswith(ADVICE), outcome
    assert not list(root.rglob("*.tmp"))
    return True


def test_a_full_disk_is_one_line_and_the_run_goes_on(finished: Path, tmp_path: Path) -> None:
    spec, run = RunRecord.read(finished).model, tmp_path / "run"
    command = ["prune", *tiny.options(tiny.make_recipe(), spec), "--out", str(run)]
    faults = {"mkdir": 1, "open": 2, "write": 4, "close": 11, "fsync": 16, "rename": 20}
    for kind, number in faults.items():  # each goes on where the one before has stopped
        assert refused(run, at(kind, number), *command)
    assert tiny.updp(*command).code == 0
    for name in ("plan.json", "model.safetensors", "result.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_a_disk_full_at_each_change_of_a_run(tmp_path: Path) -> None:
    command = ["prune", *options(tiny.write_model(tmp_path))]
    whole, run, seen = tmp_path / "whole", tmp_path / "run", set[Operation]()
    assert tiny.updp(*command, "--out", whole).code == 0
    count = times = 0
    while refused(run, at_each(seen), *command, "--out", run):
        assert len(seen) > count
        count, times = len(seen), times + 1
    assert len(seen) == count  # the run that has ended met no full disk that it kept to itself
    print(f"{times} times, {len(seen)} changes")
    assert {operation.kind for operation in seen} == set(KINDS)
    assert len(seen) > 250
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "report RUN",
        "export RUN --to safetensors",
        "bench RUN --runtime eager --batch 1 --threads 1 --rounds 3",
    ],
)
def test_a_disk_full_at_each_change_of_what_is_made_of_a_run(command: str, run: Path) -> None:
    """Nothing of the run changes, and nothing half-made is left."""
    arguments, seen = command.replace("RUN", str(run)).split(), set[Operation]()
    model = [] if "report" in command else ["--model", RunRecord.read(run).model]
    before = tiny.contents(run)
    while refused(run, at_each(seen), *arguments, *model):
        pass
    assert len(seen) >= 6
    assert tiny.contents(run).items() >= before.items()
