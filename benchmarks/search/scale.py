"""How many plans a second a search scores: with and without reuse, with one worker and four.

    python benchmarks/scale.py                  # ResNet-56 needs ../shared/data; --network vit not

Reuse: the plans that the default searcher asks for, once scored plainly, once with activations
shared and dominated plans left half-way; scores, front and choice must be the same. Workers:
processes of one thread each on one SQLite file. Results: docs/results/scale-NETWORK.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from search import INHERITED, NETWORKS, ROOT, Bank
from updp.io.files import write_json
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.run.records import versions
from updp.search import Evaluated, Limits, Scorer, Store, Task, pareto, search, within
from updp.search.front import certainly_dominated
from updp.search.space import Genome


def reuse(network: str, evaluations: int, folder: Path) -> dict[str, Any]:
    """Evaluations per second without and with reuse, on the same plans in the same order."""
    torch.manual_seed(0)
    bank = Bank(network, folder, INHERITED)
    plain = Recipe().search.model_copy(
        update={"reuse_mb": 0, "stop_early": False, "evaluations": evaluations}
    )
    task = Task(bank.space, Limits({}, NETWORKS[network]["blocks"]), plain)
    scorer = Scorer(*bank.parts, INHERITED.model_copy(update={"search": plain}))
    with tempfile.TemporaryDirectory() as place:
        store = Store.in_folder(Path(place), "plain")
        expected = search(task, scorer, store, Silent())
    before = sum(e.seconds for e in expected.values())
    scorer = Scorer(*bank.parts, INHERITED)
    found: dict[Genome, Evaluated] = {}
    seconds, batch = 0.0, plain.population
    for number, genome in enumerate(expected):
        if number % batch == 0:
            known = dict(found)  # what the search knew when it asked
        start = time.perf_counter()
        score = scorer(bank.space.choices(genome), certainly_dominated(genome, known, task))
        seconds += time.perf_counter() - start
        found[genome] = Evaluated(genome, score, number, 0.0, "")

    def ends(results: dict[Genome, Evaluated]) -> tuple[list[Genome], Genome]:
        front = [e.genome for e in pareto(results.values(), task)]
        return front, within(results.values(), task, task.limits)[0].genome

    complete = [e for e in found.values() if e.score.complete]
    assert all(e.score == expected[e.genome].score for e in complete)
    assert ends(found) == ends(expected)
    replay = scorer.replay
    return {
        "plans": len(expected),
        "per_second_plain": len(expected) / before,
        "per_second_reuse": len(expected) / seconds,
        "ratio": before / seconds,
        "left_half_way": len(expected) - len(complete),
        "calls_shared": replay.shared / (replay.shared + replay.computed),
    }


def work(network: str, folder: str, place: str, evaluations: int, barrier: Any) -> None:
    """One worker of one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bank = Bank(network, Path(folder), INHERITED)
    settings = Recipe().search.model_copy(
        update={"searcher": "random", "evaluations": evaluations, "population": 32}
    )
    task = Task(bank.space, Limits({}, NETWORKS[network]["blocks"]), settings)
    store = Store.in_folder(Path(place), "workers")
    barrier.wait()
    search(task, bank.scorer, store, Silent())
    barrier.wait()


def workers(network: str, count: int, evaluations: int, folder: Path) -> dict[str, Any]:
    """Evaluations per second of so many processes."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    with tempfile.TemporaryDirectory() as place:
        arguments = (network, str(folder), place, evaluations, barrier)
        processes = [context.Process(target=work, args=arguments) for _ in range(count)]
        for process in processes:
            process.start()
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        seconds = time.perf_counter() - start
        for process in processes:
            process.join()
        done = Store.in_folder(Path(place), "workers").results()
    assert len(done) == evaluations
    return {"workers": count, "plans": len(done), "per_second": len(done) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    parser.add_argument("--evaluations", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = reuse(options.network, options.evaluations, Path(folder))
        print(found)
        counts = [
            workers(options.network, count, options.evaluations, Path(folder)) for count in (1, 4)
        ]
        print(counts)
    result = {
        "network": options.network,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": versions(),
        "reuse": found,
        "workers": counts,
        "workers_ratio": counts[1]["per_second"] / counts[0]["per_second"],
    }
    write_json(ROOT / f"docs/results/scale-{options.network}.json", result)


if __name__ == "__main__":
    main()
