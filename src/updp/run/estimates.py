"""Estimate a run before it starts: time and memory of each stage, from a few of its steps.

The stages' own functions run in a temporary directory, and their results are discarded. Only
latencies of candidates are timed in full, because the real run then finds them in the cache.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from updp.errors import UserError
from updp.io import processes
from updp.io.progress import Progress, Silent
from updp.io.seeds import random_state
from updp.io.tracking import Board
from updp.measure import Meter, PeakMemory, Work, peak_use
from updp.run.directory import RunDirectory
from updp.run.input_checks import check_trainable
from updp.run.keys import make_keys
from updp.run.rehearsal import Rehearsal
from updp.stages.context import STAGES, Context, RunInputs


@dataclass(frozen=True)
class StageEstimate:
    """Time and peak memory of one stage; a stage that is `done` takes neither."""

    stage: str
    works: tuple[Work, ...] = ()
    memory: PeakMemory = field(default_factory=PeakMemory)
    done: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of the whole stage."""
        return sum(work.seconds for work in self.works)


@dataclass(frozen=True)
class Estimate:
    """Result of `updp.estimate`: time and peak memory of a run, stage by stage.

    >>> found = updp.estimate(model, "digits", recipe)
    >>> [stage.stage for stage in found.stages]
    ['sites', 'supernet', 'search', 'subnet', 'merge']
    >>> training = found.stages[3].works[-1]
    >>> training.name, training.steps, training.measured <= training.steps
    ('training steps', 12, True)
    """

    stages: tuple[StageEstimate, ...]

    @property
    def minutes(self) -> float:
        """Minutes for all stages that have not finished."""
        return sum(stage.seconds for stage in self.stages) / 60

    @property
    def memory(self) -> PeakMemory:
        """Highest peak memory of all stages."""
        return PeakMemory(
            max((s.memory.process for s in self.stages if s.memory.process), default=None),
            max((s.memory.device for s in self.stages if s.memory.device), default=None),
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data; memory is in MiB."""
        stages = [{**asdict(s), "seconds": s.seconds} for s in self.stages]
        return {"minutes": self.minutes, "stages": stages}


def estimate_run(
    inputs: RunInputs,
    out: Path | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:
    """Measure a few steps of each stage of a run.

    Args:
        inputs: the opened and checked inputs of the run.
        out: a run directory; its finished stages are not measured. Nothing is written there.
        progress: where to report to.
        clock: function that returns the time in seconds.

    Raises:
        UserError: the run itself would be refused, before its first stage or after `sites`; `out`
            holds another run; or this is one of several processes.
    """
    if processes.count() > 1:
        raise UserError("updp estimate measures one process: start it without torchrun")
    check_trainable(inputs.baseline, inputs.recipe)
    report = progress or Silent()
    meter = Meter(inputs.feed.device, clock)
    before = Context(**vars(inputs), root=out or Path())
    ended: list[str] = []
    if out is not None:
        directory = RunDirectory(out)
        directory.check_keys(make_keys(before), STAGES[-1])
        ended = [name for name in STAGES if directory.is_done(name)]
    before.require_budget()
    rows: list[StageEstimate] = []
    report.begin("measuring a few steps of each stage", len(STAGES))
    with TemporaryDirectory(prefix="updp-") as folder, random_state():
        parts = {**vars(inputs), "progress": meter, "board": Board()}
        context = Context(**parts, root=Path(folder))
        context.keys = make_keys(context)
        rehearsal = Rehearsal(context, meter)
        for name in STAGES:
            if name in ended:
                rehearsal.take_over(name, before)
                rows.append(StageEstimate(name, done=True))
            else:
                with peak_use(inputs.feed.device) as memory:
                    works = rehearsal.measure(name)
                memory.add(rehearsal.growth)
                rows.append(StageEstimate(name, tuple(w for w in works if w.steps), memory))
            report.advance()
    return Estimate(tuple(rows))
