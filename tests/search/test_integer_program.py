"""Integer programming against looking at every plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.spaces import plans, spaces
from updp.search import Limits, Space
from updp.search.integer_program import IntegerProgram

UNITS = ("latency", "macs", "parameters", "memory")


@st.composite
def limits(draw: st.DrawFn, space: Space) -> Limits:
    """Amounts between what the baseline costs and less than any plan does, and so many sites."""
    base = space.baseline
    units = draw(st.lists(st.sampled_from(UNITS), unique=True, max_size=3))
    amounts = {u: getattr(base, u) * draw(st.sampled_from([0.5, 0.7, 0.8, 0.9])) for u in units}
    return Limits(amounts, draw(st.none() | st.integers(1, len(space.sites))))


@settings(deadline=None)
@given(spaces(), st.data())
def test_the_best_plan_is_optimal(space: Space, data: st.DataObject) -> None:
    asked = data.draw(limits(space))
    program = IntegerProgram(space)
    weights = [float(data.draw(st.integers(-20, 50))) for _ in program.options]

    def total(genome: tuple[int, ...]) -> float:
        starts = program.starts[:-1]
        return sum(weights[s + j - 1] for s, j in zip(starts, genome, strict=True) if j)

    within = [g for g in plans(space) if asked.met(space.cost(g))]
    found = program.best(weights, asked)
    if not within:
        assert found is None
    else:
        assert found is not None
        assert asked.met(space.cost(found))
        assert total(found) == min(map(total, within))


@settings(deadline=None)
@given(spaces(), st.sampled_from(UNITS), st.data())
def test_the_least_cost_in_a_unit_is_optimal(space: Space, unit: str, data: st.DataObject) -> None:
    asked = data.draw(limits(space))
    costs = [space.cost(g) for g in plans(space)]
    within = [getattr(cost, unit) for cost in costs if asked.met(cost)]
    assert IntegerProgram(space).least(unit, asked) == (min(within) if within else None)


@settings(deadline=None)
@given(spaces(), st.data())
def test_the_nearest_plan_differs_at_fewest_sites(space: Space, data: st.DataObject) -> None:
    asked = data.draw(limits(space))
    genome = data.draw(st.sampled_from(plans(space)))
    program = IntegerProgram(space)
    weights = [data.draw(st.floats(0, 1)) for _ in program.options]
    found = program.nearest(genome, weights, asked)

    def distance(other: tuple[int, ...]) -> int:
        return sum(a != b for a, b in zip(genome, other, strict=True))

    within = [g for g in plans(space) if asked.met(space.cost(g))]
    if not within:
        assert found is None
    else:
        assert found in within
        assert distance(found) == min(map(distance, within))


@given(spaces(), st.data())
def test_limits_hold_for_many_plans_at_once(space: Space, data: st.DataObject) -> None:
    asked = data.draw(limits(space))
    every = plans(space)
    found = IntegerProgram(space).met(np.array(every), asked)
    assert list(found) == [asked.met(space.cost(genome)) for genome in every]


@given(spaces(), st.data())
def test_sums_are_those_of_the_one_hot_encoding(space: Space, data: st.DataObject) -> None:
    program, every = IntegerProgram(space), np.array(plans(space))
    number = st.floats(-5, 5)
    weights = np.array([data.draw(number) for _ in program.options])
    assert program.sums(every, weights) == pytest.approx(program.features(every) @ weights)
