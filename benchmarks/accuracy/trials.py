"""Trainings with their figures, each done once and kept in a file.

Every learning rate is tried with seed 0, and the one whose model has most held-out images right is
taken for all seeds. Only its models see the test split. A training that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.accuracy.plans import Subject
from benchmarks.common.classifiers import top1
from updp.io.files import read_json, read_tensors, write_json, write_tensors
from updp.recipe import Recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A model to be trained with several learning rates and seeds.

    `make` trains it in a folder and returns it; `build` returns the same structure for a folder in
    which it was trained, with weights yet to be loaded.
    """

    folder: Path
    subject: Subject
    settings: tuple[str, ...]
    make: Callable[[Recipe, Path], nn.Module]
    build: Callable[[Path], nn.Module]

    def rows(self, rates: Sequence[float], seeds: int) -> list[Row]:
        """Test figures with the best of the learning rates, a row for each seed."""
        tried = {rate: self.held_out(0, rate)["held_out"] for rate in rates}
        best = max(rates, key=lambda rate: (tried[rate], -rate))
        found = [self.tested(seed, best) for seed in range(seeds)]
        return [{**row, "seed": s, "tried": tried} for s, row in enumerate(found)]

    def held_out(self, seed: int, rate: float) -> Row:
        """Train with a seed and a learning rate; figures with top-1 on held-out images."""
        folder, recipe = self._at(seed, rate)
        file = folder / "cell.json"
        if not file.exists():
            start = time.monotonic()
            model = self.make(recipe, folder).eval()
            right = round(top1(model, self.subject.feed(recipe).held_out()), 4)
            write_tensors(folder / "trained.safetensors", model.state_dict())
            for stage in ("supernet", "subnet", "merge"):
                for left in (folder / stage).glob("*.safetensors"):
                    left.unlink()  # large, and trained.safetensors has what is needed
            seconds = round(time.monotonic() - start, 1)  # of the last piece, if it was stopped
            write_json(file, {"held_out": right, "lr": rate, "seconds": seconds})
        return dict(read_json(file))

    def tested(self, seed: int, rate: float) -> Row:
        """The same figures, with top-1 on the whole test split too."""
        figures = self.held_out(seed, rate)
        if "top1" not in figures:
            folder, recipe = self._at(seed, rate)
            test = self.subject.feed(recipe).test()
            figures["top1"] = round(top1(self.trained(seed, rate), test), 4)
            write_json(folder / "cell.json", figures)
        return figures

    def trained(self, seed: int, rate: float) -> nn.Module:
        """The model as it was trained with a seed and a learning rate."""
        folder, _ = self._at(seed, rate)
        model = self.build(folder).to(self.subject.device).eval()
        model.load_state_dict(read_tensors(folder / "trained.safetensors")[0])
        return model

    def _at(self, seed: int, rate: float) -> tuple[Path, Recipe]:
        settings = (*self.settings, f"seed={seed}", f"subnet.lr={rate}")
        recipe = self.subject.recipe(*settings)
        return self.folder / f"seed-{seed}-lr-{rate}-{recipe.hash()[:6]}", recipe
