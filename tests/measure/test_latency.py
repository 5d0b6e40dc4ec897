import json
from dataclasses import asdict
from itertools import groupby

import pytest
import torch
from torch import Tensor, nn

from updp.measure import Latency, Timing, compare, compare_modules


def test_timing_is_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Timing(3.0, 2.0, 4.0)
    assert Timing.of([1.0, 2.0]) == Timing(1.5, 1.25, 1.75)
    assert Timing.of([1.0, 2.0, 3.0, 4.0]) == Timing(2.5, 1.75, 3.25)
    assert str(Timing(1.23456, 1.0, 2.0)) == "1.23 (1-2)"


def test_functions_take_turns() -> None:
    calls: list[str] = []
    result = compare(
        {name: lambda name=name: calls.append(name) for name in "abc"},
        rounds=5,
        round_seconds=1e-12,  # one call each time
    )
    assert list(result) == ["a", "b", "c"]
    # All warm up, then every round asks each of them; the timer calls some more to warm up itself.
    assert [name for name, _ in groupby(calls)] == [*"abc"] * 6


def test_speed_ups_are_over_the_first_function() -> None:
    result = compare({"a": lambda: None, "b": lambda: None}, rounds=3, round_seconds=1e-4)
    assert result["a"].speedup == Timing(1.0, 1.0, 1.0)
    assert not result["a"].faster
    for latency in result.values():
        assert 0 < latency.ms.low <= latency.ms.median <= latency.ms.high


def test_ratios_and_differences_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"a": iter([9, 4.0, 8.0, 12.0]), "b": iter([9, 1.0, 4.0, 6.0])}  # the first warms up
    now = 0.0

    def call(name: str) -> None:
        nonlocal now
        now += next(seconds[name])

    monkeypatch.setattr("updp.measure.latency.timer", lambda: now)
    result = compare({n: lambda n=n: call(n) for n in seconds}, rounds=3)
    assert result["b"].ms == Timing(4000.0, 2500.0, 5000.0)
    assert result["b"].speedup == Timing(2.0, 2.0, 3.0)
    assert result["b"].saved == Timing(4000.0, 3500.0, 5000.0)
    assert result["a"].saved == Timing(0.0, 0.0, 0.0)
    assert Latency.from_json(json.loads(json.dumps(asdict(result["b"])))) == result["b"]


def test_modules_run_in_inference_mode_on_the_same_input() -> None:
    seen: list[tuple[bool, bool, Tensor]] = []

    class Spy(nn.Module):
        def __deepcopy__(self, memo: object) -> nn.Module:
            return Spy()

        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.is_inference_mode_enabled(), self.training, x))
            return x

    x = torch.randn(2, 3)
    modules = {"a": Spy(), "b": Spy()}
    compare_modules(modules, x, rounds=3, round_seconds=1e-12)
    assert all(mode and not training and given.equal(x) for mode, training, given in seen)
    assert all(module.training for module in modules.values())
    assert not torch.is_inference_mode_enabled()
