import math

from hypothesis import given
from hypothesis import strategies as st

from tests.search.spaces import plans, spaces
from updp.search import Option, SiteOptions, Space
from updp.search.space import Cost

SPACE = Space(
    (
        SiteOptions(
            "a", (Option("x", 2.0, 30, 4, 16, 70, 0.3), Option("drop", 3.0, 40, 5, 20, 10)), 90
        ),
        SiteOptions("b", (Option("x", 1.0, 20, 4, 16, 50, 0.4),), 60),
    ),
    ms=10.0,
    macs=100,
    parameters=20,
    weights=80,
    outside=55,
)


def test_the_cost_of_a_plan_by_hand() -> None:
    assert SPACE.baseline == Cost(10, 0, 100, 20, 80 + 90, 0)
    assert SPACE.cost((1, 1)) == Cost(7, 0.5, 50, 12, 48 + 70, 2)
    assert SPACE.cost((2, 1)) == Cost(6, 0.4, 40, 11, 44 + 55, 2)


@given(spaces(), st.data())
def test_genomes_and_labels_convert_both_ways(space: Space, data: st.DataObject) -> None:
    genome = data.draw(st.sampled_from(plans(space)))
    assert space.genome(space.choices(genome)) == genome
    assert len(space.choices(genome)) == sum(map(bool, genome))
    chosen = [site.options[j - 1] for site, j in zip(space.sites, genome, strict=True) if j]
    assert space.cost(genome).blocks == sum(option.blocks for option in chosen)
    assert len(plans(space)) == space.size
    assert space.size == math.prod(1 + len(site.options) for site in space.sites)
    assert [g for g in plans(space) if sum(map(bool, g)) == 1] == sorted(space.singles())
