"""What every stage works with: the checked inputs of a run, and the folders of its stages."""

import copy
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from updp.blocks import Findings, find
from updp.blocks.modules import seeded_input
from updp.candidates import Offers, planned
from updp.data.feed import Feed
from updp.errors import UserError
from updp.io.files import read_tensors, write_tensors
from updp.io.progress import Progress, Silent
from updp.io.records import Record
from updp.io.tracking import Board
from updp.models.teacher import Teacher
from updp.plan import Plan
from updp.recipe import Budget, Recipe
from updp.search import Limits, SearchResult, Space, Survey, limits_of
from updp.supernet import Supernet

STAGES = ("sites", "supernet", "search", "subnet", "merge")
WEIGHTS = "weights.safetensors"  # what a stage that fits or trains leaves


class StageKey(Record):
    """What a stage is made from: its own part of it, and by `after` all that came before.

    A stage whose key has changed is never taken up again, so whatever decides its outcome is here.
    """

    STAGE: ClassVar[str]
    after: str = ""  # sha256 of the key of the stage before

    @property
    def sha256(self) -> str:
        """Of the key, and so of all keys before it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class InputNames:
    """What the user wrote; empty for what came from Python and has no name."""

    model: str = ""
    weights: str = ""
    data: str = ""
    teacher: str = ""
    teacher_weights: str = ""


@dataclass(frozen=True)
class InputHashes:
    """Sha256 of the contents of the model's weights, the data and the teacher's weights."""

    weights: str
    data: str
    teacher: str = ""


@dataclass
class RunInputs:
    """Everything that a run is about, opened and checked; see `run.inputs.open_inputs`.

    `baseline` is a copy of the user's model, in evaluation, on the feed's device. `plan` is one
    that the user gave, which takes the place of the search; `pick` names another point of the front
    than the search took. A `teacher` of None is the baseline itself.
    """

    names: InputNames
    hashes: InputHashes
    baseline: nn.Module
    classes: tuple[str, ...]
    feed: Feed
    recipe: Recipe
    plan: Plan | None = None
    pick: str = ""
    teacher: Teacher | None = None
    progress: Progress = field(default_factory=Silent)
    board: Board = field(default_factory=Board)


@dataclass
class Context(RunInputs):
    """A run's inputs beside its run directory `root`: what every stage works with."""

    root: Path = Path()
    keys: dict[str, StageKey] = field(default_factory=dict)  # by stage

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return self.root / stage

    @property
    def device(self) -> torch.device:
        """Where the baseline and the feed's images are."""
        return self.feed.device

    @property
    def shape(self) -> tuple[int, ...]:
        """An image's (C, H, W)."""
        return self.feed.image_size

    def example(self, images: int) -> torch.Tensor:
        """Random images (N, C, H, W), the same ones always, to try and time models on."""
        return seeded_input((images, *self.shape)).to(self.device)

    def findings(self, model: nn.Module) -> Findings:
        """The sites of `model` that the recipe lets be pruned.

        Raises UserError: a glob of the recipe fits no site.
        """
        settings = self.recipe.candidates
        found = find(model, self.example(2))
        return found.selected(settings.include, settings.exclude)

    @cached_property
    def survey(self) -> Survey:
        """What the stage `sites` found and timed."""
        return Survey.read(self.root)

    @property
    def offers(self) -> Offers:
        """The offers of each site within the budget. Raises UserError when there are none."""
        offers = self.survey.offers(self.recipe)
        if not offers and self.plan is None:  # a given plan brings its own
            raise UserError(
                f"model '{self.names.model}' has no block that can be pruned: "
                "`updp inspect` says why for each"
            )
        return offers

    @cached_property
    def space(self) -> Space:
        """All plans, and what each costs."""
        return self.survey.space(self.offers)

    def require_budget(self) -> Budget | None:
        """The budget; None with a given plan, which has met its own. Raises UserError: none."""
        if self.plan is not None:
            return None
        if self.recipe.budget is None:
            raise UserError("no budget was given: say how much to prune, such as blocks=6")
        return self.recipe.budget

    def limits(self) -> Limits:
        """The budget in ms, MACs, parameters and bytes. Raises UserError when out of reach."""
        budget = self.require_budget()
        return Limits() if budget is None else limits_of(budget, self.space)

    @cached_property
    def net(self) -> Supernet:
        """The run's supernet, calibrated; made once, its weights are loaded by each stage."""
        return self.make_supernet()

    def make_supernet(self) -> Supernet:
        """Another supernet of this run, calibrated, with the baseline's weights.

        Raises UserError: a given plan does not fit the model.
        """
        model = copy.deepcopy(self.baseline)
        findings = self.findings(model)
        candidates = {n: tuple(o.candidate for o in found) for n, found in self.offers.items()}
        if self.plan is not None:
            for name, given in planned(self.plan, findings).items():
                offered = candidates.get(name, ())
                candidates[name] = (*offered, *(c for c in given if c not in offered))
        net = Supernet(model, findings, candidates)
        net.calibrate(torch.cat(self.feed.calibration()))
        return net

    def load_weights(self, net: Supernet, stage: str, name: str = WEIGHTS) -> Supernet:
        """The net with the weights that a stage left."""
        tensors, notes = read_tensors(self.folder(stage) / name)
        net.load_weights(tensors, notes["shapes"])
        return net

    def save_weights(self, net: Supernet, stage: str, name: str = WEIGHTS) -> None:
        """Write the net's weights into the folder of a stage."""
        write_tensors(self.folder(stage) / name, net.weights(), {"shapes": net.shapes()})

    def found_plan(self) -> Plan:
        """The plan that stage 2 left."""
        return Plan.read_file(self.folder("search") / "plan.json")

    def search_result(self) -> SearchResult:
        """All that stage 2 scored, and its front. Raises UserError where it did not end."""
        if not SearchResult.path(self.root).exists():
            raise UserError(f"'{self.root}' has no finished search: run `updp search`")
        return SearchResult.read(self.root)
