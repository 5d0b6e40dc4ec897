"""How many plans a second a search scores: with and without reuse, with one worker and four.

    python -m benchmarks.search.scale                  # ResNet-56: needs ../shared/data
    python -m benchmarks.search.scale --network vit --evaluations 20 --output DIR

Reuse: the plans that the default searcher asks for, once scored plainly, once with activations
shared and dominated plans left half-way; scores, front and choice must be the same. Workers:
processes of one thread each on one SQLite file. Results: results/scale-NETWORK.json.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.output import Result, device_name, make_parser
from benchmarks.search.bank import NETWORKS, Bank
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.search import Evaluated, Scorer, Store, Task, pareto, search, within
from updp.search.front import certainly_dominated
from updp.search.space import Genome


def reuse(network: str, evaluations: int, folder: Path) -> Result:
    """Evaluations per second without and with reuse, on the same plans in the same order."""
    torch.manual_seed(0)
    bank = Bank(network, folder)
    plain = Recipe().search.model_copy(
        update={"reuse_mb": 0, "stop_early": False, "evaluations": evaluations}
    )
    task = Task(bank.space, bank.limits, plain)
    scorer = Scorer(*bank.parts, bank.recipe.model_copy(update={"search": plain}))
    with (
        tempfile.TemporaryDirectory() as plans,
        Store.in_folder(Path(plans), "plain") as store,
    ):
        expected = search(task, scorer, store, Silent())
    before = sum(e.seconds for e in expected.values())
    scorer = Scorer(*bank.parts, bank.recipe)
    found: dict[Genome, Evaluated] = {}
    seconds, batch = 0.0, plain.population
    for number, genome in enumerate(expected):
        if number % batch == 0:
            known = dict(found)  # what the search knew when it asked
        start = time.perf_counter()
        score = scorer(bank.space.choices(genome), certainly_dominated(genome, known, task))
        seconds += time.perf_counter() - start
        found[genome] = Evaluated(genome, score, number, 0.0, "")

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


def work(network: str, folder: str, plans: str, evaluations: int, barrier: Any) -> None:
    """One worker of one thread; the barrier marks the start and the end of its search."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bank = Bank(network, Path(folder))
    settings = Recipe().search.model_copy(
        update={"searcher": "random", "evaluations": evaluations, "population": 32}
    )
    task = Task(bank.space, bank.limits, settings)
    with Store.in_folder(Path(plans), "workers") as store:
        barrier.wait()
        search(task, bank.scorer, store, Silent())
        barrier.wait()


def workers(network: str, count: int, evaluations: int, folder: Path) -> Result:
    """Evaluations per second of `count` processes."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    with tempfile.TemporaryDirectory() as plans:
        arguments = (network, str(folder), plans, evaluations, barrier)
        processes = [context.Process(target=work, args=arguments) for _ in range(count)]
        for process in processes:
            process.start()
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        seconds = time.perf_counter() - start
        for process in processes:
            process.join()
        with Store.in_folder(Path(plans), "workers") as store:
            done = store.results()
    assert len(done) == evaluations
    return {"workers": count, "plans": len(done), "per_second": len(done) / seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    parser.add_argument("--evaluations", type=int, default=60)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        reused = reuse(options.network, options.evaluations, Path(folder))
        print(reused)
        counts = [
            workers(options.network, count, options.evaluations, Path(folder)) for count in (1, 4)
        ]
        print(counts)
    result = {
        "network": options.network,
        "device": device_name(torch.device("cpu")),
        "reuse": reused,
        "workers": counts,
        "workers_ratio": counts[1]["per_second"] / counts[0]["per_second"],
    }
    options.output.write(f"scale-{options.network}", result)


if __name__ == "__main__":
    main()
