"""What a final table says of the budget."""

import pytest

from updp.measure import Timing
from updp.run.records import ModelFigures, Result


def result(low: float, high: float, before: float = 100.0) -> Result:
    """A run whose last timing gave a speed-up between two quartiles."""
    middle = (low + high) / 2
    times = [Timing(t, t * 0.9, t * 1.1) for t in (before, before / middle)]
    baseline, merged = (ModelFigures(metric=80, parameters=5, macs=7, latency=t) for t in times)
    return Result(
        baseline=baseline,
        merged=merged,
        speedup=Timing(middle, low, high),
        by_stage={},
        test_images=100,
        batch_size=16,
        device="cpu",
        merge_error={},
    )


@pytest.mark.parametrize(
    "budget", ["latency=1.42x", "latency=0.7", "blocks=3,latency=70%", "latency=70ms,macs=2G"]
)
def test_a_budget_that_the_last_timing_misses_is_named(budget: str) -> None:
    line = result(1.04, 1.17).missed(budget)
    assert line.startswith("the budget latency=")
    assert "is missed: 1.4" in line
    assert "the last timing gave 1.10x (1.04-1.17); if the machine was busy" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("low", "high", "budget"),
    [
        (1.38, 1.45, "latency=1.42x"),  # within the noise
        (1.5, 1.6, "latency=1.42x"),
        (1.04, 1.17, "latency=95ms"),
        (1.04, 1.17, "blocks=3,macs=70%"),
        (1.04, 1.17, ""),
        (1.04, 1.17, "by hand"),
    ],
)
def test_one_that_is_kept_or_has_no_latency_is_not(low: float, high: float, budget: str) -> None:
    assert result(low, high).missed(budget) == ""
