import re
from dataclasses import replace

import pytest

from tests.search.spaces import task
from updp import UserError
from updp.recipe.budget import Budget
from updp.search import Limits, Option, SiteOptions, Space, limits_of
from updp.search.integer_program import IntegerProgram
from updp.search.limits import amount

# What saves time has many MACs, and the other way round.
SPACE = Space(
    (
        SiteOptions(
            "a",
            (
                Option("fast", saved_ms=3.0, saved_macs=0),
                Option("lean", saved_ms=0.5, saved_macs=300),
            ),
            10,
        ),
        SiteOptions("b", (Option("fast", saved_ms=2.0, saved_macs=100),), 10),
    ),
    ms=10.0,
    macs=1000,
    parameters=50,
    weights=200,
)


@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        ("blocks=2", Limits({}, 2)),
        ("latency=0.5", Limits({"latency": 5.0})),
        ("latency=2x,blocks=2", Limits({"latency": 5.0}, 2)),
        ("macs=600,latency=9ms", Limits({"latency": 9.0, "macs": 600})),
    ],
)
def test_a_reachable_budget_becomes_limits(budget: str, limits: Limits) -> None:
    assert limits_of(Budget.parse(budget.replace("macs=600", "macs=0.6K")), SPACE) == limits


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            "blocks=3",
            "budget blocks=3 is more than the 2 sites that can be pruned: ask for blocks=2",
        ),
        (
            "latency=0.49",
            "budget latency=0.49 is out of reach: pruning whatever saves most comes down to "
            "latency=0.500",
        ),
        ("macs=0.5", "budget macs=0.5 is out of reach: pruning whatever saves most comes down to "),
        ("latency=10ms", "budget latency=10ms is no less than the baseline's 10ms: ask for less"),
        ("memory=1KB", "budget memory=1KB is no less than the baseline's 210B: ask for less"),
        (
            "latency=0.6,macs=0.7",
            "budget latency=0.6,macs=0.7 is out of reach as a whole: with the rest of it met, "
            "latency comes down to latency=0.750",
        ),
        (
            "blocks=1,latency=0.6",
            "budget blocks=1,latency=0.6 is out of reach as a whole: with the rest of it met, "
            "latency comes down to latency=0.700",
        ),
    ],
)
def test_an_unreachable_budget_says_what_is_reachable(budget: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        limits_of(Budget.parse(budget), SPACE)


def test_limits_of_which_no_two_can_be_met_are_all_named() -> None:
    saving = (Option("t", 5.0, 0), Option("m", 0.0, 500), Option("p", 0.0, 0, saved_parameters=25))
    one = Space((SiteOptions("a", saving),), ms=10.0, macs=1000, parameters=50)
    budget = "latency=0.6,macs=0.6,parameters=0.6"
    said = f"budget {budget} is out of reach as a whole, though each limit alone can be met: relax"
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        limits_of(Budget.parse(budget), one)


@pytest.mark.parametrize("unit", ["latency", "macs"])
def test_the_value_that_the_message_names_is_reachable(unit: str) -> None:
    sites = (SiteOptions("a", (Option("x", 1.0, 1),)), SiteOptions("b", (Option("y", 0.7, 2),)))
    odd = Space(sites, 3.0, 7)
    with pytest.raises(UserError) as refused:
        limits_of(Budget.parse(f"{unit}=0.01"), odd)
    nearest = re.search(rf"{unit}=(0\.\d+)$", str(refused.value))
    assert nearest
    limits_of(Budget.parse(nearest.group(0)), odd)


def test_fronts_are_over_the_limited_unit_or_macs() -> None:
    assert task(SPACE, Limits({}, 3)).axis == "macs"
    assert task(SPACE, Limits({"latency": 3.0, "macs": 3.0})).axis == "latency"


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("latency", 12.34, "12.3ms"), ("macs", 2.5e9, "2.5G"), ("memory", 3e6, "3MB")],
)
def test_amounts_are_written_as_budgets_read_them(unit: str, value: float, text: str) -> None:
    assert amount(unit, value) == text
    assert Budget.parse(f"{unit}={text}")


def test_candidates_that_keep_depth_count_for_amounts_and_not_for_blocks() -> None:
    narrow = Option("narrow", saved_ms=4.0, saved_macs=0, blocks=0)
    space = replace(SPACE, sites=(*SPACE.sites, SiteOptions("c", (narrow,), 10)))
    limits = limits_of(Budget.parse("latency=0.4,blocks=1"), space)
    assert IntegerProgram(space).best([1.0, 1.0, 1.0, 1.0], limits) == (0, 1, 1)
    with pytest.raises(UserError, match="blocks=3 is more than the 2 sites"):
        limits_of(Budget.parse("blocks=3"), space)
