"""Scorers of plans: with the supernet's weights, or after fit and repair."""

from collections.abc import Mapping

import torch
from torch import nn

from updp.blocks.modules import evaluating
from updp.data.feed import Feed
from updp.recipe import Recipe
from updp.search.prefix_cache import PrefixCache
from updp.search.score import HeldOut, Hopeless, Score, never
from updp.supernet import Supernet, fit_plan
from updp.training.batchnorm import preserved, recalibrate


class Scorer:
    """Scores plans of one supernet; the activations of a common prefix are computed once.

    If the recipe says so, BatchNorm statistics are recalibrated for each plan and restored
    afterwards, so that a score does not depend on earlier plans.
    """

    def __init__(self, net: Supernet, baseline: nn.Module, feed: Feed, recipe: Recipe) -> None:
        self.net = net
        self.calibration = feed.calibration() if recipe.recalibrates else []
        self.held_out = HeldOut(baseline, feed, recipe.search.score)
        total = self.held_out.images + sum(len(batch) for batch in self.calibration)
        net.eval()
        net.choose({})
        with torch.no_grad():
            example = self.held_out.chunks[0].images[:2]
            self.cache = PrefixCache(net, recipe.search.reuse_mb, total, example, feed.task)

    @torch.no_grad()
    def __call__(self, choices: Mapping[str, str], hopeless: Hopeless = never) -> Score:
        """The score of a plan; it is incomplete if `hopeless` stopped it by a lower bound."""
        self.net.choose(choices)
        cache = self.cache
        with cache.plan(), evaluating(self.net), preserved(self.net):
            if self.calibration:
                recalibrate(self.net, self.calibration, lambda i, x: cache(("calibration", i), x))
            cache.calibrated()
            return self.held_out.score(lambda i, x: cache(("held out", i), x), hopeless)


class FittedScorer:
    """Scores plans of one supernet after the fit that begins stage 3.

    The net's current weights are restored after each plan.
    """

    def __init__(self, net: Supernet, baseline: nn.Module, feed: Feed, recipe: Recipe) -> None:
        settings, self.task = recipe.search, feed.task
        self.net, self.settings = net, recipe.fit
        self.batches = feed.calibration(settings.refined_images)
        self.held_out = HeldOut(baseline, feed, settings.score, blended=settings.blended)
        self.weights = {name: t.detach().clone() for name, t in net.weights().items()}
        self.shapes = net.shapes()

    @torch.no_grad()
    def __call__(self, choices: Mapping[str, str], hopeless: Hopeless = never) -> Score:
        """The complete score of a plan: the fit takes the time, so stopping early saves nothing."""
        try:
            if choices:
                fit_plan(self.net, choices, self.batches, self.settings, task=self.task)
            self.net.eval()
            self.net.choose(choices)
            return self.held_out.score(lambda number, images: self.task.run(self.net, images))
        finally:
            self.net.load_weights(self.weights, self.shapes)
