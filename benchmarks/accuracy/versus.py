"""updp and other pruners at equal measured latency: which network keeps most of its accuracy.

    # on a quiet CPU: an hour a network on one thread, in pieces of 9 minutes
    for i in $(seq 30); do python -m benchmarks.accuracy.versus --images 6000; done
    # a trial of the program
    python -m benchmarks.accuracy.versus --network resnet-mini --images 1000 --points 0.8 \\
        --epochs 0.1 --rates 0.005 --set search.evaluations=5 search.refined=3 \\
        --out DIR/work --output DIR

For each share of the baseline's latency every method prunes to its largest model that is not
slower (bisection, each model measured interleaved with the baseline). All are trained alike: the
same images, epochs, optimiser, learning rates to choose from (on held-out training images, seed 0)
and distillation from the baseline. Then all of a network's models are timed interleaved in one
process, and tested on all test images. --runtime says what runs them; `onnxruntime` and `compile`
fold BatchNorms for every method.

--minutes stops in time, also within a training; the same command then goes on. --time times the
final models anew. Channel pruning needs torch-pruning (pip install 'updp[benchmarks]') and is left
out without it. The small networks must have been trained: `train_baseline`. Results:
results/versus-NETWORK.json, docs/results/versus.md, docs/results/versus-NETWORK.svg.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from benchmarks.accuracy.baselines import MINI, NETWORKS, Network, source
from benchmarks.accuracy.depth_rivals import adding_up, dropping, searching, shrinking
from benchmarks.accuracy.methods import FREE
from benchmarks.accuracy.plans import Subject, digest
from benchmarks.accuracy.rivals import Channels, Rival
from benchmarks.accuracy.stopwatch import Stopwatch
from benchmarks.accuracy.training import train_whole
from benchmarks.accuracy.trials import Trial
from benchmarks.accuracy.versus_page import draw_network, page
from benchmarks.common.classifiers import top1
from benchmarks.common.clock import Clock, TimeUp
from benchmarks.common.data import ROOT
from benchmarks.common.output import Result, device_name, make_parser, slug
from updp.io.files import read_json, write_json
from updp.measure import compare_modules, count_macs, count_parameters
from updp.recipe import Recipe


class Versus:
    """All methods on one network."""

    def __init__(self, network: Network, options: argparse.Namespace, clock: Clock) -> None:
        self.options, self.clock, device = options, clock, torch.device(options.device)
        settings = [f"measure.runtime={options.runtime}", f"measure.batch_size={options.batch}"]
        settings += [f"subnet.epochs={options.epochs}", *options.set]
        data = source(network, options.images)
        self.subject = Subject(network, network.load().to(device), data, device, tuple(settings))
        self.folder = options.out / f"{self.subject.folder}-{digest(settings)}"
        self.stopwatch = Stopwatch(self.subject, self.folder / "latencies.json", clock)
        self.rates = tuple(options.rates or network.rates)
        self.left_out: dict[str, str] = {}  # why, by method
        self.rivals: dict[str, str] = {}  # descriptions, by method

    def run(self) -> None:
        """Prune, train and time by all methods, and write the results. Raises TimeUp."""
        rows, trials = [], {}
        for point in self.options.points:
            for rival in self.contenders(point):
                self.rivals[rival.name] = rival.about
                number = self.largest(rival, point)
                if number is None:
                    continue
                trial = rival.trial(
                    number, self.folder / f"{point:g}" / slug(rival.name), self.clock
                )
                row = {"method": rival.name, "point": point, **self.figures(trial)}
                row |= {"model": rival.describe(number)}
                rows.append(row)
                trials[f"{rival.name} {point:g}"] = (trial, row)
                print(rival.name, point, rival.describe(number), row["top1"], flush=True)
        self.time(trials)
        self.write(rows, self.unpruned())

    def contenders(self, point: float) -> Iterator[Rival]:
        """All methods; how far each prunes is still to be found."""
        subject, clock = self.subject, self.clock
        for kind in ("magnitude", "taylor"):
            yield Channels(kind, subject, FREE)
        for make in (dropping, shrinking, adding_up):
            yield make(subject, self.folder / make.__name__, clock)
        yield searching(subject, self.folder / "searching", clock, self.stopwatch, point)

    def largest(self, rival: Rival, point: float) -> int | None:
        """The number of the largest model within the point; None, with the reason kept, without."""
        try:
            number = self.stopwatch.largest(rival, point)
        except (TimeUp, KeyboardInterrupt):
            raise
        except Exception as error:  # torch-pruning is missing, or does not prune this network
            if not isinstance(rival, Channels):
                raise
            self.left_out[rival.name] = why = f"{type(error).__name__}: {error}"
            print(f"left out: {rival.name} ({why})", flush=True)
            return None
        if number is None:
            self.left_out[f"{rival.name} {point:g}"] = "does not become so fast"
        return number

    def unpruned(self) -> float:
        """Mean top-1 of the baseline after the same training."""
        subject = self.subject

        def make(recipe: Recipe, folder: Path) -> nn.Module:
            return train_whole(copy.deepcopy(subject.model), subject, recipe, folder, self.clock)

        def build(folder: Path) -> nn.Module:
            return copy.deepcopy(subject.model)

        trial = Trial(self.folder / "baseline", subject, FREE, make, build)
        rows = trial.rows(self.rates, self.options.seeds)
        return float(mean(row["top1"] for row in rows))

    def figures(self, trial: Trial) -> Result:
        """Accuracy with the best of the learning rates, MACs of an image, parameters."""
        rows = trial.rows(self.rates, self.options.seeds)
        model = trial.trained(0, rows[0]["lr"])
        x = self.stopwatch.x[:1]
        return {
            "top1": mean(row["top1"] for row in rows),
            "seeds": [row["top1"] for row in rows],
            "lr": rows[0]["lr"],
            "tried": rows[0]["tried"],
            "macs": count_macs(model, x),
            "parameters": count_parameters(model),
        }

    def time(self, trials: dict[str, tuple[Trial, Result]]) -> None:
        """Time all models beside the baseline, interleaved in this process, unless done before."""
        file = self.folder / "times.json"
        known = read_json(file) if file.exists() else {}
        models = {name: row["model"] for name, (_, row) in trials.items()}
        if known.get("models") != models or self.options.time:
            self.clock.check()
            built = {"baseline": self.subject.model}
            built |= {n: trial.trained(0, row["lr"]) for n, (trial, row) in trials.items()}
            times = compare_modules(
                built, self.stopwatch.x, settings=self.stopwatch.measure, rounds=21
            )
            known = {"models": models, "times": {n: asdict(t) for n, t in times.items()}}
            write_json(file, known)
        self.baseline_ms = known["times"]["baseline"]["ms"]
        for name, (_, row) in trials.items():
            row["ms"] = known["times"][name]["ms"]
            row["speedup"] = known["times"][name]["speedup"]

    def write(self, rows: Sequence[Result], unpruned: float) -> None:
        """Write the results, their plot and the page of all networks."""
        name, subject = self.subject.network.name, self.subject
        recipe, measure, output = subject.recipe(), self.stopwatch.measure, self.options.output
        feed = subject.feed(recipe)
        result = {
            "network": name,
            "device": device_name(subject.device),
            "runtime": f"{measure.runtime}, batch {measure.batch_size}",
            "data": subject.network.data,
            "epochs": self.options.epochs,
            "distill": recipe.subnet.distill,
            "training_images": feed.steps * recipe.data.batch_size,
            "test_images": len(subject.data.test),
            "baseline": {
                "top1": top1(subject.model, feed.test()),
                "trained": unpruned,
                "ms": self.baseline_ms,
            },
            "methods": self.rivals,
            "left_out": self.left_out,
            "rows": rows,
        }
        output.write(f"versus-{name}", result)
        output.write_page("versus", page(output.read("versus-*")))
        draw_network(result, output.docs / f"versus-{name}.svg")


def add_options(parser: argparse.ArgumentParser, points: Sequence[float]) -> None:
    """Add the options of every comparison at equal latency."""
    parser.add_argument("--points", type=float, nargs="+", default=points)
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; the network's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, help="training images at most, all by default")
    parser.add_argument("--runtime", default="eager", help="eager, compile or onnxruntime")
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings for all methods")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many")
    parser.add_argument("--time", action="store_true", help="time the final models anew")


def compare(
    kind: type[Versus], networks: Mapping[str, Network], options: argparse.Namespace
) -> None:
    """Compare on each network that the options name, until the time is up."""
    clock = Clock(options.minutes)
    torch.manual_seed(0)
    try:
        for name in options.network:
            kind(networks[name], options, clock).run()
    except TimeUp as stop:
        print(stop, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=MINI)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=32, help="images timed at once")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/versus")
    add_options(parser, (0.8, 0.65, 0.5))
    compare(Versus, NETWORKS, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
