"""A plan's candidates and what it keeps, fitted one after another; no gradient.

Targets are what the baseline gives on the baseline's own activations; inputs come from the prefix
that was fitted before (DESIGN, *Fit*). So each fit puts right what the ones before it left over.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from updp.blocks.modules import hooks
from updp.fit import FitTask, operator_repair, site_repairs
from updp.io.records import Record
from updp.recipe import FitSettings
from updp.supernet.partial import Walk, tapped
from updp.supernet.supernet import Supernet
from updp.supernet.switch import KEEP, Switch

_FitTasks = list[FitTask]
_Observer = Callable[..., None]  # of what a site is called with


class FitRow(BaseModel):
    """One operator that was fitted, of a site or outside of all sites, as in `fit.Fitted`.

    Errors are squared over the target's variance. Where `strength`, the ridge's, is None the
    prior was kept.
    """

    model_config = ConfigDict(frozen=True)

    site: str
    candidate: str
    operator: str
    error: float
    prior_error: float
    strength: float | None
    rows: int


class FitRecord(Record):
    """All operators that stage 3 fitted, in order."""

    FILE: ClassVar[str] = "subnet/fit.json"
    rows: tuple[FitRow, ...]


@torch.no_grad()
def fit_plan(
    net: Supernet,
    choices: Mapping[str, str],
    batches: Sequence[Tensor],
    settings: FitSettings,
    tick: Callable[[str], None] = lambda place: None,
    begin: Callable[[int], None] = lambda steps: None,
) -> list[FitRow]:
    """Fit `choices` to `batches` of images (N, C, H, W); figures of each fit, in order.

    The forms are collapsed. Behind the first pruned site what is kept is repaired in the model's
    own weights: sites, and linear operators that no site has. The net is left under `choices`, in
    evaluation. `begin` is told how many times `tick` will be called: once when the targets are
    there, then after each fit.
    """
    net.eval()
    net.set_lambda(1.0)
    net.choose({})
    places = _places(net, choices, batches, settings)
    begin(1 + sum(len(place.fit_tasks) for place in places))
    _gather_targets(net, places, batches, settings.rows_mb * 2**20)
    tick("targets")
    net.choose(choices)
    modules = [place.module for place in places]
    walk, figures = Walk(net, modules, batches, settings.rows_mb), []
    for place in places:
        for fitting in place.fit_tasks:
            for number, given in enumerate(walk.to(place.module)):
                fitting.add_input(number, *given)
            found = fitting.finish()
            figures.append(
                FitRow(
                    site=place.name,
                    candidate=choices.get(place.name, KEEP),
                    operator=fitting.operator,
                    error=found.error,
                    prior_error=found.prior_error,
                    strength=found.strength,
                    rows=found.rows,
                )
            )
            tick(place.name)
    return figures


@dataclass(frozen=True)
class _Place:
    """A site's switch, or an operator that no site has, with its regressions."""

    name: str
    module: nn.Module
    fit_tasks: _FitTasks


def _places(
    net: Supernet, choices: Mapping[str, str], batches: Sequence[Tensor], settings: FitSettings
) -> list[_Place]:
    """What is to be fitted, from the first pruned site on, in the order in which it runs."""
    found: list[_Place] = []
    for name, module, x in _order(net, batches[0]):
        pruned = choices.get(name, KEEP) != KEEP
        if not (pruned or (found and settings.repair)):
            continue
        if not isinstance(module, Switch):
            repair = operator_repair(name, module, x, settings, len(batches))
            fit_tasks = [] if repair is None else [repair]
        elif pruned:
            fit_tasks = module.form(choices[name]).fit_tasks(settings, len(batches))
        else:
            fit_tasks = site_repairs(net.sites[name], *net.block_of(name), settings, len(batches))
        found.append(_Place(name, module, fit_tasks))
    return found


def _order(net: Supernet, images: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Sites, and linear operators outside of them that run once, with what they read.

    In the order in which they run; what does not run is left out.
    """
    inside = {id(m) for switch in net.switches.values() for m in switch.modules()}
    owners = Counter(id(p) for m in net.model.modules() for p in m.parameters(recurse=False))
    names: dict[nn.Module, str] = {switch: name for name, switch in net.switches.items()}
    for name, module in net.model.named_modules():
        linear = isinstance(module, (nn.Conv2d, nn.Linear)) and id(module) not in inside
        if linear and all(owners[id(p)] == 1 for p in module.parameters()):
            names[module] = name
    order: dict[nn.Module, Tensor] = {}
    calls: Counter[nn.Module] = Counter()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] += 1
        if args:
            order.setdefault(module, args[0].clone())

    with hooks(module.register_forward_pre_hook(hook) for module in names):
        net(images[:2])
    return [
        (names[module], module, x)
        for module, x in order.items()
        if isinstance(module, Switch) or calls[module] == 1
    ]


@torch.no_grad()
def fit_candidates(
    net: Supernet,
    batches: Sequence[Tensor],
    settings: FitSettings,
    tick: Callable[[str], None] = lambda site: None,
) -> None:
    """Fit every candidate of every site alone, on the baseline's activations for `batches`.

    For a search: the plan is not known yet, and with it the prefix. The baseline runs once for as
    many sites as `settings.rows_mb` allows, and again where a form has a further regression. `tick`
    is called for each batch of each site, and once more when the site's candidates are fitted.
    """
    net.eval()
    net.choose({})
    for group in _groups(net, settings, len(batches)):
        left: dict[str, list[_FitTasks]] = dict(group)
        for number, images in enumerate(batches):
            with tapped({net.switches[n]: _both(forms, number) for n, forms in left.items()}):
                net(images)
            for name in group:
                tick(name)
        while left := {name: rest for name, forms in left.items() if (rest := _finished(forms))}:
            for number, images in enumerate(batches):
                with tapped({net.switches[n]: _inputs(forms, number) for n, forms in left.items()}):
                    net(images)
        for name in group:
            tick(name)


def _groups(
    net: Supernet, settings: FitSettings, batches: int
) -> Iterator[dict[str, list[_FitTasks]]]:
    """Sites with the regressions of each of their candidates, as many as memory allows."""
    group: dict[str, list[_FitTasks]] = {}
    room = settings.rows_mb * 2**20
    for name, switch in net.switches.items():
        forms = [switch.form(label).fit_tasks(settings, batches) for label in switch.labels]
        needed = sum(fitting.regression.bytes for form in forms for fitting in form)
        if group and needed > room:
            yield group
            group, room = {}, settings.rows_mb * 2**20
        group[name] = [form for form in forms if form]
        room -= needed
    yield group


def _finished(forms: list[_FitTasks]) -> list[_FitTasks]:
    """Make the first regression of each form; what is left to do."""
    for form in forms:
        form[0].finish()
    return [form[1:] for form in forms if form[1:]]


def _both(forms: list[_FitTasks], number: int) -> _Observer:
    """Targets of all regressions, inputs of those that come first."""
    targets, inputs = _targets([f for form in forms for f in form], number), _inputs(forms, number)

    def seen(x: Tensor, *extras: Any) -> None:
        targets(x, *extras)
        inputs(x, *extras)

    return seen


def _inputs(forms: list[_FitTasks], number: int) -> _Observer:
    def seen(x: Tensor, *extras: Any) -> None:
        for form in forms:
            form[0].add_input(number, x, *extras)

    return seen


def _gather_targets(
    net: Supernet, places: list[_Place], batches: Sequence[Tensor], room: float
) -> None:
    """What the baseline gives at all places, so many pixels that it takes no more than `room`."""
    regressions = [fitting.regression for place in places for fitting in place.fit_tasks]

    def gather(number: int) -> None:
        with tapped({p.module: _targets(p.fit_tasks, number) for p in places}):
            net(batches[number])

    for number in range(len(batches)):
        gather(number)
        needed = len(batches) * sum(regression.gathered for regression in regressions)
        if number == 0 and needed > room:
            for regression in regressions:
                regression.thin(room / needed)
            gather(0)


def _targets(fit_tasks: _FitTasks, number: int) -> _Observer:
    def seen(x: Tensor, *extras: Any) -> None:
        for fitting in fit_tasks:
            fitting.add_target(number, x, *extras)

    return seen
