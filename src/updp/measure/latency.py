"""Latency, always as a comparison: interleaved in one process, medians and quartiles.

A drift of the machine's clock affects all functions alike, so ratios and differences are computed
round by round.
"""

from __future__ import annotations

import logging
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from torch import nn

from updp.io.memory import kept_memory
from updp.measure.runtime import runner
from updp.recipe import MeasureSettings

# With a CUDA compiler but no GPU, importing the benchmark module logs a warning.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
from torch.utils.benchmark import timer  # noqa: E402

_LONG = 0.05  # seconds: a slower function runs once per round, without further warm-up


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of repeated measurements: milliseconds, or a ratio of latencies."""

    median: float  # ms, or a ratio of latencies: the field that holds the timing says which
    low: float  # lower quartile, likewise
    high: float  # upper quartile, likewise

    @classmethod
    def of(cls, values: list[float]) -> Timing:
        """Summarise at least two measurements."""
        low, median, high = quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def overlaps(self, other: Timing) -> bool:
        """Whether the two cannot be told apart: their quartiles overlap."""
        return self.low <= other.high and other.low <= self.high

    def text(self, numbers: str = ".2f", unit: str = "") -> str:
        """Format the median with its unit, and the quartiles: `1.45x (1.43-1.48)`."""
        low, median, high = (format(x, numbers) for x in (self.low, self.median, self.high))
        return f"{median}{unit} ({low}-{high})"

    def __str__(self) -> str:
        return self.text(".3g")


@dataclass(frozen=True)
class Latency:
    """Latency of a function, compared round by round with the first function measured with it."""

    ms: Timing  # latency in ms
    speedup: Timing  # latency of the first function over this one's
    saved: Timing  # milliseconds of the first function minus this one's

    @property
    def faster(self) -> bool:
        """Whether it beats the first function beyond the noise: its quartiles are above 1."""
        return self.speedup.low > 1

    @property
    def undecided(self) -> bool:
        """Whether the quartiles of the speed-up are on both sides of 1."""
        return self.speedup.low <= 1 < self.speedup.high

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Latency:
        """The inverse of `dataclasses.asdict`. Raises KeyError or TypeError for other data."""
        return cls(*(Timing(**data[name]) for name in ("ms", "speedup", "saved")))


Functions = Mapping[str, Callable[[], object]]
# Called with functions, number of rounds, seconds per turn, and a function to call after each
# round; returns the milliseconds of each function in each round.
Clock = Callable[[Functions, int, float, Callable[[], None]], dict[str, list[float]]]


def compare(
    functions: Functions,
    *,
    rounds: int = 11,
    round_seconds: float = 0.02,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Time functions in turns, and compare each with the first.

    Freed memory is kept meanwhile, so that operators are timed and not new pages from the kernel.

    Args:
        functions: functions by name; they run in this order in each round.
        rounds: number of turns of each function.
        round_seconds: approximate length of a turn, which the function is repeated to fill.
        tick: called after each round.
    """
    with kept_memory():
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


def wall_clock(
    functions: Functions, rounds: int, seconds: float, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Milliseconds of each function in each round, after a warm-up; see `compare`."""
    timers, repeats = {}, {}
    for name, function in functions.items():
        timers[name] = timeit.Timer("f()", timer=timer, globals={"f": function})
        once = timers[name].timeit(1)  # warms up
        if once < _LONG:
            once = min(timers[name].timeit(1) for _ in range(3))
        repeats[name] = max(1, round(seconds / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, clock in timers.items():
            # The previous function has left its own data in the processor's caches.
            if len(timers) > 1 and repeats[name] > 1:
                clock.timeit(1)
            times[name].append(1e3 * clock.timeit(repeats[name]) / repeats[name])
        tick()
    return times


_clock: ContextVar[Clock] = ContextVar("clock", default=wall_clock)


@contextmanager
def use_clock(clock: Clock) -> Iterator[None]:
    """Context in which `clock` replaces the real one, so that results do not depend on speed."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)


def compare_modules(
    modules: Mapping[str, nn.Module],
    *inputs: Any,
    settings: MeasureSettings | None = None,
    rounds: int = 11,
    round_seconds: float = 0.02,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """`compare` modules on the same inputs, in the form for deployment that `settings` describe.

    Raises UserError like `runner`.
    """
    runners = {
        name: runner(m, inputs, settings or MeasureSettings()) for name, m in modules.items()
    }
    return compare(runners, rounds=rounds, round_seconds=round_seconds, tick=tick)
