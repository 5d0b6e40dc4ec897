import re

import pytest

from updp import UserError
from updp.recipe import Budget
from updp.search import Cost, Costs

# Of 10 ms and 1000 MACs, these sites save so much:
COSTS = Costs(
    ms=10.0,
    macs=1000,
    sites={
        "a": Cost("x", ms=1.0, macs=300),
        "b": Cost("y", ms=2.0, macs=100),
        "c": Cost("z", ms=3.0, macs=200),
    },
)


def test_predicted_latency() -> None:
    assert COSTS.latency(()) == 10
    assert COSTS.latency(("a", "c")) == 6


@pytest.mark.parametrize(
    ("budget", "order", "chosen"),
    [
        ("blocks=1", "cba", "c"),
        ("blocks=2", "cba", "bc"),  # in the model's order
        ("blocks=3", "bca", "abc"),
        ("latency=0.95", "abc", "a"),
        ("latency=0.9", "abc", "a"),  # reached exactly
        ("latency=0.8", "abc", "ab"),
        ("latency=0.8", "cab", "c"),
        ("latency=0.4", "cab", "abc"),
        ("macs=0.7", "abc", "a"),
        ("macs=0.7", "bca", "bc"),
        ("macs=0.45", "bca", "abc"),
    ],
)
def test_sites_are_pruned_in_order_until_it_is_met(budget: str, order: str, chosen: str) -> None:
    COSTS.check(Budget.parse(budget))
    assert COSTS.fill(order, Budget.parse(budget)) == tuple(chosen)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            "blocks=4",
            "budget blocks=4 is more than the 3 sites that can be pruned: ask for blocks=3 at most",
        ),
        (
            "latency=0.39",
            "budget latency=0.39 is out of reach: pruning all 3 sites comes down to latency=0.400",
        ),
        (
            "macs=0.3",
            "budget macs=0.3 is out of reach: pruning all 3 sites comes down to macs=0.400",
        ),
    ],
)
def test_out_of_reach_says_what_is_in_reach(budget: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        COSTS.check(Budget.parse(budget))


@pytest.mark.parametrize("unit", ["latency", "macs"])
def test_what_the_message_names_is_in_reach(unit: str) -> None:
    odd = Costs(3.0, 7, {"a": Cost("x", 1.0, 1), "b": Cost("y", 0.7, 2)})
    with pytest.raises(UserError) as refused:
        odd.check(Budget.parse(f"{unit}=0.01"))
    nearest = re.search(rf"{unit}=(0\.\d+)$", str(refused.value))
    assert nearest
    odd.check(Budget.parse(nearest.group(0)))
