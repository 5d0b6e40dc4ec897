"""The picture of the search: plans as scored, and the refined ones as fitted and repaired."""

from __future__ import annotations

from typing import Any

from updp.deploy.report.figures import front_plot
from updp.deploy.report.plot import Plot, Series
from updp.search.outcome import ScoredPlan, SearchResult

ALIKE = {"metric": 90.0, "noise": 0.1, "macs": 9e6, "parameters": 1e3, "memory": 1e6}


def point(latency: float, score: float, **more: Any) -> ScoredPlan:
    return ScoredPlan(
        choices={}, latency=latency, score=score, **{"complete": True, "blocks": 1, **ALIKE, **more}
    )


def plot(*points: ScoredPlan, chosen: int) -> Plot:
    baseline = point(10, 0, blocks=0)
    given = {"axis": "latency", "budget": "latency=0.8", "searcher": "bayes"}
    return front_plot(
        SearchResult(baseline=baseline, points=points, front=(0,), chosen=chosen, **given)
    )


def series(found: Plot) -> dict[str, Series]:
    return {s.name: s for s in found.series}


def test_refined_plans_are_drawn_as_fitted_and_the_star_is_one_of_them() -> None:
    found = plot(
        point(7, 0.05),
        point(8, 0.3, fitted=0.001, fitted_metric=97.5),
        point(7.5, 0.4, fitted=0.02, fitted_metric=96.0, complete=False),
        chosen=1,
    )
    drawn = series(found)
    assert list(drawn) == ["scored plan", "Pareto front", "after fit and repair", "taken"]
    assert [(m.x, m.y) for m in drawn["scored plan"].marks] == [(0.8, 0.3)]
    assert [(m.x, m.y) for m in drawn["after fit and repair"].marks] == [(0.8, 0.001), (0.75, 0.02)]
    (star,) = drawn["taken"].marks
    assert (star.x, star.y) == (0.8, 0.001)
    for line in ("score: 0.300", "score after fit and repair: 0.00100"):
        assert line in star.text.splitlines()
    assert "top-1 after fit and repair: 97.50 %" in star.text
    assert found.y.low < 0.001  # the axis reaches to it
    assert all(len(found.drawn(s)) == len(s.marks) for s in found.series)
    assert "diamonds those of 2 refined plans after fit and repair" in found.note
    assert "half-way" not in found.note  # the one that was is drawn


def test_a_star_that_was_not_refined_is_at_its_score() -> None:
    found = plot(point(7, 0.05), point(8, 0.3, fitted=0.001, fitted_metric=97.5), chosen=0)
    assert [m.y for m in series(found)["taken"].marks] == [0.05]


def test_a_search_that_refined_nothing_has_one_kind_of_score() -> None:
    found = plot(point(7, 0.05), point(8, 0.3), point(9, 0.4, complete=False), chosen=1)
    assert list(series(found)) == ["scored plan", "Pareto front", "taken"]
    assert [m.y for m in series(found)["taken"].marks] == [0.3]
    assert "repair" not in found.note + "".join(m.text for s in found.series for m in s.marks)
    assert "1 were left half-way" in found.note
