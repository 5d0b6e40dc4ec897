import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.spaces import plans, spaces, task
from updp.search import Limits, Option, SiteOptions, Space
from updp.search.searchers.bayes import Process
from updp.search.searchers.surrogate import Surrogate
from updp.search.space import Genome

SITES = 6
SPACE = Space(
    tuple(SiteOptions(f"s{i}", (Option("x", 1, 10), Option("y", 2, 20))) for i in range(SITES)),
    20,
    200,
)


def additive(genome: Genome) -> float:
    return 0.1 + sum((1 + i) * j for i, j in enumerate(genome))


@given(spaces(), st.data())
def test_neighbours_differ_at_one_or_two_sites(space: Space, data: st.DataObject) -> None:
    genome = data.draw(st.sampled_from(plans(space)))
    asked = task(space, Limits({"macs": 0.8 * space.macs}))
    known = {space.keep: 1.0, **{g: float(sum(g)) for g in space.singles()}}
    surrogate = Surrogate(asked, known)
    found = list(surrogate.neighbours(genome))
    differing = [
        g for g in plans(space) if 1 <= sum(a != b for a, b in zip(g, genome, strict=True)) <= 2
    ]
    assert sorted(found) == [g for g in differing if asked.meets(g)]
    assert [surrogate.of(g) for g in found] == pytest.approx(sorted(map(surrogate.of, found)))


def test_additive_damage_is_predicted_from_single_candidates() -> None:
    asked = task(SPACE, Limits({}, 3))
    known = {g: additive(g) for g in (SPACE.keep, *SPACE.singles())}
    surrogate = Surrogate(asked, known)
    for genome in plans(SPACE)[::37]:
        assert surrogate.of(genome) == pytest.approx(additive(genome) - 0.1)
    best = next(surrogate.best())
    assert additive(best) == min(additive(g) for g in plans(SPACE) if asked.meets(g))


def test_known_plans_correct_what_single_candidates_say() -> None:
    """Sites 0 and 1 do no harm alone, and much beside others."""

    def score(genome: Genome) -> float:
        others = sum(map(bool, genome[2:]))
        return 1 + 0.3 * others + 2.0 * others * (bool(genome[0]) + bool(genome[1]))

    asked = task(SPACE, Limits({}, 3))
    singles = {g: score(g) for g in (SPACE.keep, *SPACE.singles())}
    every = [g for g in plans(SPACE) if asked.meets(g)]
    known = singles | {g: score(g) for g in every[::4]}
    assert next(Surrogate(asked, singles).best())[:2] != (0, 0)
    assert next(Surrogate(asked, known).best())[:2] == (0, 0)


def test_the_front_has_plans_on_both_sides_of_the_limit() -> None:
    asked = task(SPACE, Limits({"latency": 14.0}))
    known = {g: additive(g) for g in (SPACE.keep, *SPACE.singles())}
    found = list(Surrogate(asked, known).front(8))
    latencies = [SPACE.cost(g).latency for g in found]
    assert latencies[0] <= 14
    assert max(latencies[1:]) > 14 > min(latencies[1:])


def test_predictions_are_the_posterior_of_a_gaussian_process() -> None:
    """Against the conditional of the joint normal distribution, written out."""
    chance = np.random.default_rng(0)
    every = plans(SPACE)
    seen = [every[i] for i in chance.choice(len(every), 30, replace=False)]
    known = {g: float(np.exp(chance.normal())) for g in seen}
    process = Process(known)
    new = [every[i] for i in chance.choice(len(every), 5, replace=False)]

    def kernel(a: Genome, b: Genome) -> float:
        same = sum(x == y != 0 for x, y in zip(a, b, strict=True))
        differing = sum(x != y for x, y in zip(a, b, strict=True))
        alike = process.kernel.alike * np.exp(-differing / process.kernel.length)
        return process.kernel.linear * same / SITES + alike

    def matrix(p: list[Genome], q: list[Genome]) -> np.ndarray:
        return np.array([[kernel(a, b) for b in q] for a in p])

    logs = np.log(list(known.values()))
    values = (logs - logs.mean()) / logs.std()
    inverse = np.linalg.inv(matrix(seen, seen) + 1 + process.kernel.noise * np.eye(len(seen)))
    across = matrix(new, seen) + 1
    mean, covariance = process.predict(new)
    assert mean == pytest.approx(across @ inverse @ values)
    expected = matrix(new, new) + 1 - across @ inverse @ across.T
    assert covariance == pytest.approx(expected)
    assert process.means(new) == pytest.approx(mean)


def test_the_process_learns_interactions_of_candidates() -> None:
    """Two plans that are harmless apart and bad together."""

    def score(genome: Genome) -> float:
        return 1.0 + 5.0 * (genome[0] > 0 and genome[1] > 0)

    every = plans(SPACE)
    process = Process({g: score(g) for g in every[::5]})
    left = [g for g in every if g not in every[::5]]
    means = process.means(left)
    bad = [m for g, m in zip(left, means, strict=True) if score(g) > 1]
    good = [m for g, m in zip(left, means, strict=True) if score(g) == 1]
    right = sum(b > g for b, g in itertools.product(bad, good)) / (len(bad) * len(good))
    assert right > 0.95
