"""Kills of a whole run, at random moments and at each change of the disk, continued each time.

`python -m tests.faults.kills FOLDER --processes 2 --minutes 9` goes on where it stopped, and
prints what was survived so far; `make test-slow` does all of it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests import tiny
from tests.faults.operations import Operation, watched
from updp.stages.context import STAGES

KILLED = -signal.SIGKILL
DEADLY = ("write", "rename", "fsync")
# All that a run has, and few steps of each, with a checkpoint after every one.
CHANGES = (
    "data.held_out=60",
    "supernet.epochs=0.1",
    "supernet.ema=0.9",
    "search.evaluations=4",
    "search.refined=2",
    "reconstruct.epochs=1",
    "reconstruct.images=32",
    "subnet.epochs=0.1",
    "subnet.optimizer=adamw",
    "subnet.distill=0.5",
    "subnet.checks=2",
    "subnet.ema=0.9",
)
RESULTS = (
    *("plan.json", "model.safetensors", "result.json", "recipe.yaml", "merge/checks.json"),
    *("supernet/figures.jsonl", "supernet/weights.safetensors", "search/front.json"),
    *("subnet/figures.jsonl", "subnet/weights.safetensors", "subnet/reconstruct.json"),
)


class Kills:
    """A run of so many processes in a folder, killed again and again beside an unkilled one."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        self.run, self.whole = folder / "random", folder / "whole"
        self.stepped = folder / "stepped"  # the run that is killed at each change
        folder.mkdir(parents=True, exist_ok=True)
        self.spec = tiny.write_model(folder).replace(":tiny", ":calm")
        start = time.monotonic()
        if not (self.whole / "result.json").exists():
            shutil.rmtree(self.whole, ignore_errors=True)
            self._join(self._start(tiny.prune_quietly, *self._command(self.whole)), [0])
        self.seconds = time.monotonic() - start  # of a whole run, where this call made one

    def at_random(self, count: int, until: float) -> None:
        """Kill at random moments: one process of several, or all of them."""
        chance = random.Random(f"{self.processes} {self._count('random')}")
        while self._count("random") < count and time.monotonic() < until:
            processes = self._start(tiny.prune_quietly, *self._command(self.run))
            time.sleep(chance.random() * 0.35 * max(self.seconds, 6.0))
            hit = chance.choice([[n] for n in range(self.processes)] + [range(self.processes)])
            for number in hit:
                processes[number].kill()
            if KILLED in self._join(processes):
                self._note("random", _stage(self.run))
            else:
                self._compare(self.run)

    def at_each_change(self, until: float) -> bool:
        """Kill at every write, rename and fsync, once each; whether none is left."""
        seen, command = self.folder / "changes.jsonl", self._command(self.stepped)
        while time.monotonic() < until:
            codes = self._join(self._start(die_at_a_new_change, self.stepped, seen, *command))
            if codes[0] == 0:
                self._compare(self.stepped)
                return True
            assert codes[0] == KILLED, codes
            self._note("change", _stage(self.stepped))
        return False

    def counts(self) -> dict[str, int]:
        """Kills so far by how they came about, and by the stage that was under way."""
        kinds = Counter(kind for kind, _ in self._notes())
        for line in _lines(self.folder / "changes.jsonl"):
            kinds[f"at a {json.loads(line)[0]}"] += 1
        return dict(kinds + Counter(f"{kind} in {stage}" for kind, stage in self._notes()))

    def _command(self, out: Path) -> list[str]:
        return ["prune", *options(self.spec), "--out", str(out)]

    def _start(self, function: object, *args: object) -> list[BaseProcess]:
        if self.processes == 1:
            return [tiny.start(function, *args)]  # type: ignore[arg-type]
        return tiny.start_together(self.processes, function, *args)  # type: ignore[arg-type]

    def _join(
        self, processes: Sequence[BaseProcess], wanted: Sequence[int] | None = None
    ) -> list[int | None]:
        for process in processes:
            process.join(120)  # those that are left do not wait for the dead
            if process.is_alive() and not _has_met(process):
                process.terminate()  # as a launcher ends those that would meet one that is gone
                process.join()
        codes = [process.exitcode for process in processes]
        assert None not in codes, "a process waits for one that was killed"
        assert wanted is None or set(codes) == set(wanted), codes
        return codes

    def _compare(self, run: Path) -> None:
        """A run that ended is the unkilled one, byte by byte; the next begins from nothing."""
        assert_same(run, self.whole)
        self._note("ended identically", "all")
        shutil.rmtree(run)

    def _note(self, kind: str, stage: str) -> None:
        with (self.folder / "kills.jsonl").open("a") as file:
            file.write(json.dumps([kind, stage]) + "\n")

    def _notes(self) -> list[list[str]]:
        return [json.loads(line) for line in _lines(self.folder / "kills.jsonl")]

    def _count(self, kind: str) -> int:
        return sum(found == kind for found, _ in self._notes())


def options(spec: str) -> list[str]:
    """Arguments of `updp prune` for the run that all faults are put into."""
    return [*tiny.options(tiny.make_recipe(), spec), *(f"--set={change}" for change in CHANGES)]


def assert_same(run: Path, whole: Path) -> None:
    """Both runs have the same results, byte by byte, and nothing is left of a kill."""
    for name in RESULTS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    left = list(run.rglob("*.tmp"))
    assert not left, left


def die_at_a_new_change(root: Path, seen: Path, *command: str) -> None:
    """Run the command until a change of the disk that is not in the file `seen`, and die there."""
    known = {tuple(json.loads(line)) for line in _lines(seen)}

    def before(operation: Operation) -> None:
        if operation.kind in DEADLY and tuple(operation) not in known:
            with seen.open("a") as file:
                file.write(json.dumps(operation) + "\n")
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(root, before):
        tiny.prune_quietly(*command)


def _has_met(process: BaseProcess) -> bool:
    """Whether a process is connected to the others: gloo then runs threads in it."""
    return len([*Path(f"/proc/{process.pid}/task").iterdir()]) > 1


def _stage(run: Path) -> str:
    """The stage that was begun last."""
    begun = [stage for stage in STAGES if (run / stage / "key.json").exists()]
    return begun[-1] if begun else "beginning"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--random", type=int, default=100, help="kills at random moments")
    parser.add_argument("--minutes", type=float, default=1e6)
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    kills = Kills(given.folder / str(given.processes), given.processes)
    kills.at_random(given.random, until)
    done = kills.at_each_change(until)
    print(json.dumps(kills.counts(), indent=1), "that is all" if done else "to be continued")


if __name__ == "__main__":
    main()
