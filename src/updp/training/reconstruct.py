"""Block reconstruction: train each site alone to reproduce its output in the baseline.

This lies between the closed form, which optimises one linear operator, and training of the whole
network, which overfits on a thousand images: a site sees all pixels or tokens of every image, and
has as many targets. After Li et al., *BRECQ*, 2021, section 3.2, there for quantised blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from updp.blocks.modules import hooks
from updp.blocks.nested import Samples, call
from updp.io import processes
from updp.io.memory import hand_back
from updp.io.progress import Progress
from updp.io.records import Record
from updp.io.seeds import mix
from updp.recipe import ReconstructSettings
from updp.supernet import KEEP, Inputs, Supernet, Switch, bytes_of, copied
from updp.supernet.judge import Judge
from updp.supernet.routed import routed
from updp.supernet.shared import unchangeable
from updp.supernet.walk import Walk
from updp.tasks import CLASSIFICATION, Task
from updp.training.optim import make_optimizer, make_schedule, whole_steps


class ReconstructRow(BaseModel, frozen=True):
    """A site's error against its output in the baseline, before and after it was trained alone."""

    site: str  # name of the site
    prior_error: float  # mean squared error before, as a share of the target's variance
    error: float  # the same after training, with all of the change
    kept: float  # share of the change of its weights that was kept
    # The task's distance from the baseline (KL of logits) afterwards, on images of no training.
    divergence: float


class ReconstructRecord(Record):
    """All sites that were reconstructed, in order."""

    FILE: ClassVar[str] = "subnet/reconstruct.json"
    rows: tuple[ReconstructRow, ...]  # one for each site, in the order of execution


@dataclass(frozen=True)
class _SitePair:
    """A site of the net with the same site of the baseline."""

    name: str
    own: Switch
    baseline: Switch


# Called with the rows so far, each time a site is finished.
_Save = Callable[[Sequence[ReconstructRow]], None]


def reconstruct(
    net: Supernet,
    baseline: Supernet,
    images: Sequence[Samples],
    judged: Sequence[Samples],
    settings: ReconstructSettings,
    *,
    seed: int,
    megabytes: int,
    progress: Progress,
    done: Sequence[ReconstructRow] = (),
    save: _Save = lambda rows: None,
    task: Task = CLASSIFICATION,
) -> list[ReconstructRow]:
    """Train the sites of `net` alone, in order, starting with the first pruned one.

    A site gets the outputs of the sites before it, which are trained already, and its target is
    its output in the baseline, so that it also compensates their errors. BatchNorms keep their
    statistics. The outputs for `judged` images decide how much of each change is kept.

    Args:
        net: the supernet under the plan's choices; its weights change in place.
        baseline: another supernet of the same sites, with the weights before pruning.
        images: this process's batches to train on, each (N, C, H, W), or other inputs.
        judged: batches that nothing is trained on, the same in every process.
        seed: seed of the order of the batches.
        megabytes: memory for a site's inputs and targets; limits the number of batches.
        done: the rows of sites that an earlier process has trained; `net` has their weights.
        save: called with the rows so far after each site.
        task: defines which outputs count, and their distance from the baseline's.

    Returns:
        The row of each site, in order.
    """
    net.eval()
    net.set_lambda(1.0)
    baseline.eval()
    baseline.choose({})
    with torch.no_grad():
        places = _site_pairs(net, baseline, images[0])
        mine = [batch for _, batch in processes.share(judged)]
        modules = [p.own for p in places]
        own = Walk(net, modules, [*images, *mine], megabytes, run=task.run)
        theirs = Walk(baseline, [p.baseline for p in places], images, megabytes)
        wanted = [task.run(baseline, batch) for batch in mine]
        judge = Judge(net, wanted, own, len(images), task)
    rows, steps = list(done), whole_steps(settings.epochs * len(images))
    progress.begin("subnet: sites trained alone", len(places) * steps, len(rows) * steps)
    trained = {row.site for row in rows}
    for number, place in enumerate(places):
        if place.name in trained:
            continue
        with torch.no_grad():
            inputs, targets = _gather(place, own, theirs, megabytes * 2**20 // 2)
        training = _SiteTraining(place.own, inputs, targets, settings, steps, mix(seed, number))

        with torch.no_grad():
            run = partial(training.run, progress.advance)
            (before, after), kept, divergence = judge.keep_share_of(run)
        row = ReconstructRow(
            site=place.name, prior_error=before, error=after, kept=kept, divergence=divergence
        )
        rows.append(row)
        save(rows)
        hand_back()
    return rows


def _site_pairs(net: Supernet, baseline: Supernet, images: Samples) -> list[_SitePair]:
    """Sites to train, in order: from the first pruned one, called once, with weights to train."""
    order = dict[str, None]()

    def seen(name: str, *call: Any) -> None:
        order.setdefault(name)

    with hooks(
        switch.register_forward_pre_hook(partial(seen, name))
        for name, switch in net.all_switches.items()
    ):
        call(net, images[:2])
    pruned = [net.all_switches[name].choice != KEEP for name in order]
    fixed = unchangeable(net, images, net.all_switches)
    # Each process has other images.
    unpaired = set().union(*processes.all_gather(sorted(routed(net, images, net.all_switches))))
    return [
        _SitePair(name, net.all_switches[name], baseline.all_switches[name])
        for number, name in enumerate(order)
        if any(pruned[: number + 1])
        and net.sites[name].calls == 1
        and name not in unpaired
        and (pruned[number] or name not in fixed)
        and any(p.requires_grad for p in net.all_switches[name].running.parameters())
    ]


def _gather(
    place: _SitePair, own: Walk, theirs: Walk, room: int
) -> tuple[list[Inputs], list[Tensor]]:
    """Inputs and targets of the first batches, as many as fit into `room` bytes, at least one."""
    inputs, targets = list[Inputs](), list[Tensor]()
    batches = len(theirs.batches)
    used = 0
    for position, (x, wanted) in enumerate(_together(own.to(place.own), theirs.to(place.baseline))):
        if position < batches and (not inputs or used <= room):
            inputs.append(x)
            targets.append(place.baseline(*wanted))
            used += bytes_of(x) + bytes_of(targets[-1])
    return inputs, targets


def _together(own: Iterator[Inputs], theirs: Iterator[Inputs]) -> Iterator[tuple[Inputs, Inputs]]:
    """Pairs of inputs; the judge's batches, which come last, have no baseline inputs."""
    for x in own:
        yield x, next(theirs, ())


class _SiteTraining:
    """Training of one site on its inputs and targets, batch by batch."""

    def __init__(
        self,
        site: Switch,
        inputs: Sequence[Inputs],
        targets: Sequence[Tensor],
        settings: ReconstructSettings,
        steps: int,
        seed: int,
    ) -> None:
        self._site, self._inputs, self._targets = site, inputs, targets
        self._settings, self._steps, self._seed = settings, steps, seed
        moments = torch.stack([torch.stack([t.mean(), t.square().mean()]) for t in targets]).mean(0)
        processes.average([moments])
        mean, square = moments.double()
        self._variance = max(float(square - mean.square()), torch.finfo(moments.dtype).tiny)

    def run(self, tick: Callable[[str], None]) -> tuple[float, float]:
        """Train; return the errors before and after."""
        before = self.error()
        self.train(tick)
        return before, self.error()

    @torch.no_grad()
    def error(self) -> float:
        """Mean squared error of all batches and processes, divided by the target's variance."""
        total = torch.stack([self._loss(place) for place in range(len(self._inputs))]).mean()
        processes.average([total])
        return float(total)

    @torch.enable_grad()
    def train(self, tick: Callable[[str], None]) -> None:
        """Run all steps; each process has its own batches, gradients are averaged over all."""
        parameters = [p for p in self._site.parameters() if p.requires_grad]
        optimizer = make_optimizer(self._site, self._settings)
        schedule = make_schedule(optimizer, self._settings, self._steps)
        order = _order(len(self._inputs), self._seed)
        for step in range(self._steps):
            schedule.step_update(step)
            optimizer.zero_grad()
            loss = self._loss(next(order))
            loss.backward()  # type: ignore[no-untyped-call]
            # Paths that do not run have no gradient.
            processes.average([p.grad for p in parameters if p.grad is not None])
            torch.nn.utils.clip_grad_norm_(parameters, self._settings.clip)
            optimizer.step()
            tick(f"error {loss.item():.4f}")
        optimizer.zero_grad()

    def _loss(self, place: int) -> Tensor:
        output: Tensor = self._site(*copied(self._inputs[place]))
        return (output - self._targets[place]).square().mean() / self._variance


def _order(count: int, seed: int) -> Iterator[int]:
    """Endless sequence of batch numbers; each occurs once per epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
