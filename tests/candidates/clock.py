"""Speed-ups as a test wants them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from updp.measure import use_clock

_NOISE = 0.02  # of a speed-up, on either side

SetSpeedups = Callable[[Mapping[int, float]], list[int]]


@pytest.fixture
def set_speedups() -> Iterator[SetSpeedups]:
    """Fix each form's speed-up by its place among the proposals.

    Returns how many forms each comparison was asked for; every block takes 10 ms.
    """
    with ExitStack() as stack:

        def enter(speedups: Mapping[int, float]) -> list[int]:
            places: dict[str, int] = {}
            asked: list[int] = []

            def clock(
                functions: Mapping[str, object], rounds: int, *_: object
            ) -> dict[str, list[float]]:
                keep, *names = functions
                for place, name in enumerate(names):
                    places.setdefault(name, place)
                asked.append(len(names))
                noise = [(number % 3 - 1) * _NOISE for number in range(rounds)]
                return {keep: [10.0] * rounds} | {
                    name: [10 / (speedups[places[name]] + n) for n in noise] for name in names
                }

            stack.enter_context(use_clock(clock))
            return asked

        yield enter
