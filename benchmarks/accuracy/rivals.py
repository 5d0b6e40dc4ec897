"""Ways to make a network faster, each as a series of models from the largest to the smallest."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.channel_fit import fit_channels
from benchmarks.accuracy.channels import prune_channels
from benchmarks.accuracy.plans import Choices, Subject, digest, plan_of, planned_run
from benchmarks.accuracy.training import train_plan, train_whole
from benchmarks.accuracy.trials import Trial
from updp.data.example import make_example
from updp.io.progress import Progress
from updp.recipe import Recipe
from updp.run.load import skeleton
from updp.search import Survey

_BATCHES = 8  # of training images, for gradients
_IMAGES = 16  # of a batch where nothing is trained: gradients of large images take much memory
_RATIOS = [i / 50 for i in range(1, 46)]


class Rival(ABC):
    """A series of models: each is faster than the last one or, if not `ordered`, worse."""

    ordered = True

    def __init__(self, name: str, about: str, subject: Subject, settings: Sequence[str]) -> None:
        self.name, self.about, self.subject = name, about, subject
        self.settings = tuple(settings)

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of models."""

    @abstractmethod
    def describe(self, number: int) -> Any:
        """A model's description in plain data."""

    @abstractmethod
    def model(self, number: int) -> nn.Module:
        """The structure of a model as it is deployed; its weights do not matter."""

    @abstractmethod
    def trial(self, number: int, folder: Path, clock: Progress) -> Trial:
        """The training of a model, in `folder`."""


class Channels(Rival):
    """Fewer channels, by torch-pruning; `fitted`: with updp's closed-form fit behind it."""

    def __init__(
        self, kind: str, subject: Subject, settings: Sequence[str], *, fitted: bool = False
    ) -> None:
        name, about = f"torch-pruning, {kind}", f"{kind}, global, isomorphic"
        about = f"fewer channels, by torch-pruning: {about}"
        if fitted:
            name, about = f"{name}, with updp's fit", f"the same channels as {name}"
        super().__init__(name, about, subject, settings)
        self.kind, self.fitted = kind, fitted

    @property
    def count(self) -> int:
        """As in `Rival`."""
        return len(_RATIOS)

    def describe(self, number: int) -> Any:
        """As in `Rival`."""
        return {"ratio": _RATIOS[number]}

    @cached_property
    def _images(self) -> list[Any]:
        feed, model = self.subject.feed(self.subject.recipe()), self.subject.model
        if feed.steps:
            return list(islice(feed.training(0), _BATCHES))
        # Nothing is trained, and nothing labelled: the network's own classes are the labels.
        with torch.no_grad():
            parts = [
                x
                for batch in feed.calibration()
                if isinstance(batch, Tensor)
                for x in batch.split(_IMAGES)  # type: ignore[no-untyped-call]
            ]
            return [(x, model(x).argmax(1)) for x in parts[: _BATCHES * 64 // _IMAGES]]

    def model(self, number: int) -> nn.Module:
        """As in `Rival`."""
        return self._pruned(number)[0]

    def _pruned(self, number: int) -> tuple[nn.Module, dict[str, Tensor]]:
        images = self._images[0][0]
        model, left = prune_channels(
            self.subject.model, self.kind, _RATIOS[number], images, self._images
        )
        return model.to(self.subject.device), left

    def _fitted(self, number: int, recipe: Recipe) -> nn.Module:
        """The model, fitted where that is wanted."""
        model, left = self._pruned(number)
        if not self.fitted:
            return model
        batches = self.subject.feed(recipe).calibration()
        return fit_channels(self.subject.model, model, left, batches, recipe.fit)

    def trial(self, number: int, folder: Path, clock: Progress) -> Trial:
        """As in `Rival`."""

        def make(recipe: Recipe, folder: Path) -> nn.Module:
            return train_whole(self._fitted(number, recipe), self.subject, recipe, folder, clock)

        def build(folder: Path) -> nn.Module:
            return self.model(number)

        return Trial(folder / f"{_RATIOS[number]:g}", self.subject, self.settings, make, build)


class Plans(Rival):
    """Plans of updp's own candidates, from the survey of a run."""

    def __init__(
        self,
        name: str,
        about: str,
        subject: Subject,
        settings: Sequence[str],
        plans: Sequence[Choices],
        survey: Survey,
        *,
        ordered: bool = True,
    ) -> None:
        super().__init__(name, about, subject, settings)
        self.plans, self.survey, self.ordered = plans, survey, ordered

    @property
    def count(self) -> int:
        """As in `Rival`."""
        return len(self.plans)

    def describe(self, number: int) -> Any:
        """As in `Rival`."""
        return {"plan": self.plans[number]}

    def model(self, number: int) -> nn.Module:
        """As in `Rival`."""
        recipe = self.subject.recipe(*self.settings)
        plan, _ = plan_of(self.plans[number], self.survey, recipe)
        model = copy.deepcopy(self.subject.model).to(self.subject.device)
        return skeleton(model, make_example(None, self.subject.data.image_size, 2), plan)

    def trial(self, number: int, folder: Path, clock: Progress) -> Trial:
        """As in `Rival`."""
        subject, choices = self.subject, self.plans[number]

        def make(recipe: Recipe, folder: Path) -> nn.Module:
            return train_plan(planned_run(subject, recipe, choices, self.survey, folder, clock))

        return Trial(folder / digest(choices), subject, self.settings, make, subject.merged)
