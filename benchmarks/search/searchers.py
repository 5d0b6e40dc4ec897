"""How good a plan each searcher finds, and after how many evaluations.

    python benchmarks/search.py                      # ResNet-56 (needs ../shared/data) and a ViT
    python benchmarks/search.py --network vit --seeds 1 --evaluations 200

Every searcher runs with several seeds on the same scores: divergence of the calibrated, untrained
supernet from its baseline's logits on held-out images. `random` gets all evaluations, the others a
third of them, the candidates alone included. For 8 sites all plans are scored too. A score that one
run needed serves all others, and a run that is killed goes on: they are kept in --bank. Results:
docs/results/search-NETWORK.json, docs/search.md, docs/search-NETWORK.svg.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch

matplotlib.use("svg")
from matplotlib import pyplot

from updp.blocks import find
from updp.candidates import make_offers, selected
from updp.data import preprocess_for
from updp.data.feed import Feed
from updp.io.files import read_json, write_json, write_text
from updp.io.progress import Silent
from updp.measure import count_macs
from updp.recipe import Recipe
from updp.run.inputs import make_job
from updp.run.records import versions
from updp.search import (
    SEARCHERS,
    Choice,
    Limits,
    Option,
    Score,
    Scorer,
    Space,
    Store,
    Task,
    search,
)
from updp.search.space import Genome
from updp.supernet import Supernet

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
DIGITS = ROOT / "examples" / "digits"
# Searchers are compared on inherited candidates, whose statistics each score estimates anew.
INHERITED = Recipe().updated("supernet.start=inherit", "data.calibration=256")
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet56": {
        "model": f"{ROOT / 'examples/cifar_resnet.py'}:resnet56",
        "weights": str(DATA / "weights/cifar10_resnet56.safetensors"),
        "data": str(DATA / "cifar10_lossless"),
        "blocks": 9,
    },
    "vit": {
        "model": f"{DIGITS / 'models.py'}:vit",
        "weights": str(DIGITS / "vit.safetensors"),
        "data": "digits",
        "blocks": 4,
    },
}
Judge = Callable[[Mapping[str, str], Callable[[float], bool]], Score]


class Bank:
    """Scores of one network's plans: each is computed once, and kept."""

    def __init__(self, network: str, folder: Path, recipe: Recipe) -> None:
        about = NETWORKS[network]
        device = torch.device("cpu")
        job = make_job(
            about["model"], about["data"], recipe, weights=about["weights"], device="cpu"
        )
        baseline = job.model.eval()
        shape = job.source.image_size
        preprocess = preprocess_for(baseline, shape)
        feed = Feed(job.source, preprocess, recipe.data, seed=recipe.seed, device=device)
        model = copy.deepcopy(baseline)
        findings = find(model, torch.randn(2, *shape))
        offers, _ = make_offers(model, selected(findings, (), ()), recipe, device)
        net = Supernet(model, findings, {n: [o.candidate for o in f] for n, f in offers.items()})
        net.calibrate(torch.cat(feed.calibration()))
        macs = count_macs(baseline, torch.randn(1, *shape))
        sites = tuple(
            Choice(
                name,
                tuple(Option(o.candidate.label, o.saved_ms, o.keep_macs - o.macs) for o in found),
            )
            for name, found in offers.items()
        )
        self.space = Space(sites, sum(found[0].keep_ms for found in offers.values()), macs)
        self.parts = net, baseline, feed
        self.scorer = Scorer(*self.parts, recipe)
        self.store = Store.in_folder(folder / network, "scores")
        self.known = self.store.results()

    @property
    def typical(self) -> float:
        """Seconds that a score takes: the median, for a machine does other work at times."""
        return median(e.seconds for e in self.known.values())

    def __call__(self, choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        """The complete score."""
        genome = self.space.genome(choices)
        if genome not in self.known:
            assert self.store.claim(genome)
            start = time.process_time()
            with self.store.scoring(genome):
                score = self.scorer(choices)
                self.store.finish(genome, score, time.process_time() - start)
            self.known = self.store.results()
        return self.known[genome].score


def run(bank: Bank, name: str, seed: int, evaluations: int, blocks: int) -> list[dict[str, float]]:
    """One search: a row for each plan within the budget that was better than all before it."""
    settings = Recipe().search.model_copy(
        update={"searcher": name, "stop_early": False, "evaluations": evaluations}
    )
    task = Task(bank.space, Limits({}, blocks), settings, seed)
    first = len(SEARCHERS[name](task).preliminaries())
    settings = settings.model_copy(update={"evaluations": max(1, evaluations - first)})
    task = Task(bank.space, Limits({}, blocks), settings, seed)
    rows, best = [], float("inf")
    start, spent = time.process_time(), 0.0  # of the processor, for other work may be going on

    def judge(choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        nonlocal spent
        begun = time.process_time()
        score = bank(choices, hopeless)
        spent += time.process_time() - begun
        searching = time.process_time() - start - spent
        order.append((bank.space.genome(choices), searching + (len(order) + 1) * bank.typical))
        return score

    order: list[tuple[Genome, float]] = []
    with tempfile.TemporaryDirectory() as folder, Store.in_folder(Path(folder), "run") as store:
        known = search(task, judge, store, Silent())
    for number, (genome, seconds) in enumerate(order, 1):
        score = known[genome].score.score
        if task.meets(genome) and score < best:
            best = score
            rows.append({"evaluations": number, "seconds": round(seconds, 2), "score": score})
    rows.append({"evaluations": len(order), "seconds": round(order[-1][1], 2), "score": best})
    return rows


def exhaustive(bank: Bank, blocks: int) -> float:
    """The best score of all plans that prune so many sites."""
    ranges = [range(len(site.options) + 1) for site in bank.space.sites]
    plans = [g for g in itertools.product(*ranges) if sum(map(bool, g)) == blocks]
    for plan in plans:
        bank(bank.space.choices(plan), lambda bound: False)
    return min(bank.known[plan].score.score for plan in plans)


def measure(network: str, seeds: int, evaluations: int, folder: Path) -> None:
    """All searchers on one network."""
    torch.manual_seed(0)
    bank = Bank(network, folder, INHERITED)
    blocks = NETWORKS[network]["blocks"]
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for name in SEARCHERS:
        share = evaluations if name == "random" else evaluations // 3
        runs[name] = []
        for seed in range(seeds):
            runs[name].append(run(bank, name, seed, share, blocks))
            print(network, name, seed, runs[name][-1][-1], flush=True)
            write(bank, network, blocks, evaluations, runs)
    if len(bank.space.sites) <= 8:
        write(bank, network, blocks, evaluations, runs, optimum=exhaustive(bank, blocks))


def write(
    bank: Bank, network: str, blocks: int, evaluations: int, runs: dict, **more: float
) -> None:
    """What there is so far, with its plot and the table of all networks."""
    result = {
        "network": network,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": versions(),
        "blocks": blocks,
        "sites": len(bank.space.sites),
        "plans": bank.space.size,
        "evaluations": evaluations,
        "runs": runs,
        "baseline": bank.known[bank.space.keep].score.score,
        **more,
    }
    folder = ROOT / "docs/results"
    write_json(folder / f"search-{network}.json", result)
    plot(result, ROOT / f"docs/search-{network}.svg")
    found = [read_json(file) for file in sorted(folder.glob("search-*.json"))]
    write_text(ROOT / "docs/search.md", table(found))


def best_of(result: dict[str, Any]) -> float:
    """The best score that any searcher found."""
    return min(run[-1]["score"] for runs in result["runs"].values() for run in runs)


def reached(run: list[dict[str, float]], score: float) -> dict[str, float] | None:
    """The first row within 1 % of a score."""
    return next((row for row in run if row["score"] <= 1.01 * score), None)


def plot(result: dict[str, Any], file: Path) -> None:
    """Best score against evaluations and against seconds."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True)
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
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "# Searchers compared",
        "",
        "Made by `python benchmarks/search.py`. Scores are KL from the baseline's logits on",
        "held-out images, of the calibrated supernet without training; lower is better. *Best",
        "ever* is the best of all runs. Evaluations include each candidate alone, where a searcher",
        "scores them. Seconds are the searcher's own and the median of a score's for each plan.",
        "",
    ]
    for result in results:
        best = best_of(result)
        lines += [
            f"## {result['network']}: {result['blocks']} of {result['sites']} sites, "
            f"{result['plans']:.1e} plans in all; {result['device']}",
            "",
            f"Best ever {best:.5f}"
            + (
                f"; the optimum of all plans is {result['optimum']:.5f}"
                if "optimum" in result
                else ""
            )
            + f". ![curves](search-{result['network']}.svg)",
            "",
            "| searcher | evaluations | best score, each seed | within 1 % of best ever after "
            "evaluations | after seconds |",
            "| --- | ---: | --- | --- | --- |",
        ]
        for name, runs in result["runs"].items():
            hits = [reached(rows, best) for rows in runs]
            columns = (
                name,
                str(runs[0][-1]["evaluations"]),
                ", ".join(f"{rows[-1]['score']:.5f}" for rows in runs),
                ", ".join(f"{hit['evaluations']}" if hit else "not" for hit in hits),
                ", ".join(f"{hit['seconds']:.0f}" if hit else "not" for hit in hits),
            )
            lines.append(f"| {' | '.join(columns)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=900, help="of random; others a third")
    parser.add_argument("--bank", type=Path, default=ROOT / "runs/search-benchmark")
    options = parser.parse_args()
    for network in options.network:
        measure(network, options.seeds, options.evaluations, options.bank)


if __name__ == "__main__":
    main()
