"""How many plans a second a search scores, with and without reuse.

    python -m benchmarks.search.scale                  # ResNet-56: needs ../shared/data
    python -m benchmarks.search.scale --network vit --evaluations 20 --output DIR

The plans that the default searcher asks for are scored plainly, and again with activations shared
and dominated plans left half-way; scores, front and choice must be the same. Results:
results/scale-NETWORK.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common.output import Result, device_name, make_parser
from benchmarks.search.bank import NETWORKS, Bank
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.search import Evaluated, ScoreFile, Scorer, SearchTask, pareto, search, within
from updp.search.front import certainly_dominated
from updp.search.score import Hopeless, Score
from updp.search.space import Genome


def reuse(network: str, evaluations: int, folder: Path) -> Result:
    """Evaluations per second without and with reuse, on the same plans in the same order."""
    torch.manual_seed(0)
    bank = Bank(network, folder)
    plain = Recipe().search.model_copy(
        update={"reuse_mb": 0, "stop_early": False, "evaluations": evaluations}
    )
    task = SearchTask(bank.space, bank.limits, plain)
    scorer = Scorer(*bank.parts, bank.recipe.model_copy(update={"search": plain}))
    before = 0.0

    def timed(choices: Mapping[str, str], hopeless: Hopeless) -> Score:
        nonlocal before
        start = time.perf_counter()
        score = scorer(choices, hopeless)
        before += time.perf_counter() - start
        return score

    with tempfile.TemporaryDirectory() as plans:
        expected = search(task, timed, ScoreFile(Path(plans) / "scores.jsonl"), Silent())
    quick = Scorer(*bank.parts, bank.recipe)
    found: dict[Genome, Evaluated] = {}
    seconds, batch = 0.0, plain.population
    for number, genome in enumerate(expected):
        if number % batch == 0:
            known = dict(found)  # what the search knew when it asked
        start = time.perf_counter()
        score = quick(bank.space.choices(genome), certainly_dominated(genome, known, task))
        seconds += time.perf_counter() - start
        found[genome] = Evaluated(genome, score)

    def outcome(results: dict[Genome, Evaluated]) -> tuple[list[Genome], Genome]:
        front = [e.genome for e in pareto(results.values(), task)]
        return front, within(results.values(), task, task.limits)[0].genome

    complete = [e for e in found.values() if e.score.complete]
    assert all(e.score == expected[e.genome].score for e in complete)
    assert outcome(found) == outcome(expected)
    return {
        "plans": len(expected),
        "per_second_plain": len(expected) / before,
        "per_second_reuse": len(expected) / seconds,
        "ratio": before / seconds,
        "left_half_way": len(expected) - len(complete),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    parser.add_argument("--evaluations", type=int, default=60)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        reused = reuse(options.network, options.evaluations, Path(folder))
    print(reused)
    result = {
        "network": options.network,
        "device": device_name(torch.device("cpu")),
        "reuse": reused,
    }
    options.output.write(f"scale-{options.network}", result)


if __name__ == "__main__":
    main()
