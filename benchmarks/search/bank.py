"""Scores of plans for the search benchmarks: each is computed once, and kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.common.data import DATA, ROOT, cifar_resnet
from updp.recipe import Recipe
from updp.run.inputs import open_inputs
from updp.run.pipeline import Run, open_run_directory
from updp.search import Score, Scorer, Store

_DIGITS = ROOT / "examples" / "digits"
# Searchers are compared on inherited candidates, whose statistics each score estimates anew.
INHERITED = Recipe().updated("supernet.start=inherit", "data.calibration=256")


@dataclass(frozen=True)
class SearchedNetwork:
    """Names of a network, its weights and its data; how many of its sites plans prune."""

    model: str
    weights: Path
    data: str
    blocks: int

    def open_run(self, recipe: Recipe, folder: Path, last: str) -> Run:
        """A run in `folder` that has ended the stages up to `last`."""
        inputs = open_inputs(self.model, self.data, recipe, weights=self.weights, device="cpu")
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
        context = about.open_run(self.recipe, folder / network / "run", last="sites").context
        self.space, self.limits = context.space, context.limits()
        self.parts = context.net, context.baseline, context.feed
        self.scorer = Scorer(*self.parts, self.recipe)
        self.store = Store.in_folder(folder / network, "scores")
        self.known = self.store.results()

    @property
    def typical_seconds(self) -> float:
        """Median seconds that a score takes, for the machine does other work at times."""
        return median(e.seconds for e in self.known.values())

    def __call__(self, choices: Mapping[str, str]) -> Score:
        """A plan's score over all held-out images."""
        genome = self.space.genome(choices)
        if genome not in self.known:
            assert self.store.claim(genome)
            start = time.process_time()
            with self.store.scoring(genome):
                score = self.scorer(choices)
                self.store.finish(genome, score, time.process_time() - start)
            self.known = self.store.results()
        return self.known[genome].score
