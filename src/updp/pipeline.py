"""The four stages in order, on one run directory; a stage that has ended is skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from updp import merge as merge_stage
from updp import search as search_stage
from updp import subnet as subnet_stage
from updp import supernet as supernet_stage
from updp.blocks import Findings, find
from updp.candidates import Candidate, Offer, choose, planned, selected
from updp.engine.data import preprocess_for
from updp.engine.feed import Feed
from updp.engine.files import read_json, read_tensors, write_json, write_text
from updp.errors import UserError
from updp.job import Job
from updp.measure import compare_modules, count_macs
from updp.merged import load
from updp.models import num_outputs
from updp.plan import Plan
from updp.report import Result, make_result
from updp.rewrite import Supernet
from updp.rundir import STAGES, RunDirectory


class Run:
    """A job on its run directory. Each stage can be called alone once those before it ended."""

    def __init__(self, job: Job, out: Path, *, last: str = "merge", fresh: str = "") -> None:
        """Check everything that can be checked before work begins; nothing is written.

        `last` is the last stage that will be asked for; `fresh` names a stage to start over from.

        Raises UserError: data and model do not agree, or `out` holds another run.
        """
        self.job, self.recipe, self.progress = job, job.recipe, job.progress
        self.directory = RunDirectory(out)
        self.shape = job.source.image_size
        settings = job.recipe.data
        preprocess = preprocess_for(
            job.model,
            self.shape,
            mean=settings.mean,
            std=settings.std,
            input_size=settings.input_size,
        )
        # The user's module stays as it is.
        self.baseline = copy.deepcopy(job.model).to(job.device).eval()
        outputs = num_outputs(self.baseline, self.shape)
        if outputs != len(job.source.classes):
            raise UserError(
                f"model '{job.model_name}' has {outputs} classes and data '{job.data_name}' "
                f"{len(job.source.classes)}: give a model made for these classes"
            )
        self.feed = Feed(job.source, preprocess, settings, seed=self.recipe.seed, device=job.device)
        self.keys = job.keys()
        if fresh:
            if before := STAGES.index(fresh):
                self.directory.claim(self.keys, STAGES[before - 1])
                if self.recipe.budget and self.directory.is_done("sites"):
                    self._check_budget()  # before anything is lost
            self.directory.clear(fresh)
        self.directory.claim(self.keys, last)
        self._net: Supernet | None = None

    def run(self) -> tuple[nn.Module, Plan, Result]:
        """All four stages: the merged model, the plan and the figures."""
        self._check_budget()
        self.supernet()
        plan = self.search()
        self.subnet()
        model, result = self.merge()
        return model, plan, result

    def sites(self) -> dict[str, Offer]:
        """Find and time what can be pruned; decided once per run, for clocks vary."""
        if not self.directory.is_done("sites"):
            findings = self._findings(self.baseline)  # a wrong glob raises; nothing is written yet
            self._stage("sites", lambda folder: self._time_sites(folder, findings))
        rows = read_json(self.directory.stage("sites") / "sites.json")["sites"]
        if not rows:
            raise UserError(
                f"model '{self.job.model_name}' has no block that can be pruned: "
                "`updp inspect` says why for each"
            )
        return {row["site"]: Offer.from_json(row) for row in rows}

    def supernet(self) -> None:
        """Stage 1."""
        self.sites()
        if not self.directory.is_done("supernet"):
            self.net()  # a given plan that does not fit raises; nothing is written yet

        def train(folder: Path) -> None:
            supernet_stage.train(self.net(), self.feed, self.recipe, folder, self.progress)

        self._stage("supernet", train)

    def search(self) -> Plan:
        """Stage 2."""
        self._need("search")
        self._check_budget()
        self._stage("search", self._search)
        return self.plan()

    def subnet(self) -> None:
        """Stage 3."""
        self._need("subnet")
        choices = self.plan().choices

        def train(folder: Path) -> None:
            if self.recipe.subnet.start == "supernet":
                net = self.net()
                self._load(net, "supernet")
            else:
                net = self._new_net()
            teacher = copy.deepcopy(self.baseline)
            subnet_stage.train(net, choices, teacher, self.feed, self.recipe, folder, self.progress)

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
            self._net = self._new_net()
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

    def costs(self) -> search_stage.Costs:
        """What the baseline costs, and what each site saves of it."""
        offers = self.sites()
        baseline = read_json(self.directory.stage("sites") / "sites.json")["baseline"]
        sites = {
            name: search_stage.Cost(o.candidate.label, o.saved_ms, o.keep_macs - o.macs)
            for name, o in offers.items()
        }
        return search_stage.Costs(baseline["ms"], baseline["macs"], sites)

    def _check_budget(self) -> None:
        if self.job.plan is not None:
            return  # which has met it
        if self.recipe.budget is None:
            raise UserError("no budget was given: say how much to prune, such as blocks=6")
        self.costs().check(self.recipe.budget)

    def _time_sites(self, folder: Path, findings: Findings) -> None:
        self.progress.begin("sites: timing candidates", len(findings.sites))
        offers, refused = choose(
            self.baseline, findings, self.recipe, self.job.device, self.progress.advance
        )
        measure = self.recipe.measure
        x = torch.randn(measure.batch_size, *self.shape, device=self.job.device)
        times = compare_modules({"baseline": self.baseline}, x, rounds=measure.rounds)
        baseline = {
            "ms": times["baseline"].ms.median,
            "macs": count_macs(self.baseline, x[:1]),
        }
        found = {
            "sites": [found[0].to_json() for found in offers.values()],
            "unusable": [vars(u) for u in (*findings.unusable, *refused)],
            "baseline": baseline,
        }
        write_json(folder / "sites.json", found)

    def _search(self, folder: Path) -> None:
        if self.job.plan is not None:
            write_text(folder / "plan.json", self.job.plan.to_json())
            return
        net = self.net()
        self._load(net, "supernet")
        kind = self.recipe.search.score
        scorer = search_stage.Scorer(net, self.baseline, self.feed, kind)
        best, evaluated = search_stage.search(
            scorer, self.costs(), self.recipe, folder, self.progress
        )
        self.progress.say(
            f"search: {len(evaluated)} plans scored; the best has {best.top1:.2f} % of held-out "
            f"images right and prunes {', '.join(best.sites)}"
        )
        offers = self.sites()
        plan = Plan(
            choices={name: offers[name].candidate.label for name in best.sites},
            candidates={name: offers[name].candidate.to_json() for name in best.sites},
            budget=str(self.recipe.budget),
            hashes={
                "model": self.keys["search"]["weights"],
                "data": self.job.source.fingerprint,
                "recipe": self.recipe.hash(),
            },
        )
        write_text(folder / "plan.json", plan.to_json())

    def _merge(self, folder: Path) -> None:
        net, choices = self.net(), self.plan().choices
        self._load(net, "subnet")
        images = self.feed.calibration()[0][:16]
        self.progress.begin("merge", 2)
        model, checks = merge_stage.merge(net, choices, images, self.recipe, folder)
        self.progress.advance()
        searched = self._new_net()
        self._load(searched, "supernet")
        searched.choose(choices)
        result = make_result(
            self.baseline, searched, net, model, checks, self.feed, self.recipe, self.shape
        )
        write_json(folder / "result.json", result.model_dump())
        self.progress.advance()

    def _new_net(self) -> Supernet:
        model = copy.deepcopy(self.baseline)
        findings = self._findings(model)
        candidates: dict[str, tuple[Candidate, ...]] = {
            name: (offer.candidate,) for name, offer in self.sites().items()
        }
        if self.job.plan is not None:
            candidates |= planned(self.job.plan, findings)
        net = Supernet(model, findings, candidates)
        net.calibrate(torch.cat(self.feed.calibration()))
        return net

    def _findings(self, model: nn.Module) -> Findings:
        example = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0))
        settings = self.recipe.candidates
        findings = find(model, example.to(self.job.device))
        return selected(findings, settings.include, settings.exclude)

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
            self.directory.describe(self.job.description(), self.recipe.to_yaml())
            work(self.directory.begin(name, self.keys[name]))
            self.directory.done(name)
