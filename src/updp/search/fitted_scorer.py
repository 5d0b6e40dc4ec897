"""How good a plan is once it is fitted, site after site, and its kept branches are repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from updp.data.feed import Feed
from updp.recipe import Recipe
from updp.search.score import HeldOut, Score
from updp.supernet import Supernet, fit_plan


class FittedScorer:
    """Scores plans of one supernet after the fit with which stage 3 begins.

    The net's weights, which are those that it has now, are put back each time.
    """

    def __init__(self, net: Supernet, baseline: nn.Module, feed: Feed, recipe: Recipe) -> None:
        settings = recipe.search
        self.net, self.settings = net, recipe.fit
        self.batches = feed.calibration(settings.refined_images)
        self.held_out = HeldOut(baseline, feed, settings.score, blended=settings.blended)
        self.weights = {name: t.detach().clone() for name, t in net.weights().items()}

    @torch.no_grad()
    def __call__(
        self, choices: Mapping[str, str], hopeless: Callable[[float], bool] = lambda bound: False
    ) -> Score:
        """The plan's score on all images: what takes time is the fit, so none is left half-way."""
        try:
            if choices:
                fit_plan(self.net, choices, self.batches, self.settings)
            self.net.eval()
            self.net.choose(choices)
            return self.held_out.score(lambda number, images: self.net(images))
        finally:
            self.net.load_weights(self.weights)
