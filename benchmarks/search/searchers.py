"""How good a plan each searcher finds, and after how many evaluations.

    python -m benchmarks.search.searchers       # ResNet-56 (needs ../shared/data) and a ViT
    python -m benchmarks.search.searchers --network vit --seeds 1 --evaluations 60 --output DIR

Every searcher runs with several seeds on the same scores: divergence of the calibrated, untrained
supernet from its baseline's logits on held-out images. `random` gets all evaluations, the others a
third of them, the candidates alone included. For 8 sites all plans are scored too, unless --quick.
A score that one run needed serves all others, and a run that is killed goes on: they are kept in
--bank. Results: results/searchers-NETWORK.json, and docs/results/search.md with
search-NETWORK.svg beside it.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.common.data import ROOT
from benchmarks.common.line_plot import save
from benchmarks.common.markdown import table
from benchmarks.common.output import Output, Result, device_name, make_parser
from benchmarks.search.bank import NETWORKS, Bank
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.search import SEARCHERS, Score, ScoreFile, SearchTask, search
from updp.search.space import Genome

Best = dict[str, float]  # a best plan so far: its score, after how many evaluations and seconds

INTRO = """# Searchers compared

Made by `python -m benchmarks.search.searchers`. Scores are KL from the baseline's logits on
held-out images, of the calibrated supernet without training; lower is better. *Best
ever* is the best of all runs. Evaluations include each candidate alone, where a searcher
scores them. Seconds are the searcher's own and the median of a score's for each plan.
"""


def run(bank: Bank, name: str, seed: int, evaluations: int) -> list[Best]:
    """One search: a row for each plan within the budget that was better than all before it."""
    settings = Recipe().search.model_copy(
        update={"searcher": name, "stop_early": False, "evaluations": evaluations}
    )
    task = SearchTask(bank.space, bank.limits, settings, seed)
    first = len(SEARCHERS[name](task).preliminaries())
    settings = settings.model_copy(update={"evaluations": max(1, evaluations - first)})
    task = SearchTask(bank.space, bank.limits, settings, seed)
    start, spent = time.process_time(), 0.0  # of this process, for other work may be going on

    def judge(choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        nonlocal spent
        begun = time.process_time()
        score = bank(choices)
        spent += time.process_time() - begun
        searching = time.process_time() - start - spent
        seconds = searching + (len(order) + 1) * bank.typical_seconds
        order.append((bank.space.genome(choices), seconds))
        return score

    order: list[tuple[Genome, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        known = search(task, judge, ScoreFile(Path(folder) / "scores.jsonl"), Silent())
    rows: list[Best] = []
    best = float("inf")
    for number, (genome, seconds) in enumerate(order, 1):
        score = known[genome].score.score
        if task.meets(genome) and score < best:
            best = score
            rows.append({"evaluations": number, "seconds": round(seconds, 2), "score": score})
    rows.append({"evaluations": len(order), "seconds": round(order[-1][1], 2), "score": best})
    return rows


def exhaustive(bank: Bank) -> float:
    """The best score of all plans within the budget."""
    ranges = [range(len(site.options) + 1) for site in bank.space.sites]
    plans = [g for g in itertools.product(*ranges) if bank.limits.met(bank.space.cost(g))]
    return min(bank(bank.space.choices(plan)).score for plan in plans)


def measure(
    network: str, seeds: int, evaluations: int, folder: Path, quick: bool, output: Output
) -> None:
    """Run all searchers on one network, and write the results after each run."""
    torch.manual_seed(0)
    bank = Bank(network, folder)
    result: Result = {
        "network": network,
        "device": device_name(torch.device("cpu")),
        "blocks": NETWORKS[network].blocks,
        "sites": len(bank.space.sites),
        "plans": bank.space.size,
        "evaluations": evaluations,
        "runs": {},
        "baseline": bank({}).score,
    }
    for name in SEARCHERS:
        share = evaluations if name == "random" else evaluations // 3
        result["runs"][name] = []
        for seed in range(seeds):
            rows = run(bank, name, seed, share)
            result["runs"][name].append(rows)
            print(network, name, seed, rows[-1], flush=True)
            write(result, output)
    if len(bank.space.sites) <= 8 and not quick:
        write({**result, "optimum": exhaustive(bank)}, output)


def write(result: Result, output: Output) -> None:
    """Write a network's results so far, their plot and the page of all networks."""
    network = result["network"]
    output.write(f"searchers-{network}", result)
    plot(result, output.docs / f"search-{network}.svg")
    output.write_page("search", page(output.read("searchers-*")))


def plot(result: Result, file: Path) -> None:
    """Draw the best score against evaluations and against seconds."""
    figure = Figure(figsize=(10, 3.6))
    axes = figure.subplots(1, 2, sharey=True)
    for index, (name, runs) in enumerate(result["runs"].items()):
        for i, rows in enumerate(runs):
            for axis, unit in zip(axes, ("evaluations", "seconds"), strict=True):
                axis.step(
                    [row[unit] for row in rows],
                    [row["score"] for row in rows],
                    where="post",
                    color=f"C{index}",
                    label=name if i == 0 else None,
                )
                axis.set_xlabel(unit)
    axes[0].set_ylabel("best score (KL from the baseline)")
    axes[0].set_yscale("log")
    axes[0].legend()
    figure.suptitle(f"{result['network']}: {result['blocks']} of {result['sites']} sites")
    figure.tight_layout()
    save(figure, file)


def reached(rows: Sequence[Best], score: float) -> Best | None:
    """The first row within 1 % of a score."""
    return next((row for row in rows if row["score"] <= 1.01 * score), None)


def page(results: Sequence[Result]) -> str:
    """The Markdown page, with a table for each network."""
    lines = [INTRO]
    columns = (
        "searcher",
        "evaluations",
        "best score, each seed",
        "within 1 % of best ever after evaluations",
        "after seconds",
    )
    for result in results:
        best = min(rows[-1]["score"] for runs in result["runs"].values() for rows in runs)
        optimum = ""
        if "optimum" in result:
            optimum = f"; the optimum of all plans is {result['optimum']:.5f}"
        rows = []
        for name, runs in result["runs"].items():
            hits = [reached(of_seed, best) for of_seed in runs]
            rows.append(
                (
                    name,
                    runs[0][-1]["evaluations"],
                    ", ".join(f"{of_seed[-1]['score']:.5f}" for of_seed in runs),
                    ", ".join(f"{hit['evaluations']}" if hit else "not" for hit in hits),
                    ", ".join(f"{hit['seconds']:.0f}" if hit else "not" for hit in hits),
                )
            )
        lines += [
            f"## {result['network']}: {result['blocks']} of {result['sites']} sites, "
            f"{result['plans']:.1e} plans in all; {result['device']}",
            "",
            f"Best ever {best:.5f}{optimum}. ![curves](search-{result['network']}.svg)",
            "",
            *table(columns, rows, ("evaluations",)),
            "",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=900, help="of random; others a third")
    parser.add_argument("--quick", action="store_true", help="do not score all plans")
    parser.add_argument("--bank", type=Path, default=ROOT / "runs/search-benchmark")
    options = parser.parse_args(arguments)
    for network in options.network:
        measure(
            network,
            options.seeds,
            options.evaluations,
            options.bank,
            options.quick,
            options.output,
        )


if __name__ == "__main__":
    main()
