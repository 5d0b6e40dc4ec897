"""The four stages in order, on one run directory; a stage that has ended is skipped."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from torch import nn

from updp.blocks import Findings
from updp.candidates import Offers
from updp.errors import UserError
from updp.io.files import read_json, read_tensors, write_json, write_tensors, write_text
from updp.io.progress import duration
from updp.io.tracking import Board
from updp.models import num_outputs
from updp.models.teacher import make_teacher
from updp.plan import Plan
from updp.run.curves import draw_result
from updp.run.directory import STAGES, RunDirectory
from updp.run.job import Job
from updp.run.load import load
from updp.run.result import Result, make_result
from updp.search import Limits, Space, Task, limits_of
from updp.search import outcome as outcomes
from updp.search.front_plot import plot_front
from updp.search.outcome import SearchResult
from updp.stages import merge as merge_stage
from updp.stages import subnet as subnet_stage
from updp.stages import supernet as supernet_stage
from updp.stages import verify as verify_stage
from updp.stages.nets import findings_of, make_net
from updp.stages.search import Choosing
from updp.stages.sites import WHOLE_STEPS, read_offers, read_space, survey
from updp.supernet import Supernet, fit_candidates, fit_plan
from updp.training.batchnorm import recalibrate


class Run:
    """A job on its run directory. Each stage can be called alone once those before it ended."""

    def __init__(self, job: Job, out: Path, *, last: str = "merge", fresh: str = "") -> None:
        """Check everything that can be checked before work begins; nothing is written.

        `last` is the last stage that will be asked for; `fresh` names a stage to start over from.

        Raises UserError: data and model do not agree, or `out` holds another run.
        """
        self.job, self.recipe, self.progress = job, job.recipe, job.progress
        self.board = job.board
        self.directory = RunDirectory(out)
        self.shape = job.source.image_size
        self.feed = job.feed()
        # The user's module stays as it is.
        self.baseline = copy.deepcopy(job.model).to(job.device).eval()
        outputs = num_outputs(self.baseline, self.shape)
        if outputs != len(job.source.classes):
            raise UserError(
                f"model '{job.model_name}' has {outputs} classes and data '{job.data_name}' "
                f"{len(job.source.classes)}: give a model made for these classes"
            )
        self.teacher = make_teacher(
            job.teacher,
            job.teacher_name or type(job.teacher).__name__,
            self.recipe,
            self.feed.preprocess,
            len(job.source.classes),
            normalised=job.source.train[0][0].is_floating_point(),
        )
        self.keys = job.keys()
        self._net: Supernet | None = None
        if job.pick:
            self._pick()
            if fresh in STAGES[:3]:  # which are the other run's
                fresh = "subnet"
        if fresh:
            if before := STAGES.index(fresh):
                self.directory.claim(self.keys, STAGES[before - 1])
                if self.recipe.budget and self.directory.is_done("sites"):
                    self._limits()  # before anything is lost
            self.directory.clear(fresh)
        self.directory.claim(self.keys, last)

    def run(self) -> tuple[nn.Module, Plan, Result]:
        """All four stages: the merged model, the plan and the figures."""
        self._limits()
        self.supernet()
        plan = self.search()
        self.subnet()
        model, result = self.merge()
        return model, plan, result

    def sites(self) -> Offers:
        """Find and time what can be pruned; decided once per run, for clocks vary."""
        if not self.directory.is_done("sites"):
            findings = findings_of(
                self.baseline, self.job
            )  # a wrong glob raises; nothing is written yet
            self._stage("sites", lambda folder: self._survey(folder, findings))
        offers = read_offers(self._sites_file, self.recipe)
        if not offers and self.job.plan is None:  # a given plan brings its own
            raise UserError(
                f"model '{self.job.model_name}' has no block that can be pruned: "
                "`updp inspect` says why for each"
            )
        return offers

    def supernet(self) -> None:
        """Stage 1."""
        self.sites()
        if not self.directory.is_done("supernet"):
            self.net()  # a given plan that does not fit raises; nothing is written yet

        def train(folder: Path) -> None:
            net = self.net()
            if self.recipe.supernet.start == "fit":
                images = self.feed.calibration(self.recipe.fit.images)
                steps = len(net.switches) * (len(images) + 1)
                self.progress.begin("supernet: fitting candidates", steps)
                fit_candidates(net, images, self.recipe.fit, self.progress.advance)
            curves = self.board.curves("supernet")
            supernet_stage.train(net, self.feed, self.recipe, folder, self.progress, curves)

        self._stage("supernet", train)

    def search(self) -> Plan:
        """Stage 2."""
        self._need("search")
        self._limits()
        self._stage("search", self._search)
        return self.plan()

    def work(self) -> None:
        """Join the search, which another process may have begun, until it has enough plans.

        That process ends the stage; where there is none, the next `updp search` does.
        """
        self._need("search")
        if self.job.plan is not None:
            raise UserError("--worker: a run with a --plan does not search")
        if not self.directory.is_done("search"):
            self._choosing(self.directory.stage("search"), Board()).score()

    def subnet(self) -> None:
        """Stage 3."""
        self._need("subnet")
        choices = self.plan().choices

        def train(folder: Path) -> None:
            start, feed = self.recipe.subnet.start, self.feed
            net = self.new_net() if start == "baseline" else self.net()
            if start != "baseline":
                self._load(net, "supernet")
            if start == "fit":
                self._fit(net, choices, folder)
            if self.recipe.subnet.all_images:
                feed = feed.with_held_out()
            own = copy.deepcopy(self.baseline)
            teacher = own if self.teacher is None else self.teacher.to(self.job.device)
            curves = self.board.curves("subnet")
            subnet_stage.train(
                net, choices, teacher, feed, self.recipe, folder, self.progress, curves
            )

        self._stage("subnet", train)

    def merge(self) -> tuple[nn.Module, Result]:
        """Stage 4, and the final table."""
        self._need("merge")
        self._stage("merge", self._merge)
        self.directory.publish("search", "plan.json")
        self.directory.publish("merge", "model.safetensors", "result.json")
        return load(self.directory.path, self.baseline), self.result()

    def net(self) -> Supernet:
        """The run's supernet, calibrated; made once."""
        if self._net is None:
            self._net = self.new_net()
        return self._net

    def plan(self) -> Plan:
        """The plan that stage 2 found. Raises UserError before it did."""
        path = self.directory.stage("search") / "plan.json"
        if not path.exists():
            raise UserError(f"'{self.directory.path}' has no plan yet: run `updp search` first")
        return Plan.from_json(path.read_text(), str(path))

    def result(self) -> Result:
        """The figures that stage 4 left."""
        return Result.model_validate(read_json(self.directory.path / "result.json"))

    def outcome(self) -> SearchResult:
        """All that stage 2 scored, and its front. Raises UserError before it ended."""
        path = self.directory.stage("search") / "front.json"
        if not path.exists():
            raise UserError(f"'{self.directory.path}' has no finished search: run `updp search`")
        return SearchResult.model_validate(read_json(path))

    @cached_property
    def space(self) -> Space:
        """All plans, and what each costs."""
        self.sites()
        return read_space(self._sites_file, self.recipe)

    @property
    def _sites_file(self) -> Path:
        return self.directory.stage("sites") / "sites.json"

    def _limits(self) -> Limits:
        """The budget in ms, MACs, parameters and bytes. Raises UserError when out of reach."""
        if self.job.plan is not None:
            return Limits()  # it has met its own
        if self.recipe.budget is None:
            raise UserError("no budget was given: say how much to prune, such as blocks=6")
        return limits_of(self.recipe.budget, self.space)

    def _survey(self, folder: Path, findings: Findings) -> None:
        def copied() -> tuple[nn.Module, Findings]:
            model = copy.deepcopy(self.baseline)
            return model, findings_of(model, self.job)

        self.progress.begin("sites: timing candidates", len(findings.sites) + WHOLE_STEPS)
        found = survey(
            self.baseline,
            copied,
            findings,
            self.recipe,
            self.shape,
            self.job.device,
            self.progress.advance,
        )
        write_json(folder / "sites.json", found)

    def _search(self, folder: Path) -> None:
        if self.job.plan is not None:
            write_text(folder / "plan.json", self.job.plan.to_json())
            return
        self._write_outcome(folder, self._choosing(folder, self.board).outcome())

    def _choosing(self, folder: Path, board: Board) -> Choosing:
        net = self.net()
        self._load(net, "supernet")
        sites = self._sites_file.read_bytes()
        key = json.dumps(self.keys["search"], sort_keys=True).encode()
        return Choosing(
            Task(self.space, self._limits(), self.recipe.search, self.recipe.seed),
            net,
            self.baseline,
            self.feed,
            self.shape,
            self.recipe,
            sites + key,
            folder,
            self.progress,
            board,
        )

    def _write_outcome(self, folder: Path, outcome: SearchResult) -> None:
        hashes = {
            "model": self.keys["search"]["weights"],
            "data": self.job.source.fingerprint,
            "recipe": self.recipe.hash(),
        }
        budget = self.job.pick or outcome.budget
        plan = outcomes.plan_of(outcome, self.sites(), budget, hashes)
        plot_front(outcome, folder / "front.svg")
        write_json(folder / "front.json", outcome.model_dump(mode="json"))
        write_text(folder / "plan.json", plan.to_json())

    def _pick(self) -> None:
        """Go on in a run directory of its own, with another point of this one's search."""
        self.directory.claim(self.keys, "search")
        outcome = outcomes.pick(self.outcome(), self.space, self.job.pick)
        name = "".join(c if c.isalnum() or c in ".=" else "-" for c in self.job.pick)
        path = self.directory.branch(
            name, STAGES[:3], lambda folder: self._write_outcome(folder / "search", outcome)
        )
        self.directory = RunDirectory(path)
        self.board = self.board.under("picks", name)

    def _fit(self, net: Supernet, choices: Mapping[str, str], folder: Path) -> None:
        """The plan's closed-form start: once, for it takes a minute."""
        path = folder / "start.safetensors"
        if not path.exists():
            images = self.feed.calibration(self.recipe.fit.images)
            figures = fit_plan(
                net,
                choices,
                images,
                self.recipe.fit,
                self.progress.advance,
                lambda steps: self.progress.begin("subnet: fitting", steps),
            )
            write_json(folder / "fit.json", figures)
            write_tensors(path, net.weights())
        net.load_weights(read_tensors(path)[0])

    def _merge(self, folder: Path) -> None:
        net, choices = self.net(), self.plan().choices
        self._load(net, "subnet")
        images = self.feed.calibration()[0][:16]
        self.progress.begin("merge: verifying", verify_stage.PARTS)
        model, checks = merge_stage.merge(
            net, choices, images, self.recipe, folder, self.progress.advance
        )
        searched = self.new_net()
        self._load(searched, "supernet")
        searched.choose(choices)
        if self.recipe.recalibrates:
            recalibrate(searched, self.feed.calibration())
        before = {"after search": searched}
        start = self.directory.stage("subnet") / "start.safetensors"
        if start.exists():
            before["after fit"] = fitted = self.new_net()
            fitted.load_weights(read_tensors(start)[0])
            fitted.choose(choices)
        result = make_result(
            self.baseline,
            before,
            net,
            model,
            checks,
            self.feed,
            self.recipe,
            self.shape,
            self.progress,
        )
        draw_result(self.board.curves("merge"), result)
        write_json(folder / "result.json", result.model_dump())

    def new_net(self) -> Supernet:
        """Another supernet of this run, calibrated, with the baseline's weights."""
        return make_net(self.baseline, self.job, self.sites(), self.feed)

    def _load(self, net: Supernet, stage: str) -> None:
        net.load_weights(read_tensors(self.directory.stage(stage) / "weights.safetensors")[0])

    def _need(self, stage: str) -> None:
        for before in STAGES[1 : STAGES.index(stage)]:
            if not self.directory.is_done(before):
                raise UserError(
                    f"'{self.directory.path}' has no {before} yet: run `updp {before}` first"
                )

    def _stage(self, name: str, work: Callable[[Path], None]) -> None:
        if self.directory.is_done(name):
            return
        with self.directory.lock():
            start = time.monotonic()
            self.directory.describe(self.job.description(), self.recipe.to_yaml())
            work(self.directory.begin(name, self.keys[name]))
            self.directory.done(name)
            self.progress.say(f"{name}: took {duration(time.monotonic() - start)}")
