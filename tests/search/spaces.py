"""Small spaces of plans, and the plain way to look at all of one."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from updp.recipe import Recipe
from updp.search import Limits, Option, SearchTask, SiteOptions, Space
from updp.search.space import Genome


@st.composite
def spaces(draw: st.DrawFn, most_sites: int = 4, most_options: int = 3) -> Space:
    """Whole numbers, so that sums are exact."""
    sites = []
    for i in range(draw(st.integers(1, most_sites))):
        options = tuple(
            Option(
                f"option {j}",
                saved_ms=draw(st.integers(0, 20)),
                saved_macs=draw(st.integers(0, 50)),
                saved_parameters=draw(st.integers(-5, 30)),
                saved_bytes=draw(st.integers(-5, 30)),
                memory=draw(st.integers(0, 60)),
                noise=draw(st.integers(0, 3)),
                blocks=draw(st.integers(0, 1)),
            )
            for j in range(draw(st.integers(1, most_options)))
        )
        sites.append(SiteOptions(f"site {i}", options, memory=draw(st.integers(0, 60))))
    return Space(tuple(sites), 100, 300, 200, weights=150, outside=draw(st.integers(0, 40)))


def plans(space: Space) -> list[Genome]:
    """All of them."""
    return list(itertools.product(*(range(1 + len(site.options)) for site in space.sites)))


def task(
    space: Space, limits: Limits, searcher: str = "bayes", seed: int = 0, **changes: object
) -> SearchTask:
    settings = Recipe().search.model_copy(update={"searcher": searcher, **changes})
    return SearchTask(space, limits, settings, seed)
