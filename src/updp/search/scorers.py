"""How good a plan is: with the supernet's weights, or once it is fitted and repaired."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from updp.blocks.modules import evaluating
from updp.data.feed import Feed
from updp.recipe import Recipe
from updp.search.prefix_cache import PrefixCache
from updp.search.score import HeldOut, Score
from updp.supernet import Supernet, fit_plan
from updp.training.batchnorm import preserved, recalibrate


class Scorer:
    """Scores plans of one supernet. What plans begin with alike is computed once.

    BatchNorm statistics are recalibrated for each plan, if the recipe says so, and put back
    afterwards: a score does not depend on what was scored before.
    """

    def __init__(self, net: Supernet, baseline: nn.Module, feed: Feed, recipe: Recipe) -> None:
        self.net = net
        self.calibration = feed.calibration() if recipe.recalibrates else []
        self.held_out = HeldOut(baseline, feed, recipe.search.score)
        total = self.held_out.images + sum(len(batch) for batch in self.calibration)
        net.eval()
        net.choose({})
        with torch.no_grad():
            some = self.held_out.chunks[0][0][:2]
            self.replay = PrefixCache(net, recipe.search.reuse_mb, total, some)

    @torch.no_grad()
    def __call__(
        self, choices: Mapping[str, str], hopeless: Callable[[float], bool] = lambda bound: False
    ) -> Score:
        """The plan's score; of fewer images when it is certain that the score is hopeless.

        `hopeless` is asked again and again with a value that the score cannot fall below.
        """
        self.net.choose(choices)
        self.replay.begin()
        with evaluating(self.net), preserved(self.net):
            if self.calibration:
                recalibrate(
                    self.net, self.calibration, lambda i, x: self.replay(("calibration", i), x)
                )
            self.replay.calibrated()
            score = self.held_out.score(lambda i, x: self.replay(("held out", i), x), hopeless)
        self.replay.end()
        return score


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
        self.shapes = net.shapes()

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
            self.net.load_weights(self.weights, self.shapes)
