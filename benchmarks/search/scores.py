"""On which held-out images should fitted and repaired plans be scored?

    python benchmarks/scores.py            # needs ../shared/data, and for -mini train_baseline.py
    python benchmarks/scores.py --case resnet20:3

Held-out images are of the training split, and a baseline may know those by heart. So the second
part of a search (search.refined) is done twice from the same first part: on the images as they are,
and on means of two of them, too (search.blended). Each time the chosen plan is fitted as stage 3
begins, and its KL from the baseline and its top-1 are taken on images that the baseline never saw:
the test split (2,000 images of it, or all 846 lossless ones) and, of a baseline for lossless
images, 2,000 JPEGs of the whole test split (distorted, and few of them the same). The recipe is the
default with 100 evaluations; nothing is trained. Continues where it was killed. Results:
docs/results/scores.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from setting import DATA, NETWORKS, ROOT, Network, source
from torch import Tensor
from updp.run.job import Job

from updp.data.feed import Feed
from updp.io.files import read_json, read_tensors, write_json
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.run.pipeline import Run
from updp.run.records import versions
from updp.search import (
    Evaluated,
    FittedScorer,
    Scorer,
    Store,
    Task,
    complete,
    limits_of,
    refine,
    search,
    within,
)
from updp.search.space import Genome
from updp.supernet import fit
from updp.training.evaluate import accuracy, predict
from updp.training.losses import distillation

CASES = ("resnet32:5", "resnet32:8", "resnet44:7", "resnet44:11", "resnet56:9", "resnet56:15")
MINIS = ("resnet-mini:4", "convnext-mini:4", "mobilenetv2-mini:4")
KINDS = {"plain": False, "blended": True}
FILE = ROOT / "docs/results/scores.json"
IMAGES = 2000


def network_of(name: str) -> Network:
    """One of the accuracy benchmarks' networks, or another pretrained ResNet for CIFAR-10."""
    if name in NETWORKS:
        return NETWORKS[name]
    like = NETWORKS["resnet56"]
    weights = like.weights.with_name(f"cifar10_{name}.safetensors")
    return replace(like, name=name, model=like.model.replace(like.name, name), weights=weights)


class Case:
    """A network, how many of its sites are pruned, and what the first part of a search found."""

    def __init__(self, name: str, sites: int, folder: Path) -> None:
        self.folder = folder
        self.recipe = Recipe().updated(f"budget={{blocks: {sites}}}", "search.evaluations=100")
        network = network_of(name)
        self.run = Run(self._job(network), folder / "run", last="supernet")
        self.run.supernet()
        self.net, self.feed = self.run.net(), self.run.feed
        self.fitted = read_tensors(folder / "run/supernet/weights.safetensors")[0]
        self.net.load_weights(self.fitted)
        self.images = {"test": _first(self.feed)}
        if network.data != "cifar10":
            self.images["jpeg"] = _first(self._job(replace(network, data="cifar10")).feed())
        self.wanted = {k: predict(self.run.baseline, b)[0] for k, b in self.images.items()}
        limits = limits_of(self.recipe.budget, self.run.space)
        self.task = Task(self.run.space, limits, self.recipe.search, self.recipe.seed)

    def _job(self, network: Network) -> Job:
        data, device = source(network), torch.device("cpu")
        return Job(network.load(), network.model, data, network.data, self.recipe, device, Silent())

    @cached_property
    def alone(self) -> dict[Genome, Evaluated]:
        """Scores of plans whose candidates were fitted alone."""
        scorer = Scorer(self.net, self.run.baseline, self.feed, self.recipe)
        space = self.task.space
        with Store.in_folder(self.folder, "alone") as store:
            known = search(self.task, scorer, store, Silent())
            singles = [space.keep, *space.singles()]
            return known | complete(singles, self.task, scorer, store, Silent())

    def measure(self, blended: bool) -> dict[str, Any]:
        """The plan that is chosen, and how it does once it is fitted on all calibration images."""
        recipe = self.recipe.updated(f"search.blended={blended}")
        judge = FittedScorer(self.net, self.run.baseline, self.feed, recipe)
        with Store.in_folder(self.folder, f"blended {blended}") as store:
            refined = refine(self.task, self.alone, judge, store, Silent())
        chosen = within(refined.values(), self.task, self.task.limits)[0]
        choices = self.task.space.choices(chosen.genome)
        fit(self.net, choices, self.feed.calibration(recipe.fit.images), recipe.fit)
        self.net.choose(choices)
        found = {kind: self._beside(kind) for kind in self.images}
        self.net.load_weights(self.fitted)
        return {"plan": choices, "score": chosen.score.score, **found}

    def _beside(self, kind: str) -> dict[str, float]:
        """The net and the baseline on these images."""
        logits, labels = predict(self.net, self.images[kind])
        kl = float(distillation(logits.double(), self.wanted[kind].double()))
        both = accuracy(logits, labels), accuracy(self.wanted[kind], labels)
        return {"kl": kl, "top1": both[0], "baseline_top1": both[1]}


def _first(feed: Feed) -> list[tuple[Tensor, Tensor]]:
    """Batches of test images: so many, or a few more, or all that there are."""
    found: list[tuple[Tensor, Tensor]] = []
    for batch in feed.test():
        found.append(batch)
        if sum(len(labels) for _, labels in found) >= IMAGES:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", nargs="+", default=[*CASES, *MINIS], help="name:sites")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/scores")
    options = parser.parse_args()
    assert DATA.exists(), f"{DATA} is not there"
    for name in options.case:
        network, sites = name.split(":")
        folder = options.out / f"{network}-{sites}"
        case: Case | None = None
        for kind, blended in KINDS.items():
            file = folder / f"{kind}.json"
            if not file.exists():
                case = case or Case(network, int(sites), folder)
                write_json(file, case.measure(blended))
            row = read_json(file)
            print(name, kind, {k: v for k, v in row.items() if k != "plan"}, flush=True)
    write(options.out)


def write(folder: Path) -> None:
    """Everything that was measured, and the ratios of KL: below 1 blended is better."""
    cases: dict[str, Any] = {}
    for file in sorted(folder.glob("*/*.json")):
        cases.setdefault(file.parent.name, {})[file.stem] = read_json(file)
    ratios = {
        images: {
            name: case["blended"][images]["kl"] / case["plain"][images]["kl"]
            for name, case in cases.items()
            if case.keys() == KINDS.keys() and images in case["plain"]
        }
        for images in ("test", "jpeg")
    }
    for images, each in ratios.items():
        shown = {name: round(ratio, 2) for name, ratio in each.items()}
        print(images, shown, "mean", round(mean(each.values()), 3) if each else None)
    write_json(FILE, {"versions": versions(), "ratios": ratios, "cases": cases})


if __name__ == "__main__":
    main()
