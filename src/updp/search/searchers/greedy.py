"""Greedy search: prune one site after another, always with the least damage for the saving."""

from collections.abc import Iterator

from updp.search.searchers.base import Known, Searcher
from updp.search.searchers.surrogate import Surrogate
from updp.search.space import Genome


class Greedy(Searcher):
    """Scores the most promising single steps and takes the best, until the limits are met.

    Then it scores neighbours of the best plan, for as long as there are any.
    """

    name = "greedy"

    def propose(self, known: Known) -> list[Genome]:
        """The unknown steps from the plan reached with the known scores."""
        surrogate = Surrogate(self.task, {g: known[g] for g in self.preliminaries()})
        plan = self.task.space.keep
        while not self.task.meets(plan):
            steps = sorted(self._steps(plan), key=lambda s: (_price(surrogate.of(s[0]), s[1]), s))
            steps = steps[: self.task.settings.population]
            if not steps:  # no further step brings the plan nearer to the limits
                nearest = self.task.nearest(plan, surrogate.weights)
                if nearest not in known:
                    return [nearest]
                break
            if new := self.unknown((step for step, _ in steps), known):
                return new
            before = known[plan]
            plan = min(steps, key=lambda s: (_price(known[s[0]] - before, s[1]), s))[0]
        return self.filled(surrogate.neighbours_of_best(known), known)

    def _steps(self, plan: Genome) -> Iterator[tuple[Genome, float]]:
        """Plans with one site changed that are nearer to the limits, with the gain in distance."""
        space, limits = self.task.space, self.task.limits
        far = self._distance(plan)
        for i, site in enumerate(space.sites):
            # If only blocks are limited, changing the candidate of a pruned site has no effect.
            if limits.blocks is not None and plan[i] and not limits.amounts:
                continue
            for j in range(1, len(site.options) + 1):
                step = space.changed(plan, i, j)
                nearer = far - self._distance(step)
                if j != plan[i] and nearer > 1e-12:
                    yield step, nearer

    def _distance(self, plan: Genome) -> float:
        """Distance from the limits: sum over units of the excess as share of the baseline."""
        space, limits = self.task.space, self.task.limits
        cost = space.cost(plan)
        far: float = sum(
            max(0.0, getattr(cost, unit) - limit) / getattr(space.baseline, unit)
            for unit, limit in limits.amounts.items()
        )
        if limits.blocks is not None:
            far += abs(limits.blocks - cost.blocks) / len(space.sites)
        return far


def _price(damage: float, nearer: float) -> float:
    """Damage per step towards the limits; with negative damage a longer step is better."""
    return damage / nearer if damage > 0 else damage * nearer
