from itertools import groupby

import pytest
import torch
from torch import Tensor, nn

from updp.measure import Spread, compare, compare_modules


def test_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread.of([1.0, 2.0, 3.0, 4.0]) == Spread(2.5, 1.75, 3.25)
    assert str(Spread(1.23456, 1.0, 2.0)) == "1.23 (1-2)"


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


def test_the_first_is_what_others_are_compared_with() -> None:
    result = compare({"a": lambda: None, "b": lambda: None}, rounds=3, round_seconds=1e-4)
    assert result["a"].speedup == Spread(1.0, 1.0, 1.0)
    assert not result["a"].faster
    for latency in result.values():
        assert 0 < latency.ms.low <= latency.ms.median <= latency.ms.high


def test_modules_run_in_inference_mode_on_the_same_input() -> None:
    seen: list[tuple[bool, Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.is_inference_mode_enabled(), x))
            return x

    x = torch.randn(2, 3)
    compare_modules({"a": Spy().eval(), "b": Spy().eval()}, x, rounds=3, round_seconds=1e-12)
    assert all(mode and given is x for mode, given in seen)
    assert not torch.is_inference_mode_enabled()


def test_a_module_in_training_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="b is in training mode"):
        compare_modules({"a": nn.Identity().eval(), "b": nn.Identity()}, torch.randn(1))
