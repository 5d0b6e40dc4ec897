"""A network to be pruned, and runs of it with a plan that was found before."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.baselines import Network
from benchmarks.common.data import image_size
from updp.candidates import Candidate, Offer, read_candidate
from updp.data import Source, preprocess_for
from updp.data.example import make_example
from updp.data.feed import Feed
from updp.io.progress import Progress
from updp.models import hash_state
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.load import skeleton
from updp.run.pipeline import Run, open_run_directory
from updp.run.records import RunRecord
from updp.search import Survey
from updp.stages.context import InputHashes, InputNames, RunInputs

Choices = dict[str, str]  # the label of each pruned site's candidate


def digest(data: Any) -> str:
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Subject:
    """A network with its trained baseline and its images, on a device.

    `settings` change the recipe of every run.
    """

    network: Network
    model: nn.Module
    data: Source
    device: torch.device
    settings: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> str:
        """A folder name for results of this baseline with these images on this kind of device."""
        made_of = digest([hash_state(self.model), self.data.fingerprint])
        return f"{self.network.name}-{self.device.type}-{len(self.data.train)}-{made_of}"

    def recipe(self, *settings: str) -> Recipe:
        """The network's recipe for these images."""
        return self.network.recipe(self.data, *self.settings, *settings)

    def feed(self, recipe: Recipe) -> Feed:
        """The images as the recipe splits them."""
        preprocess = preprocess_for(self.model, image_size(self.data))
        return Feed(
            self.data,
            preprocess,
            recipe.data,
            seed=recipe.seed,
            device=self.device,
            sets_aside=recipe.sets_aside,
        )

    def inputs(self, recipe: Recipe, progress: Progress, plan: Plan | None = None) -> RunInputs:
        """Inputs of a run. (`open_inputs` takes no data set that was cut in memory.)"""
        network = self.network
        return RunInputs(
            names=InputNames(network.model, str(network.weights), network.data),
            hashes=InputHashes(hash_state(self.model), self.data.fingerprint),
            baseline=copy.deepcopy(self.model).to(self.device).eval(),
            classes=self.data.classes,
            feed=self.feed(recipe),
            recipe=recipe,
            plan=plan,
            progress=progress,
        )

    def merged(self, folder: Path) -> nn.Module:
        """The merged model of the run in a folder, without its weights."""
        plan = Plan.load(folder / "search/plan.json")
        return skeleton(self.model, make_example(None, self.data.image_size, 2), plan)


def searched(subject: Subject, recipe: Recipe, folder: Path, progress: Progress) -> Run:
    """A run that has searched within its recipe's budget, in a folder of its own in `folder`."""
    folder = folder / recipe.hash()[:6]
    run = open_run_directory(subject.inputs(recipe, progress), folder, last="search")
    run.until("search")
    return run


def in_form(candidate: Candidate, recipe: Recipe) -> Candidate:
    """The candidate with the end activation and the best lines that the recipe asks for."""
    data, settings = candidate.to_json(), recipe.candidates
    form = {"end_activation": settings.end_activation, "linearise": settings.linearise}
    return read_candidate(data | {name: form[name] for name in form if name in data})


def plan_of(choices: Choices, survey: Survey, recipe: Recipe) -> tuple[Plan, Survey]:
    """The plan of these choices in the recipe's form, and the survey with one offer for each site.

    Sites that are kept stay in the survey, for a fit repairs them.
    """
    rows, candidates = [], {}
    for row in survey.sites:
        label = choices.get(row.site)
        offer = row.offers[0]
        if label is not None:
            offer = next(o for o in row.offers if o.candidate.label == label)
        candidate = in_form(offer.candidate, recipe)
        offers: tuple[Offer, ...] = (offer.model_copy(update={"candidate": candidate}),)
        rows.append(row.model_copy(update={"offers": offers}))
        if label is not None:
            candidates[row.site] = candidate.to_json()
    assert candidates.keys() == choices.keys()
    plan = Plan(choices=choices, candidates=candidates)
    return plan, survey.model_copy(update={"sites": tuple(rows)})


def planned_run(
    subject: Subject,
    recipe: Recipe,
    choices: Choices,
    survey: Survey,
    folder: Path,
    progress: Progress,
) -> Run:
    """A run with the plan of these choices, at the end of its search stage; nothing is timed."""
    plan, own_survey = plan_of(choices, survey, recipe)
    run = open_run_directory(subject.inputs(recipe, progress, plan), folder, last="subnet")
    if not run.directory.is_done("sites"):
        run.directory.write_records(RunRecord.of(run.context), recipe)
        run.directory.make_stage("sites")
        run.context.keys["sites"].write(folder)
        own_survey.write(folder)
        run.directory.mark_done("sites")
    run.until("search")
    return run
