from hypothesis import given
from hypothesis import strategies as st

from tests.search.spaces import plans, spaces, task
from updp.search import Evaluated, Limits, Score, Space, pareto, within
from updp.search.front import certainly_dominated


@st.composite
def scored(draw: st.DrawFn) -> tuple[Space, dict]:
    """Some plans of a space with scores, of which ties are likely."""
    space = draw(spaces())
    genomes = draw(st.lists(st.sampled_from(plans(space)), unique=True, max_size=12))
    known = {
        g: Evaluated(g, Score(draw(st.integers(0, 8)), 50.0, 10, complete=draw(st.booleans())))
        for g in genomes
    }
    return space, known


@given(scored())
def test_the_front_holds_the_plans_that_nothing_beats(about: tuple[Space, dict]) -> None:
    space, known = about
    asked = task(space, Limits({"macs": 200.0}))
    front = pareto(known.values(), asked)

    def beats(one: Evaluated, other: Evaluated) -> bool:
        a = asked.cost(one.genome), one.score.score
        b = asked.cost(other.genome), other.score.score
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    complete = [e for e in known.values() if e.score.complete]
    best = [e for e in complete if not any(beats(o, e) for o in complete)]
    values = {(asked.cost(e.genome), e.score.score) for e in best}
    assert [(asked.cost(e.genome), e.score.score) for e in front] == sorted(values, reverse=True)


@given(scored(), st.integers(0, 8), st.data())
def test_a_certainly_dominated_plan_changes_neither_front_nor_choice(
    about: tuple[Space, dict], score: int, data: st.DataObject
) -> None:
    space, known = about
    asked = task(space, Limits({"macs": 200.0}, data.draw(st.none() | st.integers(1, 2))))
    plan = data.draw(st.sampled_from(plans(space)))
    if plan in known or not certainly_dominated(plan, known, asked)(score):
        return
    new = {**known, plan: Evaluated(plan, Score(score, 50.0, 10))}
    before, after = (pareto(k.values(), asked) for k in (known, new))
    assert before == after
    choices = [within(k.values(), asked, asked.limits) for k in (known, new)]
    assert choices[0][:1] == choices[1][:1]


@given(scored(), st.integers(1, 3))
def test_plans_within_limits_come_best_first(about: tuple[Space, dict], blocks: int) -> None:
    space, known = about
    limits = Limits({}, blocks)
    found = within(known.values(), task(space, limits), limits)
    scores = [
        e.score.score
        for e in known.values()
        if e.score.complete and space.cost(e.genome).blocks == blocks
    ]
    assert [e.score.score for e in found] == sorted(scores)
