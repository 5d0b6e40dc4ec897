"""Time of all steps from a few, by a clock that is set by hand; and the peak of memory."""

import sys

import pytest
import torch

from updp import UserError
from updp.measure import Meter, Work, peak_use

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(CPU, clock)


def test_the_first_step_counts_once_and_the_mean_of_the_others_for_all_others(
    meter: Meter, clock: Clock
) -> None:
    ran = []

    def run() -> None:
        clock.now += 4  # what comes before the first step
        meter.begin("training", 100)
        for step in range(100):
            clock.now += (6, 1, 3, 2)[step] if step < 4 else 1000
            ran.append(step)
            meter.advance()

    # Three steps beside the first, and two seconds of them.
    assert meter.time("steps", run) == Work("steps", 100, 4, 10 + 99 * 2)
    assert ran == [0, 1, 2, 3]


def test_quick_steps_are_measured_for_longer(meter: Meter, clock: Clock) -> None:
    def run() -> None:
        for _ in range(1000):
            clock.now += 0.125
            meter.advance()

    work = meter.time("steps", run, 1000)
    assert (work.measured, work.seconds) == (17, 125)


def test_work_that_ends_before_it_was_measured_enough_is_as_long_as_it_was(
    meter: Meter, clock: Clock
) -> None:
    def run() -> None:
        meter.begin("few", 2)
        for seconds in (5, 50):
            clock.now += seconds
            meter.advance()
        clock.now += 7

    assert meter.time("steps", run) == Work("steps", 2, 2, 62)


def test_a_sample_runs_to_its_end_and_stands_for_all(meter: Meter, clock: Clock) -> None:
    def run() -> None:
        meter.begin("the sample", 6)
        for seconds in (2, 1, 9, 1, 9, 5):
            clock.now += seconds
            meter.advance()

    assert meter.sample("plans", run, 60) == Work("plans", 60, 6, 2 + 59 * 5)
    assert meter.sample("plans", run, 0) == Work("plans", 0, 0, 0)
    assert clock.now == 27


def test_errors_of_the_work_are_not_lost(meter: Meter) -> None:
    def run() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        meter.time("steps", run)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a peak begin anew")
def test_the_peak_is_that_of_what_is_done_meanwhile() -> None:
    torch.ones(2**27)  # 512 MiB, freed at once
    with peak_use(CPU) as less:
        pass
    with peak_use(CPU) as more:
        torch.ones(2**26)
    assert less.process is not None
    assert more.process is not None
    assert 230 <= more.process - less.process <= 300
    assert more.device is None
    more.add(3 * 2**20)
    assert more.process - less.process >= 233
