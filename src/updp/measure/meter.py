"""Measure long work: the time of all its steps from a few of them, and peak memory."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

_FEWEST = 3  # minimum number of steps after the first, which also warms up
_SECONDS = 2.0  # quick steps are measured for about this many seconds
_MIB = 2**20


@dataclass(frozen=True)
class Work:
    """A piece of work: `measured` of its `steps` were run; `seconds` is the time for all steps."""

    name: str
    steps: int
    measured: int
    seconds: float

    def times(self, factor: float) -> "Work":
        """The same steps, each taking `factor` times as long."""
        return replace(self, seconds=self.seconds * factor)


class Meter:
    """Progress that stops a piece of work after a few steps, and extrapolates the time of all.

    Of the measured steps the first, which warms up, counts once; the mean of the others stands for
    all others. Steps on CUDA are waited for.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device, self._clock = device, clock
        self._total: int | None = None  # number of steps of the current work
        self._ends_early = False
        self._laps: list[float] = []  # time at the end of each step

    def time(self, name: str, run: Callable[[], object], steps: int | None = None) -> Work:
        """Run until `advance` has reported a few steps, or to the end.

        Args:
            name: name of the steps, in the plural.
            run: the work; it reports the number of its steps by `begin`.
            steps: the number of steps, if `run` does not report it.
        """
        self._ends_early = True
        return self._measured(name, run, steps)

    def sample(self, name: str, run: Callable[[], object], steps: int) -> Work:
        """Run a selection of `steps` steps, made by `run`, to the end; none if `steps` is 0."""
        self._ends_early = False
        return self._measured(name, run, steps) if steps > 0 else Work(name, 0, 0, 0.0)

    def _measured(self, name: str, run: Callable[[], object], steps: int | None) -> Work:
        self._total, self._laps = steps, []
        start = self._now()
        with suppress(_Enough):
            run()
        whole, laps = self._now() - start, self._laps
        total = len(laps) if self._total is None else self._total
        self._total = None
        if len(laps) >= total or not laps:
            return Work(name, total, len(laps), whole)
        first = laps[0] - start
        mean = (laps[-1] - laps[0]) / (len(laps) - 1) if len(laps) > 1 else first
        return Work(name, total, len(laps), first + (total - 1) * mean)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Receive the number of steps, if all of them would be run."""
        if self._ends_early:
            self._total = total

    def advance(self, note: str = "") -> None:
        """Count one step, and stop the work if enough was measured."""
        self._laps.append(self._now())
        since = self._laps[-1] - self._laps[0]
        enough = len(self._laps) > _FEWEST and since >= _SECONDS
        if enough and self._ends_early and self._total is not None:
            raise _Enough

    def say(self, text: str) -> None:
        """Do nothing."""

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


class _Enough(Exception):
    """Stops work once enough was measured."""


@dataclass
class PeakMemory:
    """Peak memory use of this process in MiB, and of its tensors on a CUDA device.

    `process` is None if the system does not report it.
    """

    process: int | None = None
    device: int | None = None

    def add(self, tensors: int) -> None:
        """Count further bytes of tensors, on the CUDA device if there is one."""
        if self.device is not None:
            self.device += tensors // _MIB
        elif self.process is not None:
            self.process += tensors // _MIB


@contextmanager
def peak_use(device: torch.device) -> Iterator[PeakMemory]:
    """Context that measures the peak memory use inside it.

    If resetting the peak is not possible, as on systems other than Linux, it is the peak since the
    start of the process.
    """
    # Linux records the peak of a process; this resets it to the present use.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    peak = PeakMemory()
    yield peak
    peak.process = _process_peak()
    if device.type == "cuda":
        peak.device = round(torch.cuda.max_memory_allocated(device) / _MIB)


def _process_peak() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used // (_MIB if sys.platform == "darwin" else 1024)
