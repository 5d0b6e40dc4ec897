"""What each way of making and training pruned blocks keeps of the accuracy, on real images.

    # the four small networks: 40 minutes each on one thread, in pieces of 9 minutes
    for i in $(seq 20); do python -m benchmarks.accuracy.ablation --images 6000; done
    # the pretrained ResNet-56: two hours on one thread
    for i in $(seq 15); do
        python -m benchmarks.accuracy.ablation --network resnet56 --distill yes; done
    # a trial of the program: one method, before training
    python -m benchmarks.accuracy.ablation --network resnet56 --methods direct --epochs 0 \\
        --seeds 1 --evaluations 10 --out DIR/work --output DIR

All methods prune the same sites of a network to the same shapes: a plan found by the search, whose
scores are of inherited weights without training (100 plans beside each candidate alone). A method
says how a pruned block begins and how it is trained (`methods.py`). For each number of epochs each
method has the learning rate, of four, whose model has most held-out training images right with seed
0. Top-1 is of the merged model on all test images.

--minutes stops in time, also within a training; the same command then goes on. Each training is a
folder in --out. The small networks must have been trained: `train_baseline`. Results:
results/ablation-NETWORK.json, docs/results/ablation.md, docs/results/ablation-NETWORK.svg.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from benchmarks.accuracy.ablation_page import draw_network, page
from benchmarks.accuracy.baselines import MINI, NETWORKS, source
from benchmarks.accuracy.methods import INHERIT, METHODS, WHOLE, Method
from benchmarks.accuracy.plans import Subject, digest, planned_run, searched
from benchmarks.accuracy.training import train_plan, train_whole
from benchmarks.accuracy.trials import Row, Trial
from benchmarks.common.classifiers import top1
from benchmarks.common.clock import Clock, TimeUp
from benchmarks.common.data import ROOT
from benchmarks.common.output import Result, device_name, make_parser
from updp.recipe import Recipe
from updp.search import Survey

DISTILL = {"yes": 0.9, "no": 0.0}  # weight of the distillation loss


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
        """Do all trainings; results are written after each. Raises TimeUp."""
        for blocks in self.options.blocks or self.subject.network.blocks[:1]:
            evaluations = f"search.evaluations={self.options.evaluations}"
            settings = (f"budget={{blocks: {blocks}}}", evaluations)
            recipe = self.subject.recipe(*INHERIT, *settings)
            found = searched(self.subject, recipe, self.folder / f"P{blocks}/plan", self.clock)
            self.plans[blocks] = found.directory.plan().choices
            for method, epochs, distill in self.columns():
                self.clock.check()
                trial = self.trial(method, blocks, epochs, distill, found.context.survey)
                rates = (self.options.rates or self.subject.network.rates) if epochs else (1.0,)
                about = {"method": method.name, "blocks": blocks}
                about |= {"epochs": epochs, "distill": distill if epochs else None}
                rows = trial.rows(rates, self.options.seeds)
                self.rows += [{**about, **row} for row in rows]
                print(*about.values(), *(f"{row['top1']:.2f}" for row in rows), flush=True)
                self.write()

    def columns(self) -> Iterator[tuple[Method, float, str]]:
        """All combinations of method, epochs and distillation; at 0 epochs each start once."""
        wanted = [METHODS[name] for name in self.options.methods]
        for epochs in sorted(self.options.epochs):
            for distill in self.options.distill if epochs else ("no",):
                for method in wanted:
                    if epochs or method.untrained == method.name:
                        yield method, epochs, distill

    def trial(
        self, method: Method, blocks: int, epochs: float, distill: str, survey: Survey
    ) -> Trial:
        """The training of a method, with the plan for so many blocks."""
        subject, choices = self.subject, self.plans[blocks]
        weight = f"subnet.distill={DISTILL[distill]}"
        settings = (*method.settings, f"subnet.epochs={epochs}", weight)
        name = f"{method.name}-{epochs:g}-distill-{distill}"

        def whole(recipe: Recipe, folder: Path) -> nn.Module:
            return train_whole(copy.deepcopy(subject.model), subject, recipe, folder, self.clock)

        def pruned(recipe: Recipe, folder: Path) -> nn.Module:
            return train_plan(planned_run(subject, recipe, choices, survey, folder, self.clock))

        def build_whole(folder: Path) -> nn.Module:
            return copy.deepcopy(subject.model)

        if method.name == WHOLE:  # the same for every plan
            return Trial(self.folder / name, subject, settings, whole, build_whole)
        plan = digest(choices)
        folder = self.folder / f"P{blocks}-{plan}" / name
        return Trial(folder, subject, settings, pruned, subject.merged)

    def write(self) -> None:
        """Write the results so far, their plot and the page of all networks."""
        name, output = self.subject.network.name, self.options.output
        output.write(f"ablation-{name}", {**self.about, "plans": self.plans, "rows": self.rows})
        output.write_page("ablation", page(output.read("ablation-*")))
        (result,) = output.read(f"ablation-{name}")
        draw_network(result, output.docs / f"ablation-{name}.svg")

    @cached_property
    def about(self) -> Result:
        """Device, data and the baseline's accuracy."""
        subject = self.subject
        recipe = subject.recipe()
        feed = subject.feed(recipe)
        return {
            "network": subject.network.name,
            "device": device_name(subject.device),
            "data": subject.network.data,
            "training_images": feed.steps * recipe.data.batch_size,
            "test_images": len(subject.data.test),
            "baseline": top1(subject.model.to(subject.device), feed.test()),
            "rates": self.options.rates or subject.network.rates,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=MINI)
    parser.add_argument("--blocks", type=int, nargs="+", help="to prune; the network's first size")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0, 1, 3])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; the network's")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--distill", choices=DISTILL, nargs="+", default=list(DISTILL))
    parser.add_argument("--images", type=int, help="training images at most, all by default")
    parser.add_argument("--evaluations", type=int, default=100, help="of the search for the plan")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/ablation")
    options = parser.parse_args(arguments)
    clock = Clock(options.minutes)
    try:
        for name in options.network:
            Ablation(name, options, clock).run()
    except TimeUp as stop:
        print(stop, flush=True)


if __name__ == "__main__":
    main()
