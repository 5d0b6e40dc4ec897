"""How good a plan is once it is fitted, site after site, and its kept branches are repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from updp import recipe as recipes
from updp.rewrite import fit
from updp.search.score import Score, Scorer


class FittedScorer:
    """Scores as `scorer` does, after the fit with which stage 3 begins.

    That fit is made from `batches` of images (N, C, H, W). The net's weights, which are those that
    it has now, are put back each time.
    """

    def __init__(self, scorer: Scorer, batches: Sequence[Tensor], settings: recipes.Fit) -> None:
        self.scorer, self.batches, self.settings = scorer, batches, settings
        self.weights = {name: t.detach().clone() for name, t in scorer.net.weights().items()}

    @torch.no_grad()
    def __call__(
        self, choices: Mapping[str, str], hopeless: Callable[[float], bool] = lambda bound: False
    ) -> Score:
        """The plan's score on all images: what takes time is the fit, so none is left half-way."""
        net = self.scorer.net
        try:
            if choices:
                fit(net, choices, self.batches, self.settings)
            return self.scorer.anew(choices)
        finally:
            net.load_weights(self.weights)
