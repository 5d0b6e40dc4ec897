"""updp and other pruners at equal measured latency: which network keeps most of its accuracy.

    # reduced, for a quiet CPU: an hour a network on one thread, in pieces of 9 minutes
    for i in $(seq 30); do python benchmarks/versus.py --images 6000; done
    # in full, on a GPU
    python benchmarks/versus.py --device cuda --minutes 1000 --epochs 10 --seeds 3 \\
        --network resnet34 mobilenetv2 convnext-tiny deit-tiny

For each share of the baseline's latency every method prunes to its largest model that is not
slower (bisection, each model measured interleaved with the baseline). All are trained the same
way: the same images, epochs, optimiser, learning rates to choose from (on held-out training
images, seed 0) and distillation from the baseline. Then all of a network's models are timed
interleaved in one process, and tested on all test images. --runtime says what runs them;
`onnxruntime` and `compile` fold BatchNorms for every method.

--minutes stops in time, also within a training; the same command then goes on. --time times the
final models anew. Needs torch-pruning: pip install 'updp[benchmarks]'. Baselines that are not
downloaded: benchmarks/train_baseline.py. Results: docs/results/versus-NETWORK.json, docs/versus.md,
docs/versus-NETWORK.svg.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from clock import Clock, TimeUp
from depth_rivals import adding_up, dropping, searching, shrinking
from fitting import Stopwatch
from methods import FREE
from plans import Subject, digest
from rivals import Channels, Rival
from setting import NETWORKS, ROOT, source
from speed import device_name, slug
from torch import nn
from trials import Trial
from versus_table import draw_network, table

from training import feed_of, train_whole
from updp.io.files import read_json, write_json, write_text
from updp.measure import compare_modules, count_macs, count_parameters
from updp.recipe import Recipe
from updp.run.records import versions
from updp.training.evaluate import top1

RESULTS = ROOT / "docs/results"


class Versus:
    """All methods on one network."""

    def __init__(self, name: str, options: argparse.Namespace, clock: Clock) -> None:
        self.options, self.clock = options, clock
        network, device = NETWORKS[name], torch.device(options.device)
        settings = [f"measure.runtime={options.runtime}", f"measure.batch_size={options.batch}"]
        settings += [f"subnet.epochs={options.epochs}", *options.set]
        data = source(network, options.images)
        self.subject = Subject(network, network.load().to(device), data, device, tuple(settings))
        self.folder = options.out / f"{self.subject.folder}-{digest(settings)}"
        self.stopwatch = Stopwatch(self.subject, self.folder / "latencies.json", clock)
        self.left_out: dict[str, str] = {}
        self.rivals: dict[str, str] = {}

    def run(self) -> None:
        """Everything that was asked for; raises TimeUp."""
        rows, trials = [], {}
        for point in self.options.points:
            for rival in self.contenders(point):
                self.rivals[rival.name] = rival.about
                number = self.fitting(rival, point)
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
        """The methods, ready to be sized."""
        subject, clock = self.subject, self.clock
        for kind in ("magnitude", "taylor"):
            yield Channels(kind, subject, FREE)
        for make in (dropping, shrinking, adding_up):
            yield make(subject, self.folder / make.__name__, clock)
        yield searching(subject, self.folder / "searching", clock, self.stopwatch, point)

    def fitting(self, rival: Rival, point: float) -> int | None:
        """The number of the largest model within the point; None, with a note, without one."""
        try:
            number = self.stopwatch.largest(rival, point)
        except (TimeUp, KeyboardInterrupt):
            raise
        except Exception as error:  # of a peer: it does not prune this network
            if not isinstance(rival, Channels):
                raise
            self.left_out[rival.name] = f"{type(error).__name__}: {error}"
            return None
        if number is None:
            self.left_out[f"{rival.name} {point:g}"] = "does not become so fast"
        return number

    def unpruned(self) -> float:
        """Top-1 of the baseline after the same training."""
        subject = self.subject

        def make(recipe: Recipe, folder: Path) -> nn.Module:
            return train_whole(copy.deepcopy(subject.model), subject, recipe, folder, self.clock)

        def build(folder: Path) -> nn.Module:
            return copy.deepcopy(subject.model)

        trial = Trial(self.folder / "baseline", subject, FREE, make, build)
        rows = trial.rows(subject.network.rates, self.options.seeds)
        return mean(row["top1"] for row in rows)

    def figures(self, trial: Trial) -> dict[str, Any]:
        """What came of the training, at the best of the learning rates."""
        rows = trial.rows(self.subject.network.rates, self.options.seeds)
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

    def time(self, trials: dict[str, tuple[Trial, dict[str, Any]]]) -> None:
        """All models beside the baseline, interleaved in this process; kept until asked anew."""
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
            known = {"models": models, "times": {n: t.to_json() for n, t in times.items()}}
            write_json(file, known)
        self.baseline_ms = known["times"]["baseline"]["ms"]
        for name, (_, row) in trials.items():
            row["ms"] = known["times"][name]["ms"]
            row["speedup"] = known["times"][name]["speedup"]

    def write(self, rows: list[dict[str, Any]], unpruned: float) -> None:
        """The results with their plot and the table of all networks."""
        name, subject = self.subject.network.name, self.subject
        recipe, measure = subject.recipe(), self.stopwatch.measure
        feed = feed_of(subject, recipe)
        result = {
            "network": name,
            "device": device_name(subject.device),
            "runtime": f"{measure.runtime}, batch {measure.batch_size}",
            "versions": versions(),
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
        write_json(RESULTS / f"versus-{name}.json", result)
        results = [read_json(file) for file in sorted(RESULTS.glob("versus-*.json"))]
        write_text(ROOT / "docs/versus.md", table(results))
        draw_network(result, ROOT / f"docs/versus-{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    mini = [name for name in NETWORKS if name.endswith("mini")]
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=mini)
    parser.add_argument("--points", type=float, nargs="+", default=[0.8, 0.65, 0.5])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, help="training images at most, all by default")
    parser.add_argument("--runtime", default="eager", help="eager, compile or onnxruntime")
    parser.add_argument("--batch", type=int, default=32, help="images timed at once")
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings for all methods")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many")
    parser.add_argument("--time", action="store_true", help="time the final models anew")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/versus")
    options = parser.parse_args()
    clock = Clock(options.minutes)
    torch.manual_seed(0)
    try:
        for name in options.network:
            Versus(name, options, clock).run()
    except TimeUp as stop:
        print(stop, flush=True)


if __name__ == "__main__":
    main()
