"""Latency, always as a comparison: interleaved in one process, medians and quartiles.

What a machine's drift does to one function it does to the other, so ratios and differences are
taken round by round.
"""

from __future__ import annotations

import logging
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any, Protocol

from torch import nn

from updp.measure.runtime import runner
from updp.recipe import MeasureSettings

# On machines with a CUDA compiler and no GPU, importing the benchmark module warns of that.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
from torch.utils.benchmark import timer  # noqa: E402

_LONG = 0.05  # seconds: what takes longer is timed once per round, however warm it is


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of repeated measurements, of milliseconds or of a ratio."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Timing:
        """Of at least two values."""
        low, median, high = quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def overlaps(self, other: Timing) -> bool:
        """Whether the two cannot be told apart: their quartiles overlap."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


@dataclass(frozen=True)
class Latency:
    """Of one function: milliseconds; how many times faster than the first it is, and by how much.

    `saved` is the first one's milliseconds minus its own, round by round.
    """

    ms: Timing
    speedup: Timing
    saved: Timing

    @property
    def faster(self) -> bool:
        """Whether it beats the first function beyond the noise: the quartiles lie above 1."""
        return self.speedup.low > 1

    @property
    def undecided(self) -> bool:
        """Whether the quartiles lie on both sides of 1."""
        return self.speedup.low <= 1 < self.speedup.high

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal one."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Latency:
        """The inverse of `to_json`. Raises KeyError or TypeError for data that are not its own."""
        return cls(*(Timing(**data[name]) for name in ("ms", "speedup", "saved")))


Functions = Mapping[str, Callable[[], object]]
Rounds = dict[str, list[float]]  # milliseconds of each function in each round


class Clock(Protocol):
    """What times functions in turn."""

    def __call__(
        self, functions: Functions, rounds: int, seconds: float, tick: Callable[[], None]
    ) -> Rounds:
        """Milliseconds of each function, `rounds` times, each for about so many seconds."""


def compare(
    functions: Functions,
    *,
    rounds: int = 11,
    round_seconds: float = 0.02,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Time each function in turn, `rounds` times, each time for about `round_seconds`.

    `tick` is called after each round.
    """
    times = _clock.get()(functions, rounds, round_seconds, tick)
    first = next(iter(times.values()))
    return {
        name: Latency(
            Timing.of(values),
            Timing.of([a / b for a, b in zip(first, values, strict=True)]),
            Timing.of([a - b for a, b in zip(first, values, strict=True)]),
        )
        for name, values in times.items()
    }


@contextmanager
def use_clock(clock: Clock) -> Iterator[None]:
    """Take all times from `clock` while it lasts: tests do not depend on the machine so."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)


def wall_clock(
    functions: Functions, rounds: int, seconds: float, tick: Callable[[], None]
) -> Rounds:
    """See `Clock`: interleaved, each function warmed up and repeated to fill its round."""
    timers, numbers = {}, {}
    for name, function in functions.items():
        timers[name] = timeit.Timer("f()", timer=timer, globals={"f": function})
        once = timers[name].timeit(1)  # warms up
        if once < _LONG:
            once = min(timers[name].timeit(1) for _ in range(3))
        numbers[name] = max(1, round(seconds / max(once, 1e-7)))
    times: Rounds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, clock in timers.items():
            if len(timers) > 1 and numbers[name] > 1:
                clock.timeit(1)  # what ran before has its own data in the caches
            times[name].append(1e3 * clock.timeit(numbers[name]) / numbers[name])
        tick()
    return times


_clock: ContextVar[Clock] = ContextVar("clock", default=wall_clock)


def compare_modules(
    modules: Mapping[str, nn.Module],
    *inputs: Any,
    settings: MeasureSettings | None = None,
    rounds: int = 11,
    round_seconds: float = 0.02,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Time modules on the same inputs, deployed as `settings` says. Raises what `runner` does."""
    runners = {
        name: runner(m, inputs, settings or MeasureSettings()) for name, m in modules.items()
    }
    return compare(runners, rounds=rounds, round_seconds=round_seconds, tick=tick)
