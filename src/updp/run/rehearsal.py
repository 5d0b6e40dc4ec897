"""Rehearse a run: a few steps of each stage, with the stage's own functions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from updp.blocks.modules import to_eval
from updp.blocks.nested import Samples, call
from updp.candidates import make_offers
from updp.measure import Meter, Work, compare_modules
from updp.run.search_rehearsal import SearchRehearsal, evenly
from updp.stages import sites, subnet, supernet
from updp.stages.context import Context
from updp.stages.verify import verify
from updp.supernet import fit_candidates, fit_plan
from updp.training.evaluate import evaluate

_SITES = 6  # number of sites whose candidates are fitted
_LONG = 10.0  # seconds: a fit slower than this on its first images is not measured on all


class Rehearsal:
    """Measures the stages in order; each uses the supernet as the stages before left it.

    `growth` is the memory in bytes that the stage measured last will need beyond what was measured.
    """

    def __init__(self, context: Context, meter: Meter) -> None:
        """The root of `context` must be a temporary directory, and its progress the meter."""
        self.context, self.meter, self.growth = context, meter, 0
        self._choices: Mapping[str, str] = {}

    def measure(self, stage: str) -> list[Work]:
        """Run a few steps of a stage."""
        self.growth = 0
        works: dict[str, Callable[[], list[Work]]] = {
            "sites": self._sites,
            "supernet": self._supernet,
            "search": self._search,
            "subnet": self._subnet,
            "merge": self._merge,
        }
        return works[stage]()

    def take_over(self, stage: str, ended: Context) -> None:
        """Load the results of a finished stage from the run directory of the context `ended`."""
        context = self.context
        if stage == "sites":
            ended.survey.write(context.root)
        elif stage in ("supernet", "subnet"):
            ended.load_weights(context.net, stage)
        elif stage == "search":
            self._choices = ended.found_plan().choices

    def _sites(self) -> list[Work]:
        context = self.context
        findings = context.findings(context.baseline)
        if context.recipe.measure.cache:
            make_offers(context.baseline, findings, context.recipe, context.device)

        def survey() -> None:
            found = context.findings(context.baseline)
            sites.survey(context, found).write(context.root)

        return [self._whole("sites", survey, len(findings.sites))]

    def _whole(self, name: str, run: Callable[[], object], steps: int = 1) -> Work:
        """Measured work of which nothing is left out."""
        return replace(self.meter.time(name, run), steps=steps, measured=steps)

    def _supernet(self) -> list[Work]:
        context, recipe = self.context, self.context.recipe
        if context.plan is None:
            context.limits()  # refused here as in a run, after its sites
        works = [self._whole("networks", lambda: context.net)]
        if recipe.supernet.start == "fit":
            works.append(self._fit_candidates())
        works.append(self.meter.time("training steps", lambda: supernet.train_sandwich(context)))
        context.net.eval()
        return works

    @torch.no_grad()
    def _fit_candidates(self) -> Work:
        """Fit at a few sites from all over the network; one baseline pass serves them all."""
        net, settings = self.context.net, self.context.recipe.fit
        images = self.context.feed.calibration(settings.images)
        some = evenly([*net.switches], _SITES)
        net.eval()
        net.choose({})
        once = self.meter.time("batches", lambda: [call(net, batch) for batch in images])
        fits = self.meter.time("sites", lambda: fit_candidates(net, images, settings, sites=some))
        for switch in net.switches.values():
            for label in switch.labels:
                switch.form(label).set_shape("collapsed")  # as after a fit, for all sites
        own = max(0.0, fits.seconds - once.seconds) / max(len(some), 1)
        whole = once.seconds + own * len(net.switches)
        return Work("sites fitted", len(net.switches), len(some), whole)

    @cached_property
    def _searching(self) -> SearchRehearsal:
        return SearchRehearsal(self.context, self.meter)

    @cached_property
    def choices(self) -> Mapping[str, str]:
        """A plan like the one that the search will choose: the given one, or a random one."""
        if self._choices:
            return self._choices
        if self.context.plan is not None:
            return self.context.plan.choices
        task = self._searching.task
        return task.space.choices(task.random(0))

    def _search(self) -> list[Work]:
        if self.context.plan is not None:
            return []
        works = self._searching.measure(self.choices)
        self.growth = self._searching.growth
        return works

    def _subnet(self) -> list[Work]:
        context, settings = self.context, self.context.recipe.subnet
        works: list[Work] = []
        if settings.start == "baseline":
            del context.net
            works.append(self._whole("networks", lambda: context.net))
        if settings.start == "fit":
            works.append(self._fit_plan())
        if context.recipe.reconstruct.epochs:
            works.append(self._reconstruct())
        # Both paths of a block run until lambda is 1.
        shares = {settings.hold: 1 - settings.hold, 1.0: settings.hold}
        parts = {hold: self._train(hold) for hold, share in shares.items() if share}
        first = next(iter(parts.values()))
        seconds = sum(shares[hold] * part.seconds for hold, part in parts.items())
        measured = min(first.steps, sum(part.measured for part in parts.values()))
        works.append(replace(first, seconds=seconds, measured=measured))
        context.net.eval()
        return works

    def _train(self, hold: float) -> Work:
        """Train from the first step on, which is in the ramp unless `hold` is 1."""
        context = self.context
        settings = context.recipe.subnet.model_copy(update={"hold": hold})
        recipe = context.recipe.model_copy(update={"subnet": settings})
        other = replace(context, recipe=recipe, root=context.root / f"hold {hold}")
        return self.meter.time(
            "training steps", lambda: subnet.train_plan(other, context.net, self.choices)
        )

    def _reconstruct(self) -> Work:
        """Train the first sites alone."""
        context = self.context
        return self.meter.time(
            "steps of sites trained alone",
            lambda: subnet.reconstruct_plan(context, context.net, self.choices),
        )

    def _fit_plan(self) -> Work:
        net, settings = self.context.net, self.context.recipe.fit
        images = self.context.feed.calibration(settings.images)
        weights = {name: tensor.clone() for name, tensor in net.weights().items()}
        shapes = net.shapes()

        def fit(batches: Sequence[Samples]) -> Work:
            net.load_weights(weights, shapes)
            return self.meter.time(
                "operators fitted",
                lambda: fit_plan(
                    net,
                    self.choices,
                    batches,
                    settings,
                    lambda place: self.meter.advance(),
                    task=self.context.task,
                ),
            )

        few = fit(images[:1])
        if len(images) > 1 and few.seconds < _LONG:
            return fit(images)
        return few.times(sum(map(len, images)) / len(images[0]))

    def _merge(self) -> list[Work]:
        context, meter, net = self.context, self.meter, self.context.net
        net.eval()
        net.set_lambda(1.0)
        net.choose(self.choices)
        # Half-trained weights merge exactly, too; but this is not the place to prove it.
        lax = dict.fromkeys(type(context.recipe.merge).model_fields, math.inf)
        tolerance = context.recipe.merge.model_copy(update=lax)
        images = context.feed.calibration()[0][:16]
        checks = meter.time(
            "checks",
            lambda: verify(
                net, images, tolerance, tick=context.progress.advance, task=context.task
            ),
        )
        merged = net.merged()
        models = {"baseline": context.baseline, "subnet": net, "merged": merged}
        fitted = context.recipe.subnet.start == "fit"
        trained = bool(context.recipe.subnet.epochs) or not fitted
        starts = fitted + (context.recipe.reconstruct.epochs > 0)  # further networks to test
        tests = meter.time(
            "test batches",
            lambda: evaluate(context.task, models, context.feed.test(), meter.advance),
            context.feed.test_steps,
        ).times((3 + trained + starts) / len(models))
        measure = context.recipe.measure
        pair = {"baseline": to_eval(context.baseline), "merged": merged}
        x = context.example(measure.batch_size)
        timing = meter.time(
            "rounds of timing",
            lambda: compare_modules(
                pair,
                x,
                settings=measure,
                rounds=2 * measure.rounds,
                round_seconds=0.1,
                tick=meter.advance,
            ),
            2 * measure.rounds,
        )
        # Networks are made again for the results after search, fit and reconstruction.
        nets = self.meter.sample("networks", self._make_another, 1 + starts)
        return [checks, tests, timing, nets]

    def _make_another(self) -> None:
        self.context.make_supernet()
        self.meter.advance()
