"""What each way of making and training pruned blocks keeps of the accuracy, on real images.

    # reduced, for a CPU: 40 minutes a network on one thread, in pieces of 9 minutes
    for i in $(seq 20); do python benchmarks/ablation.py --images 6000; done
    # reduced, the pretrained ResNet-56: two hours on one thread
    for i in $(seq 15); do python benchmarks/ablation.py --network resnet56 --distill yes; done
    # in full, on a GPU
    python benchmarks/ablation.py --device cuda --minutes 1000 --seeds 3 --epochs 0 1 3 10 \\
        --network resnet56 resnet34 mobilenetv2 convnext-tiny deit-tiny

All methods prune the same sites of a network to the same shapes: a plan found by the search, whose
scores are of inherited weights without training (100 plans beside each candidate alone). A
method says how a pruned block begins and how it is trained (benchmarks/methods.py). For each number
of epochs each method has the learning rate, of four, whose model has most held-out training images
right with seed 0. Top-1 is of the merged model on all test images.

--minutes stops in time, also within a training; the same command then goes on. Each training is a
folder in --out. Baselines that are not downloaded: benchmarks/train_baseline.py. Results:
docs/results/ablation-NETWORK.json, docs/ablation.md, docs/ablation-NETWORK.svg.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ablation_table import draw_network, table
from clock import Clock, TimeUp
from methods import INHERIT, METHODS, WHOLE, Method
from plans import Subject, digest, planned_run, searched, sites_of
from setting import NETWORKS, ROOT, source
from speed import device_name
from torch import nn
from trials import Row, Trial

from training import feed_of, train_plan, train_whole
from updp.io.files import read_json, write_json, write_text
from updp.recipe import Recipe
from updp.run.records import versions
from updp.training.evaluate import top1

RESULTS = ROOT / "docs/results"
DISTILL = {"yes": 0.9, "no": 0.0}  # weight of the baseline's logits


class Ablation:
    """All trainings of one network."""

    def __init__(self, name: str, options: argparse.Namespace, clock: Clock) -> None:
        self.options, self.clock = options, clock
        network, device = NETWORKS[name], torch.device(options.device)
        self.subject = Subject(network, network.load(), source(network, options.images), device)
        self.folder = options.out / self.subject.folder
        self.plans: dict[int, dict[str, str]] = {}
        self.rows: list[Row] = []

    def run(self) -> None:
        """Everything that was asked for, written as it comes in; raises TimeUp."""
        for blocks in self.options.blocks or self.subject.network.blocks[:1]:
            settings = (f"budget={{blocks: {blocks}}}", "search.evaluations=100")
            recipe = self.subject.recipe(*INHERIT, *settings)
            found = searched(self.subject, recipe, self.folder / f"P{blocks}/plan", self.clock)
            self.plans[blocks] = found.plan().choices
            for method, epochs, distill in self.columns():
                self.clock.check()
                trial = self.trial(method, blocks, epochs, distill, sites_of(found))
                rates = (self.options.rates or self.subject.network.rates) if epochs else (1.0,)
                about = {"method": method.name, "blocks": blocks}
                about |= {"epochs": epochs, "distill": distill if epochs else None}
                rows = trial.rows(rates, self.options.seeds)
                self.rows += [{**about, **row} for row in rows]
                print(*about.values(), *(f"{row['top1']:.2f}" for row in rows), flush=True)
                self.write()

    def columns(self) -> Iterator[tuple[Method, float, str]]:
        """Methods, numbers of epochs, with distillation or without; without training once."""
        wanted = [METHODS[name] for name in self.options.methods if METHODS[name].exists]
        for epochs in sorted(self.options.epochs):
            for distill in self.options.distill if epochs else ("no",):
                for method in wanted:
                    if epochs or method.untrained == method.name:
                        yield method, epochs, distill

    def trial(
        self, method: Method, blocks: int, epochs: float, distill: str, sites: dict[str, Any]
    ) -> Trial:
        """A method's training."""
        subject, choices = self.subject, self.plans[blocks]
        weight = f"subnet.distill={DISTILL[distill]}"
        settings = (*method.settings, f"subnet.epochs={epochs}", weight)
        name = f"{method.name}-{epochs:g}-distill-{distill}"

        def whole(recipe: Recipe, folder: Path) -> nn.Module:
            return train_whole(copy.deepcopy(subject.model), subject, recipe, folder, self.clock)

        def pruned(recipe: Recipe, folder: Path) -> nn.Module:
            return train_plan(planned_run(subject, recipe, choices, sites, folder, self.clock))

        def same(folder: Path) -> nn.Module:
            return copy.deepcopy(subject.model)

        if method.name == WHOLE:  # the same for every plan
            return Trial(self.folder / name, subject, settings, whole, same)
        plan = digest(choices)
        folder = self.folder / f"P{blocks}-{plan}" / name
        return Trial(folder, subject, settings, pruned, subject.merged)

    def write(self) -> None:
        """What there is so far, with its plot and the table of all networks."""
        name = self.subject.network.name
        result = {**self.about, "plans": self.plans, "rows": self.rows}
        write_json(RESULTS / f"ablation-{name}.json", result)
        results = [read_json(file) for file in sorted(RESULTS.glob("ablation-*.json"))]
        write_text(ROOT / "docs/ablation.md", table(results))
        result = next(result for result in results if result["network"] == name)
        draw_network(result, ROOT / f"docs/ablation-{name}.svg")

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the figures are of."""
        subject = self.subject
        recipe = subject.recipe()
        feed = feed_of(subject, recipe)
        return {
            "network": subject.network.name,
            "device": device_name(subject.device),
            "versions": versions(),
            "data": subject.network.data,
            "training_images": feed.steps * recipe.data.batch_size,
            "test_images": len(subject.data.test),
            "baseline": top1(subject.model.to(subject.device), feed.test()),
            "rates": self.options.rates or subject.network.rates,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    mini = [name for name in NETWORKS if name.endswith("mini")]
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=mini)
    parser.add_argument("--blocks", type=int, nargs="+", help="to prune; the network's first size")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0, 1, 3])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; the network's")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--distill", choices=DISTILL, nargs="+", default=list(DISTILL))
    parser.add_argument("--images", type=int, help="training images at most, all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/ablation")
    options = parser.parse_args()
    clock = Clock(options.minutes)
    try:
        for name in options.network:
            Ablation(name, options, clock).run()
    except TimeUp as stop:
        print(stop, flush=True)


if __name__ == "__main__":
    main()
