"""Does a search's score say how accurate a plan is after it was trained?

    python benchmarks/correlation.py            # ResNet-56, CIFAR-10; needs ../shared/data

Random plans of several sizes are scored twice: by the trained supernet (the paper) and by the
calibrated one without any training. Each plan is then trained alone, from the calibrated baseline,
merged or not makes no difference, and tested. Kendall's tau between score and error, over all plans
and within each size. Continues where it was killed. Results: docs/results/correlation.json.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from search import DATA, INHERITED, NETWORKS, ROOT
from updp import subnet
from updp.io.files import read_json, read_tensors, write_json
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.run.inputs import make_job
from updp.run.pipeline import Run
from updp.run.records import versions
from updp.search import Scorer
from updp.training.evaluate import top1

SIZES = (3, 6, 9, 12)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--each", type=int, default=3, help="plans of each size")
    parser.add_argument("--epochs", type=float, default=1.0, help="of subnet training")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/correlation")
    options = parser.parse_args()
    assert DATA.exists(), f"{DATA} is not there"
    about = NETWORKS["resnet56"]
    recipe = INHERITED.updated(
        "budget={blocks: 9}",
        "supernet.epochs=2",
        "subnet.start=baseline",
        f"subnet.epochs={options.epochs}",
    )
    job = make_job(about["model"], about["data"], recipe, about["weights"], "cpu")
    run = Run(job, options.out / "run", last="supernet")
    run.supernet()
    offers = run.sites()
    chance = random.Random(0)
    plans = [
        {name: chance.choice(offers[name]).candidate.label for name in sorted(sites)}
        for size in SIZES
        for _ in range(options.each)
        for sites in [chance.sample(list(offers), size)]
    ]
    rows = []
    for number, plan in enumerate(plans):
        file = options.out / f"plan-{number}.json"
        if not file.exists():
            write_json(file, measure(run, job, recipe, plan, options.out / f"train-{number}"))
        rows.append(read_json(file))
        print(number, {k: v for k, v in rows[-1].items() if k != "plan"}, flush=True)
        if number:
            write(rows, options.epochs)


def write(rows: list[dict], epochs: float) -> None:
    """What there is so far."""
    result: dict[str, Any] = {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": versions(),
        "epochs": epochs,
        "plans": rows,
        "tau": {name: tau(rows, name) for name in ("supernet", "fitted")},
    }
    print(result["tau"], flush=True)
    write_json(ROOT / "docs/results/correlation.json", result)


def measure(run: Run, job: Any, recipe: Recipe, plan: dict[str, str], folder: Path) -> dict:
    """Both scores of a plan, and its test accuracy once it is trained."""
    scores = {}
    for name in ("supernet", "fitted"):
        net = run.new_net()
        if name == "supernet":
            file = run.directory.stage("supernet") / "weights.safetensors"
            net.load_weights(read_tensors(file)[0])
        scores[name] = Scorer(net, run.baseline, run.feed, recipe)(plan).score
    net = run.new_net()
    teacher = copy.deepcopy(run.baseline)
    subnet.train(net, plan, teacher, run.feed, recipe, folder, Silent())
    return {"blocks": len(plan), **scores, "top1": top1(net, list(run.feed.test())), "plan": plan}


def tau(rows: list[dict], name: str) -> dict[str, float]:
    """Kendall's tau-b of the score with the error, over all and the mean within sizes."""
    sizes = {r["blocks"] for r in rows}
    groups = [[r for r in rows if r["blocks"] == size] for size in sizes]
    groups = [group for group in groups if len(group) > 1]

    def one(some: list[dict]) -> float:
        return float(kendalltau([r[name] for r in some], [-r["top1"] for r in some])[0])

    return {"all": one(rows), "within": sum(map(one, groups)) / max(len(groups), 1)}


if __name__ == "__main__":
    main()
