"""A fixed plan: found once by a search, then trained in several ways."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from setting import Network
from torch import nn
from updp.run.job import Job

from updp.candidates import from_json
from updp.data import Source
from updp.io.files import read_json, write_json
from updp.io.progress import Progress
from updp.models import hash_state
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.load import skeleton
from updp.run.pipeline import Run

Choices = dict[str, str]  # the label of each pruned site's candidate


def digest(data: Any) -> str:
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Subject:
    """A network with its trained baseline and its images, on a device; `settings` are for all."""

    network: Network
    model: nn.Module
    data: Source
    device: torch.device
    settings: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> str:
        """A name for what was made of this baseline with these images on this kind of device."""
        made_of = digest([hash_state(self.model), self.data.fingerprint])
        return f"{self.network.name}-{self.device.type}-{len(self.data.train)}-{made_of}"

    def recipe(self, *settings: str) -> Recipe:
        """The network's recipe for these images."""
        return self.network.recipe(self.data, *self.settings, *settings)

    def job(self, recipe: Recipe, progress: Progress, plan: Plan | None = None) -> Job:
        """What a run is about."""
        return Job(
            copy.deepcopy(self.model),
            self.network.model,
            self.data,
            self.network.data,
            recipe,
            self.device,
            progress,
            str(self.network.weights),
            plan,
        )

    def merged(self, folder: Path) -> nn.Module:
        """The merged model of the run in a folder, without its weights."""
        plan = Plan.from_json((folder / "search/plan.json").read_text())
        return skeleton(self.model, self.data.image_size, plan)


def searched(subject: Subject, recipe: Recipe, folder: Path, progress: Progress) -> Run:
    """A run that has searched within its recipe's budget, in a folder of its own in `folder`."""
    run = Run(subject.job(recipe, progress), folder / recipe.hash()[:6])
    run.supernet()
    run.search()
    return run


def formed(candidate: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A candidate's JSON with the end activation and the lines that the recipe asks for."""
    flags = ("end_activation", "linearise")
    return candidate | {f: getattr(recipe.candidates, f) for f in flags if f in candidate}


def plan_of(choices: Choices, sites: dict[str, Any], recipe: Recipe) -> tuple[Plan, dict[str, Any]]:
    """The plan of these choices, and `sites` with one candidate each; in the form of this recipe.

    `sites` is what a run's `sites.json` holds. Sites that are kept stay, for a fit repairs them.
    """
    rows, candidates = [], {}
    for row in sites["sites"]:
        offers = {from_json(o["candidate"]).label: o for o in row["offers"]}
        label = choices.get(row["site"])
        offer = offers[label] if label else row["offers"][0]
        form = formed(offer["candidate"], recipe)
        rows.append({**row, "offers": [{**offer, "candidate": form}]})
        if label:
            candidates[row["site"]] = form
    assert candidates.keys() == choices.keys()
    return Plan(choices=choices, candidates=candidates), {**sites, "sites": rows}


def planned_run(
    subject: Subject,
    recipe: Recipe,
    choices: Choices,
    sites: dict[str, Any],
    folder: Path,
    progress: Progress,
) -> Run:
    """A run with this plan, at the end of its search stage; nothing is timed."""
    plan, own = plan_of(choices, sites, recipe)
    run = Run(subject.job(recipe, progress, plan), folder)
    if not run.directory.is_done("sites"):
        run.directory.describe(run.job.description(), recipe.to_yaml())
        write_json(run.directory.begin("sites", run.keys["sites"]) / "sites.json", own)
        run.directory.done("sites")
    run.supernet()
    run.search()
    return run


def sites_of(run: Run) -> dict[str, Any]:
    """What the run found and timed, as plain data."""
    return read_json(run.directory.stage("sites") / "sites.json")
