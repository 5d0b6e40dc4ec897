"""Which held-out images tell how near a fitted plan stays to the baseline on images it never saw?

    python benchmarks/scores.py            # pretrained ResNets of CIFAR-10; needs ../shared/data

Plans like those that a search ends with (a third of the sites, of that half that loses least
alone on means, each with one of its two best candidates) are fitted and repaired as stage 3 begins.
Each is scored by its KL from the baseline, which was trained on the held-out images too: on these
images, on means of two of them, on both (search.blended), and on the test split. Kendall's tau
between a score and the last one, and what the plan with the best score has there. Continues where
it was killed. Results: docs/results/scores.json.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import median
from typing import Any

import torch
from plans import digest
from scipy.stats import kendalltau
from torch import Tensor

from search import DATA, ROOT
from updp.engine.evaluate import predict, top1
from updp.engine.files import read_json, read_tensors, write_json
from updp.engine.progress import Silent
from updp.job import Job
from updp.opening import make_job
from updp.pipeline import Run
from updp.recipe import Recipe
from updp.rewrite import fit
from updp.rundir import versions
from updp.search.score import means_of_two

Batches = list[tuple[Tensor, Tensor]]
KINDS = ("images", "means", "both")
NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56")


class Subject:
    """A network with its fitted candidates and the images that plans are scored on."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        recipe = Recipe().updated("budget={blocks: 1}")
        weights = str(DATA / f"weights/cifar10_{name}.safetensors")
        factory, data = (
            f"{ROOT / 'examples/cifar_resnet.py'}:{name}",
            str(DATA / "cifar10_lossless"),
        )
        self.job: Job = make_job(factory, data, recipe, weights, "cpu", progress=Silent())
        self.run = Run(self.job, self.folder / "run", last="supernet")
        self.run.supernet()
        self.net = self.run.net()
        self.fitted = read_tensors(self.run.directory.stage("supernet") / "weights.safetensors")[0]
        held_out = list(self.run.feed.held_out())
        means = means_of_two(torch.cat([images for images, _ in held_out]))
        labels = torch.cat([labels for _, labels in held_out])
        self.images: dict[str, Batches] = {
            "images": held_out,
            "means": [(means, labels)],
            "test": list(self.run.feed.test()),
        }
        self.wanted = {k: predict(self.run.baseline, b)[0] for k, b in self.images.items()}

    def plans(self, count: int) -> list[dict[str, str]]:
        """So many different ones."""
        best = {
            name: sorted((self.apart({name: label}, "means"), label) for label in switch.labels)[:2]
            for name, switch in self.net.switches.items()
        }
        good = sorted(best, key=lambda name: best[name][0])[: (len(best) + 1) // 2]
        chance, found = random.Random(0), list[dict[str, str]]()
        while len(found) < count:
            sites = sorted(chance.sample(good, len(best) // 3))
            plan = {name: chance.choice(best[name])[1] for name in sites}
            if plan not in found:
                found.append(plan)
        return found

    def measure(self, plan: dict[str, str]) -> dict[str, Any]:
        """All scores of a plan, fitted and repaired."""
        self.net.load_weights(self.fitted)
        settings = self.job.recipe.fit
        fit(self.net, plan, self.run.feed.calibration(settings.images), settings)
        kinds = {kind: self.apart(plan, kind) for kind in self.images}
        kinds["both"] = (kinds["images"] + kinds["means"]) / 2
        right = top1(self.net, self.images["test"])
        return {"plan": plan, **kinds, "top1": right}

    def apart(self, plan: dict[str, str], kind: str) -> float:
        """KL of the net under a plan from the baseline, mean over images."""
        self.net.eval()
        self.net.choose(plan)
        own = predict(self.net, self.images[kind])[0].double().log_softmax(1)
        wanted = self.wanted[kind].double().log_softmax(1)
        return float((wanted.exp() * (wanted - own)).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--plans", type=int, default=14, help="of each network")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/scores")
    options = parser.parse_args()
    assert DATA.exists(), f"{DATA} is not there"
    for name in options.network:
        subject = Subject(name, options.out)
        rows = []
        for plan in subject.plans(options.plans):
            file = subject.folder / f"{digest(plan)}.json"
            if not file.exists():
                write_json(file, subject.measure(plan))
            rows.append(read_json(file))
            print(name, {k: v for k, v in rows[-1].items() if k != "plan"}, flush=True)
        write(name, rows)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Add a network to the results."""
    file = ROOT / "docs/results/scores.json"
    known = read_json(file)["networks"] if file.exists() else {}
    test = [row["test"] for row in rows]
    found = {
        kind: {
            "tau": float(kendalltau([row[kind] for row in rows], test)[0]),
            "test_of_best": min(rows, key=lambda row: row[kind])["test"],
        }
        for kind in KINDS
    }
    print(name, found, "best", min(test), "median", median(test), flush=True)
    about = {"best": min(test), "median": median(test), "scores": found, "plans": rows}
    result = {"versions": versions(), "networks": known | {name: about}}
    write_json(file, result)


if __name__ == "__main__":
    main()
