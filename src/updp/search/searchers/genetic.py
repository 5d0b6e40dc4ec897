"""NSGA-II (Deb et al., 2002; from optuna): score against cost, over generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updp.errors import needs_extra
from updp.io.seeds import mix
from updp.search.searchers.base import Known, Searcher, SearchTask
from updp.search.searchers.surrogate import Surrogate
from updp.search.space import Genome

if TYPE_CHECKING:
    import optuna

_STALE = 20  # number of generations in a row without an unknown plan that ends the search


class Genetic(Searcher):
    """One gene per site; a child outside the limits becomes the nearest plan within them.

    Optuna's study is in memory only. After a kill it is asked again from the beginning and gives
    the same answers, because the seed of every trial is derived from its number.
    """

    name = "genetic"

    def __init__(self, task: SearchTask) -> None:
        super().__init__(task)
        self.check_installed()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(directions=["minimize", "minimize"])
        self._waiting: list[tuple[optuna.Trial, Genome]] = []
        self._asked = 0

    @classmethod
    def check_installed(cls) -> None:
        """Raise UserError if optuna is missing."""
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise needs_extra(f"search.searcher={cls.name}", "optuna", "genetic") from error

    def preliminaries(self) -> list[Genome]:
        """Each candidate alone, if these seed the first generation; else none."""
        return super().preliminaries() if self.task.settings.seeded else []

    def propose(self, known: Known) -> list[Genome]:
        """The unknown plans of the current generation."""
        baseline = self.task.cost(self.task.space.keep)
        for _ in range(_STALE):
            if not self._waiting:
                self._ask(known)
            if new := self.unknown((plan for _, plan in self._waiting), known):
                return new
            for trial, plan in self._waiting:
                self._study.tell(trial, [known[plan], self.task.cost(plan) / baseline])
            self._waiting = []
        return []

    def _ask(self, known: Known) -> None:
        """Ask the study for a generation; the plans of the first one are chosen here."""
        from optuna.samplers import NSGAIISampler

        task = self.task
        count = task.settings.population
        first = self._seeds(known, count) if self._asked == 0 else []
        for genome in first:
            self._study.enqueue_trial(dict(zip(task.space.names, genome, strict=True)))
        for _ in range(count):
            seed = mix(task.seed, 20, self._asked) % 2**32  # NumPy takes 32 bits
            self._study.sampler = NSGAIISampler(population_size=count, seed=seed)
            trial = self._study.ask()
            genes = tuple(
                int(trial.suggest_categorical(site.name, range(len(site.options) + 1)))
                for site in task.space.sites
            )
            self._waiting.append((trial, task.nearest(genes, [0.0] * len(task.program.options))))
            self._asked += 1

    def _seeds(self, known: Known, count: int) -> list[Genome]:
        """The surrogate's front (at most half of the generation), then random plans."""
        task = self.task
        front: dict[Genome, None] = {}
        if task.settings.seeded:
            front = dict.fromkeys(Surrogate(task, known).front(count // 2))
        return [*front, *(task.random(i) for i in range(count - len(front)))]
