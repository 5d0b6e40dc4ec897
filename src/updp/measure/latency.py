"""Latency, always as a comparison: interleaved in one process, medians and quartiles.

The deployed graph is timed, in evaluation and without gradients; what a machine's drift does to
one function it does to the other, so the ratio is taken round by round.
"""

from __future__ import annotations

import logging
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch
from torch import nn

# On machines with a CUDA compiler and no GPU, importing the benchmark module warns of that.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
from torch.utils.benchmark import timer  # noqa: E402

_LONG = 0.05  # seconds: what takes longer is timed once per round, however warm it is


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least two values."""
        low, median, high = quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


@dataclass(frozen=True)
class Latency:
    """Of one function: milliseconds, and how many times faster than the first it is."""

    ms: Spread
    speedup: Spread

    @property
    def faster(self) -> bool:
        """Whether it beats the first function beyond the noise: the quartiles lie above 1."""
        return self.speedup.low > 1

    @property
    def undecided(self) -> bool:
        """Whether the quartiles lie on both sides of 1."""
        return self.speedup.low <= 1 < self.speedup.high


def compare(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 11, round_seconds: float = 0.02
) -> dict[str, Latency]:
    """Time each function in turn, `rounds` times, each time for about `round_seconds`."""
    timers, numbers = {}, {}
    for name, function in functions.items():
        timers[name] = timeit.Timer("f()", timer=timer, globals={"f": function})
        once = timers[name].timeit(1)  # warms up
        if once < _LONG:
            once = min(timers[name].timeit(1) for _ in range(3))
        numbers[name] = max(1, round(round_seconds / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, clock in timers.items():
            if len(timers) > 1 and numbers[name] > 1:
                clock.timeit(1)  # what ran before has its own data in the caches
            times[name].append(1e3 * clock.timeit(numbers[name]) / numbers[name])
    first = next(iter(times.values()))
    return {
        name: Latency(
            Spread.of(values), Spread.of([a / b for a, b in zip(first, values, strict=True)])
        )
        for name, values in times.items()
    }


def compare_modules(
    modules: Mapping[str, nn.Module], *inputs: Any, rounds: int = 11, round_seconds: float = 0.02
) -> dict[str, Latency]:
    """Time modules on the same inputs; each must be in evaluation."""

    def call(module: nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def run() -> object:
            return module(*inputs)

        return run

    for name, module in modules.items():
        assert not module.training, f"{name} is in training mode"
    calls = {name: call(module) for name, module in modules.items()}
    return compare(calls, rounds=rounds, round_seconds=round_seconds)
