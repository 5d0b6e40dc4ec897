"""The four stages in order, on one run directory; a stage that has ended is skipped."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from updp import merge as merge_stage
from updp import search as search_stage
from updp import subnet as subnet_stage
from updp import supernet as supernet_stage
from updp.blocks import Findings, find
from updp.candidates import Offer, choose, from_json, selected
from updp.engine.data import Source, preprocess_for
from updp.engine.feed import Feed
from updp.engine.files import read_json, read_tensors, write_bytes, write_json, write_text
from updp.engine.progress import Progress
from updp.errors import UserError
from updp.measure import compare_modules, count_macs
from updp.models import hash_state, num_outputs
from updp.plan import Plan
from updp.recipe import Recipe
from updp.report import Result, make_result
from updp.rewrite import Supernet
from updp.rundir import STAGES, RunDirectory, versions


@dataclass
class Job:
    """What a run is about."""

    model: nn.Module
    model_name: str
    source: Source
    data_name: str
    recipe: Recipe
    device: torch.device
    progress: Progress
    weights_name: str = ""


class Run:
    """A job on its run directory. Each stage can be called alone once those before it ended."""

    def __init__(self, job: Job, out: Path, *, last: str = "merge", fresh: str = "") -> None:
        """Check everything that can be checked before work begins; write nothing but `run.json`.

        `last` is the last stage that will be asked for; `fresh` names a stage to start over from.

        Raises UserError: data and model do not agree, or `out` holds another run.
        """
        self.job, self.recipe = job, job.recipe
        self.directory = RunDirectory(out)
        settings = job.recipe.data
        preprocess = preprocess_for(
            job.model,
            job.source.image_size,
            mean=settings.mean,
            std=settings.std,
            input_size=settings.input_size,
        )
        self.shape = job.source.image_size
        outputs = num_outputs(job.model, self.shape)
        if outputs != len(job.source.classes):
            raise UserError(
                f"model '{job.model_name}' has {outputs} classes and data '{job.data_name}' "
                f"{len(job.source.classes)}: give a model made for these classes"
            )
        self.baseline = job.model.to(job.device).eval()
        self.hash = hash_state(job.model)
        self.feed = Feed(job.source, preprocess, settings, seed=job.recipe.seed, device=job.device)
        self.keys = self._keys()
        if fresh:
            before = STAGES.index(fresh)
            if before:
                self.directory.claim(self.keys, STAGES[before - 1])
            self.directory.clear(fresh)
        self.directory.claim(self.keys, last)
        self._net: Supernet | None = None

    # -- the stages ---------------------------------------------------------------------------

    def sites(self) -> dict[str, Offer]:
        """Find and time what can be pruned; decided once per run, for clocks vary."""
        folder = self.directory.stage("sites")
        if not self.directory.is_done("sites"):
            self._describe()
            self.directory.begin("sites", self.keys["sites"])
            findings = self._findings(self.baseline)
            self.job.progress.begin("sites: timing candidates", len(findings.sites))
            offers, refused = choose(
                self.baseline,
                findings,
                self.recipe,
                self.job.device,
                lambda: self.job.progress.advance(),
            )
            x = torch.randn(self.recipe.measure.batch_size, *self.shape, device=self.job.device)
            time = compare_modules({"keep": self.baseline}, x, rounds=self.recipe.measure.rounds)
            write_json(
                folder / "sites.json",
                {
                    "sites": [offer.to_json() for offer in offers.values()],
                    "unusable": [vars(u) for u in (*findings.unusable, *refused)],
                    "baseline": {
                        "ms": time["keep"].ms.median,
                        "macs": count_macs(self.baseline, x[:1]),
                    },
                },
            )
            self.directory.done("sites")
        rows = read_json(folder / "sites.json")["sites"]
        offers = {row["site"]: Offer.from_json(row) for row in rows}
        if not offers:
            raise UserError(
                f"model '{self.job.model_name}' has no block that can be pruned: "
                "`updp inspect` says why for each"
            )
        return offers

    def supernet(self) -> None:
        """Stage 1."""
        net = self.net()
        self._stage(
            "supernet",
            lambda folder: supernet_stage.train(
                net, self.feed, self.recipe, folder, self.job.progress
            ),
        )

    def search(self) -> Plan:
        """Stage 2."""
        if self.recipe.budget is None:
            raise UserError("no budget was given: say how much to prune, such as blocks=6")
        costs = self.costs()
        costs.check(self.recipe.budget)

        def run(folder: Path) -> None:
            net = self.net()
            self._load(net, "supernet")
            scorer = search_stage.Scorer(net, self.baseline, self.feed, self.recipe.search.score)
            best, evaluated = search_stage.search(
                scorer, costs, self.recipe, folder, self.job.progress
            )
            self.job.progress.say(
                f"search: {len(evaluated)} plans; the best keeps {best.top1:.2f} % of held-out "
                f"images right and prunes {', '.join(best.sites)}"
            )
            offers = self.sites()
            plan = Plan(
                choices={name: offers[name].candidate.label for name in best.sites},
                candidates={name: offers[name].candidate.to_json() for name in best.sites},
                budget=str(self.recipe.budget),
                hashes={"model": self.hash, "data": self.job.source.fingerprint},
            )
            write_text(folder / "plan.json", plan.to_json())

        self._stage("search", run)
        return self.plan()

    def subnet(self) -> None:
        """Stage 3."""

        def run(folder: Path) -> None:
            net = self.net()
            if self.recipe.subnet.start == "supernet":
                self._load(net, "supernet")
            teacher = copy.deepcopy(self.baseline)
            subnet_stage.train(
                net, self.plan().choices, teacher, self.feed, self.recipe, folder, self.job.progress
            )

        self.plan()
        self._stage("subnet", run)

    def merge(self) -> tuple[nn.Module, Result]:
        """Stage 4, and the final table."""
        plan = self.plan()
        folder = self.directory.stage("merge")

        def run(folder: Path) -> None:
            net = self.net()
            self._load(net, "subnet")
            images = self.feed.calibration()[0][:16]
            self.job.progress.begin("merge", 2)
            model, checks = merge_stage.merge(net, plan.choices, images, self.recipe, folder)
            self.job.progress.advance()
            searched = self._fresh_net()
            self._load(searched, "supernet")
            searched.choose(plan.choices)
            result = make_result(
                self.baseline, searched, net, model, checks, self.feed, self.recipe, self.shape
            )
            write_json(folder / "result.json", result.model_dump())
            self.job.progress.advance()

        self._stage("merge", run)
        for name in ("model.safetensors", "result.json"):
            _copy(folder / name, self.directory.path / name)
        write_text(self.directory.path / "plan.json", plan.to_json())
        result = Result.model_validate(read_json(folder / "result.json"))
        return self.merged(), result

    def run(self) -> tuple[nn.Module, Plan, Result]:
        """All four stages."""
        if self.recipe.budget is None:
            raise UserError("no budget was given: say how much to prune, such as blocks=6")
        self.costs().check(self.recipe.budget)
        self.supernet()
        plan = self.search()
        self.subnet()
        model, result = self.merge()
        return model, plan, result

    # -- what they share ----------------------------------------------------------------------

    def net(self) -> Supernet:
        """The run's supernet, calibrated; made once."""
        if self._net is None:
            self._net = self._fresh_net()
        return self._net

    def costs(self) -> search_stage.Costs:
        """What each site saves."""
        offers = self.sites()
        baseline = read_json(self.directory.stage("sites") / "sites.json")["baseline"]
        sites = {
            name: search_stage.Cost(o.candidate.label, o.saved_ms, o.keep_macs - o.macs)
            for name, o in offers.items()
        }
        return search_stage.Costs(baseline["ms"], baseline["macs"], sites)

    def plan(self) -> Plan:
        """The plan that stage 2 found. Raises UserError before it did."""
        path = self.directory.stage("search") / "plan.json"
        if not path.exists():
            raise UserError(f"'{self.directory.path}' has no plan yet: run `updp search` first")
        return Plan.from_json(path.read_text(), str(path))

    def merged(self) -> nn.Module:
        """The merged model that stage 4 wrote."""
        return load_merged(self.baseline, self.shape, self.plan(), self.directory.path)

    def _fresh_net(self) -> Supernet:
        model = copy.deepcopy(self.baseline)
        offers = self.sites()
        candidates = {name: (offer.candidate,) for name, offer in offers.items()}
        net = Supernet(model, self._findings(model), candidates)
        net.calibrate(torch.cat(self.feed.calibration()))
        return net

    def _findings(self, model: nn.Module) -> Findings:
        example = torch.zeros(2, *self.shape, device=self.job.device)
        example.normal_(generator=torch.Generator(self.job.device).manual_seed(0))
        settings = self.recipe.candidates
        return selected(find(model, example), settings.include, settings.exclude)

    def _load(self, net: Supernet, stage: str) -> None:
        path = self.directory.stage(stage) / "weights.safetensors"
        if not path.exists():
            raise UserError(
                f"'{self.directory.path}' has no {stage} weights yet: run `updp {stage}` first"
            )
        net.load_weights(read_tensors(path)[0])

    def _stage(self, name: str, work: Any) -> None:
        if self.directory.is_done(name):
            self.job.progress.say(f"{name}: done before")
            return
        self._describe()
        work(self.directory.begin(name, self.keys[name]))
        self.directory.done(name)
        (self.directory.stage(name) / "checkpoint.safetensors").unlink(missing_ok=True)

    def _describe(self) -> None:
        job, path = self.job, self.directory.path
        description = {
            "model": job.model_name,
            "weights": job.weights_name,
            "data": job.data_name,
            "classes": job.source.classes,
            "input_shape": self.shape,
            "device": str(job.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "command": sys.argv,
        }
        if not (path / "run.json").exists():
            write_json(path / "run.json", description)
        write_text(path / "recipe.yaml", self.recipe.to_yaml())

    def _keys(self) -> dict[str, dict[str, Any]]:
        """What each stage is made from: its part of the recipe, and all that came before."""
        recipe = self.recipe.model_dump(mode="json", exclude={"measure"})
        key: dict[str, Any] = {
            "model": self.job.model_name,
            "weights": self.hash,
            "data": self.job.source.fingerprint,
            "seed": recipe["seed"],
            "recipe": {"data": recipe["data"], "candidates": recipe["candidates"]},
        }
        keys = {"sites": key}
        for name in STAGES[1:]:
            key = {**key, "recipe": {**key["recipe"], name: recipe[name]}}
            if name == "search":
                key["budget"] = str(self.recipe.budget)
            keys[name] = key
        return keys


def load_merged(baseline: nn.Module, shape: tuple[int, ...], plan: Plan, path: Path) -> nn.Module:
    """The merged model of a run: the baseline's structure under the plan, the run's weights.

    `baseline` gives the architecture only and is left as it is.
    """
    model = copy.deepcopy(baseline)
    example = torch.zeros(2, *shape, device=next(model.parameters()).device)
    candidates = {name: (from_json(data),) for name, data in plan.candidates.items()}
    net = Supernet(model, find(model, example), candidates).eval()
    net.choose(plan.choices)
    merged = net.merged()
    merged.load_state_dict(read_tensors(path / "model.safetensors")[0])
    return merged.eval()


def _copy(source: Path, target: Path) -> None:
    write_bytes(target, source.read_bytes())
