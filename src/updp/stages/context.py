"""`Context`, shared by all stages: the checked inputs of a run and the folders of its stages."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from updp.blocks import Findings, OtherSize, find
from updp.blocks.copying import copy_module
from updp.blocks.nested import Samples, count, join, take, tensors_in
from updp.candidates import SLOWER, Offers, candidates_of_plan
from updp.data.feed import Feed
from updp.data.images import Images
from updp.errors import UserError
from updp.io.files import content_of, read_tensors, write_tensors
from updp.io.progress import Progress, Silent
from updp.io.records import Record
from updp.io.tracking import Board
from updp.plan import Plan
from updp.recipe import Budget, Recipe
from updp.search import Limits, Space, Survey, limits_of
from updp.supernet import Supernet
from updp.tasks import Metric, Task

STAGES = ("sites", "supernet", "search", "subnet", "merge")
WEIGHTS = "weights.safetensors"  # weights of a stage that fits or trains
MODEL = "model.safetensors"  # the merged model, written by the last stage
# Maximum number of input values with which candidates' BatchNorms start: 83 images of 224 px.
CALIBRATED_VALUES = 3 * 2**22
TIMED_AGAIN = (
    "if the machine was busy with other work when candidates were timed, the same command with "
    "`--fresh --set measure.cache=false` added times them again"
)


class StageKey(Record):
    """Everything that decides a stage's outcome; those of earlier stages enter by `after`.

    A finished stage is reused only under the same key, so what is missing here makes stale results.
    """

    after: str = ""  # sha256 of the key of the stage before; empty for the first stage

    @property
    def sha256(self) -> str:
        """Hash of this key and, through `after`, of all keys before it."""
        # Names and order of the fields are hashed: changing them makes finished stages stale.
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class InputNames:
    """Names as the user wrote them; empty for objects that came from Python."""

    model: str = ""
    weights: str = ""
    data: str = ""
    test: str = ""
    teacher: str = ""
    teacher_weights: str = ""
    unlabelled: str = ""

    @property
    def the_model(self) -> str:
        """Phrase for the model in a sentence."""
        return f"model '{self.model}'" if self.model else "the model"

    @property
    def the_data(self) -> str:
        """Phrase for the data in a sentence."""
        return f"data '{self.data}'" if self.data else "the data"


@dataclass(frozen=True)
class InputHashes:
    """Sha256 of the model's weights, the data, the teacher's weights and the unlabelled images.

    `frozen` is of the names of the model's frozen parameters, and empty if there are none.
    """

    weights: str
    data: str
    teacher: str = ""
    unlabelled: str = ""
    frozen: str = ""


@dataclass
class RunInputs:
    """The inputs of a run, opened and checked by `run.inputs.open_inputs`.

    `baseline` is a copy of the user's model in evaluation mode, on the feed's device. A `plan`
    replaces the search; `pick` selects another point of the search's front. A `teacher` of None
    means the baseline. Stage 3 also trains on `unlabelled` images. `num_classes` is the number of
    classes that a named model was built with; None for its default.
    """

    names: InputNames
    hashes: InputHashes
    baseline: nn.Module
    classes: tuple[str, ...]
    feed: Feed
    recipe: Recipe
    num_classes: int | None = None
    plan: Plan | None = None
    pick: str = ""
    teacher: nn.Module | None = None
    unlabelled: Images | None = None
    progress: Progress = field(default_factory=Silent)
    board: Board = field(default_factory=Board)


@dataclass
class Context(RunInputs):
    """A run's inputs and its run directory `root`, with what stages derive from them."""

    root: Path = Path()
    keys: dict[str, StageKey] = field(default_factory=dict)  # by stage
    other_size: OtherSize | None = None  # result of a trial before the survey of sites

    def folder(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.root / stage

    @property
    def device(self) -> torch.device:
        """Device of the baseline and of the feed's images."""
        return self.feed.device

    @property
    def task(self) -> Task:
        """The task of the model."""
        return self.feed.task

    def metric(self, *, labelled: bool) -> Metric:
        """The task's metric, or without labels its agreement with the baseline."""
        return self.task.metric if labelled else self.task.agreement

    def example(self, count: int) -> Samples:
        """Inputs for tracing and timing the model: see `data.example`."""
        return self.feed.example(count)

    def findings(self, model: nn.Module) -> Findings:
        """Find the sites of `model` that the recipe selects.

        Raises UserError if a glob of the recipe matches no site.
        """
        return self.selected(find(model, self.example(2)))

    def selected(self, findings: Findings) -> Findings:
        """The findings with the sites that the recipe selects. Raises UserError as `findings`."""
        settings = self.recipe.candidates
        selected = findings.selected(settings.include, settings.exclude)
        if findings.sites and not selected.sites:
            globs = "; ".join(
                f"{name} {', '.join(patterns)}"
                for name, patterns in (("include", settings.include), ("exclude", settings.exclude))
                if patterns
            )
            raise UserError(
                f"{globs}: of the {len(findings.sites)} sites of {self.names.the_model} these "
                "globs leave none: change --include or --exclude"
            )
        return selected

    @cached_property
    def survey(self) -> Survey:
        """The record of the stage `sites`."""
        return Survey.read(self.root)

    @property
    def offers(self) -> Offers:
        """The offers of each site within the budget. Raises UserError if there are none."""
        offers = self.survey.offers(self.recipe)
        if not offers and self.plan is None:  # a given plan has candidates of its own
            if self.survey.sites:
                raise UserError(
                    f"{self.names.the_model} has no block that can be pruned whole, only some that "
                    "can lose width: give a budget of latency, macs, parameters or memory, such as "
                    "latency=1.5x, in place of blocks"
                )
            slower = any(refused.reason.startswith(SLOWER) for refused in self.survey.unusable)
            raise UserError(
                f"{self.names.the_model} has no block that can be pruned: "
                "`updp inspect` says why of each block" + (f"; {TIMED_AGAIN}" if slower else "")
            )
        return offers

    @cached_property
    def space(self) -> Space:
        """All plans within the offers, with their costs."""
        return self.survey.space(self.offers)

    def require_budget(self) -> Budget | None:
        """The budget, or None with a given plan. Raises UserError if both are missing."""
        return None if self.plan is not None else self.recipe.required_budget()

    def limits(self) -> Limits:
        """The budget in ms, MACs, parameters and bytes. Raises UserError if out of reach."""
        budget = self.require_budget()
        return Limits() if budget is None else limits_of(budget, self.space)

    @cached_property
    def net(self) -> Supernet:
        """The run's calibrated supernet, shared by all stages; each loads its own weights."""
        return self.make_supernet()

    def make_supernet(self) -> Supernet:
        """Make another calibrated supernet, with the baseline's weights.

        Raises UserError if a given plan does not fit the model.
        """
        model = copy_module(self.baseline)
        every = find(model, self.example(2))
        findings = self.selected(every)
        candidates = {n: tuple(o.candidate for o in found) for n, found in self.offers.items()}
        if self.plan is not None:
            for name, wanted in candidates_of_plan(self.plan, findings).items():
                offered = candidates.get(name, ())
                candidates[name] = (*offered, *(c for c in wanted if c not in offered))
        # Sites that no plan prunes get a switch, too, as a fit may repair them behind pruned ones.
        kept = [site.name for site in every.sites if not candidates.get(site.name)]
        net = Supernet(model, every, candidates, kept)
        samples = join(self.feed.calibration())
        values = sum(x.numel() for x in tensors_in(samples)) // count(samples)
        net.calibrate(take(samples, slice(max(16, CALIBRATED_VALUES // max(values, 1)))))
        return net

    def load_weights(self, net: Supernet, stage: str, name: str = WEIGHTS) -> Supernet:
        """Load the weights that a stage wrote into `net`, and return it. Raises UserError."""
        path = self.folder(stage) / name
        tensors, notes = read_tensors(path)
        with content_of(path):
            net.load_weights(tensors, notes["shapes"])
        return net

    def save_weights(self, net: Supernet, stage: str, name: str = WEIGHTS) -> None:
        """Write the net's weights into the folder of a stage."""
        write_tensors(self.folder(stage) / name, net.weights(), {"shapes": net.shapes()})

    def found_plan(self) -> Plan:
        """The plan that stage 2 wrote."""
        return Plan.read_file(self.folder("search") / Plan.FILE)
