"""How near pruned models are to one baseline on the test split, paired: top-1 alone says little.

    python -m benchmarks.accuracy.divergence runs/one runs/two     # runs of the same model and data

For each run: top-1 in %, how often its best class is the baseline's in %, KL from the baseline in
the mean over the test images, and the mean difference of that from the first run's with its 95 %
interval over the images.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from updp import load
from updp.run.finished import open_finished_run
from updp.tasks.losses import divergence


@dataclass
class Distance:
    """Of one run, an entry for each image."""

    apart: list[Tensor] = field(default_factory=list)  # KL from the baseline
    same: list[Tensor] = field(default_factory=list)  # whether the best class is the baseline's
    right: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, baseline: Tensor, labels: Tensor) -> None:
        """Take in a batch of logits (N, classes) and labels (N,)."""
        best = logits.argmax(1)
        self.apart.append(divergence(logits, baseline))
        self.same.append(best == baseline.argmax(1))
        self.right.append(best == labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.divergence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="finished run directories")
    runs: list[Path] = parser.parse_args(arguments).runs
    found = compare(runs)
    first = torch.cat(next(iter(found.values())).apart)
    print("| run | top-1 | same class | KL | difference from the first |")
    print("| --- | ---: | ---: | ---: | --- |")
    for run, distance in found.items():
        apart = torch.cat(distance.apart)
        more = (apart - first) if apart is not first else apart
        margin = 1.96 * more.std().item() / math.sqrt(len(more))
        right, same = (
            100 * torch.cat(each).double().mean().item() for each in (distance.right, distance.same)
        )
        print(
            f"| {run.name} | {right:.2f} | {same:.2f} | {apart.mean():.4f} | "
            f"{more.mean():+.4f} ± {margin:.4f} |"
        )


@torch.inference_mode()
def compare(runs: Sequence[Path]) -> dict[Path, Distance]:
    """The distances of each run's merged model, in the order given."""
    opened = open_finished_run(runs[0])
    models = {run: load(run).to(opened.device).eval() for run in runs}
    found = {run: Distance() for run in runs}
    for images, labels in opened.feed.test():
        baseline = opened.baseline(images)
        for run, model in models.items():
            found[run].add(model(images), baseline, labels)
    return found


if __name__ == "__main__":
    main()
