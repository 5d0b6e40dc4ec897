"""Scores of plans for the search benchmarks: each is computed once, and kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.common.data import DATA, ROOT, cifar_resnet
from updp.recipe import Recipe
from updp.run.given import Given
from updp.run.inputs import open_inputs
from updp.run.pipeline import Run, open_run_directory
from updp.search import Evaluated, Score, ScoreFile, Scorer

_DIGITS = ROOT / "examples" / "digits"
# Searchers are compared on inherited candidates, whose statistics each score estimates anew.
_TIMED = 5  # scores, at least, whose time is taken
INHERITED = Recipe().updated("supernet.start=inherit", "data.calibration=256")


@dataclass(frozen=True)
class SearchedNetwork:
    """Names of a network, its weights and its data; how many of its sites plans prune."""

    model: str
    weights: Path
    data: str
    blocks: int

    def open_finished_run(self, recipe: Recipe, folder: Path, last: str) -> Run:
        """A run in `folder` that has ended the stages up to `last`."""
        given = Given(self.model, self.data, weights=self.weights)
        inputs = open_inputs(given, recipe, device="cpu")
        run = open_run_directory(inputs, folder, last=last)
        run.until(last)
        return run


NETWORKS = {
    "resnet56": SearchedNetwork(*cifar_resnet("resnet56"), str(DATA / "cifar10_lossless"), 9),
    "vit": SearchedNetwork(
        f"{_DIGITS / 'models.py'}:vit", _DIGITS / "vit.safetensors", "digits", 4
    ),
}


class Bank:
    """Scores of one network's plans by its calibrated, untrained supernet."""

    def __init__(self, network: str, folder: Path) -> None:
        about = NETWORKS[network]
        self.recipe = INHERITED.updated(f"budget={{blocks: {about.blocks}}}")
        context = about.open_finished_run(
            self.recipe, folder / network / "run", last="sites"
        ).context
        self.space, self.limits = context.space, context.limits()
        self.parts = context.net, context.baseline, context.feed
        self.scorer = Scorer(*self.parts, self.recipe)
        self.file = ScoreFile(folder / network / "scores.jsonl")
        self._seconds: list[float] = []

    @property
    def typical_seconds(self) -> float:
        """Median seconds that a score takes, for the machine does other work at times."""
        while len(self._seconds) < _TIMED:  # the others are from an earlier process
            self._score({})
        return median(self._seconds)

    def __call__(self, choices: Mapping[str, str]) -> Score:
        """A plan's score over all held-out images."""
        genome = self.space.genome(choices)
        if genome not in self.file.scored:
            self.file.add([Evaluated(genome, self._score(choices))])
        return self.file.scored[genome].score

    def _score(self, choices: Mapping[str, str]) -> Score:
        start = time.process_time()
        score = self.scorer(choices)
        self._seconds.append(time.process_time() - start)
        return score
