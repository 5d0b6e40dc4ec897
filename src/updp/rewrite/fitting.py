"""A plan's candidates and the branches it keeps, fitted one after another; no gradient.

Targets are what the baseline gives on the baseline's own activations; inputs come from the prefix
that was fitted before (DESIGN, *Fit*). So each fit puts right what the ones before it left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from updp import recipe as recipes
from updp.candidates import Fitting, repairing
from updp.rewrite.supernet import Supernet
from updp.rewrite.switch import KEEP, Switch

Seen = Callable[..., None]  # what a site is called with: its input and extras
_Fittings = list[Fitting]


@torch.no_grad()
def fit(
    net: Supernet,
    choices: Mapping[str, str],
    batches: Sequence[Tensor],
    settings: recipes.Fit,
    tick: Callable[[str], None] = lambda site: None,
    begin: Callable[[int], None] = lambda steps: None,
) -> list[dict[str, Any]]:
    """Fit `choices` to `batches` of images (N, C, H, W); figures of each fit, in order.

    The forms are collapsed, and the kept branches after the first pruned one repaired in the
    model's own weights. The net is left under `choices`, in evaluation. `begin` is told how many
    times `tick` will be called: once when the targets are there, then after each site.
    """
    net.eval()
    net.set_progress(1.0)
    net.choose({})
    order = _order(net, batches[0])
    pruned = [name for name in order if choices.get(name, KEEP) != KEEP]
    first = order.index(pruned[0]) if pruned else len(order)
    fittings: dict[str, Fitting] = {}
    for name in order[first:]:
        if (fitting := _fitting(net, name, choices, settings, len(batches))) is not None:
            fittings[name] = fitting
    begin(1 + len(fittings))
    for number, images in enumerate(batches):
        with _tapped(net, {n: _target(f, number) for n, f in fittings.items()}):
            net(images)
    tick("targets")
    net.choose(choices)
    figures = []
    for name, fitting in fittings.items():
        for number, images in enumerate(batches):
            _run_to(net, name, images, _input(fitting, number))
        found = fitting.finish()
        label = choices.get(name, KEEP)
        figures.append({"site": name, "candidate": label, **found.figures()})
        tick(name)
    return figures


@torch.no_grad()
def fit_each(
    net: Supernet,
    batches: Sequence[Tensor],
    settings: recipes.Fit,
    tick: Callable[[str], None] = lambda site: None,
) -> None:
    """Fit every candidate of every site alone, on the baseline's activations for `batches`.

    For a search: the plan is not known yet, and with it the prefix. The baseline runs once for as
    many sites as `settings.rows_mb` allows. `tick` is called for each batch of each site, and once
    more when the site's candidates are fitted.
    """
    net.eval()
    net.choose({})
    for group in _groups(net, settings, len(batches)):
        for number, images in enumerate(batches):
            with _tapped(net, {n: _both(found, number) for n, found in group.items()}):
                net(images)
            for name in group:
                tick(name)
        for name, found in group.items():
            for fitting in found:
                fitting.finish()
            tick(name)


def _groups(net: Supernet, settings: recipes.Fit, batches: int) -> Iterator[dict[str, _Fittings]]:
    """Sites with the regressions of all of their candidates, as many as memory allows."""
    group: dict[str, _Fittings] = {}
    room = settings.rows_mb * 2**20
    for name, switch in net.switches.items():
        made = [switch.form(label).fitting(settings, batches) for label in switch.labels]
        found = [fitting for fitting in made if fitting is not None]
        needed = sum(fitting.problem.bytes for fitting in found)
        if group and needed > room:
            yield group
            group, room = {}, settings.rows_mb * 2**20
        group[name] = found
        room -= needed
    yield group


def _both(fittings: _Fittings, number: int) -> Seen:
    def seen(x: Tensor, *extras: Any) -> None:
        for fitting in fittings:
            fitting.add_target(number, x, *extras)
            fitting.add_input(number, x, *extras)

    return seen


def _fitting(
    net: Supernet, name: str, choices: Mapping[str, str], settings: recipes.Fit, batches: int
) -> Fitting | None:
    label = choices.get(name, KEEP)
    if label != KEEP:
        return net.switches[name].form(label).fitting(settings, batches)
    if not settings.repair:
        return None
    return repairing(net.sites[name], *net.block_of(name), settings, batches)


def _target(fitting: Fitting, number: int) -> Seen:
    return lambda x, *extras: fitting.add_target(number, x, *extras)


def _input(fitting: Fitting, number: int) -> Seen:
    return lambda x, *extras: fitting.add_input(number, x, *extras)


def _order(net: Supernet, images: Tensor) -> list[str]:
    """Sites in the order in which they run; those that do not run are left out."""
    order: list[str] = []
    with _tapped(net, {n: lambda *_, n=n: order.append(n) for n in net.switches}):
        net(images[:2])
    return list(dict.fromkeys(order))


@contextmanager
def _tapped(net: Supernet, seen: Mapping[str, Seen]) -> Iterator[None]:
    """Call `seen` of a site with a copy of its arguments, the first time that it runs."""
    handles, done = [], set()

    def tap(name: str) -> Callable[[Switch, tuple[Any, ...]], None]:
        def hook(module: Switch, args: tuple[Any, ...]) -> None:
            if name not in done:
                done.add(name)
                seen[name](args[0].clone(), *args[1:])

        return hook

    for name in seen:
        handles.append(net.switches[name].register_forward_pre_hook(tap(name)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """Ends a forward at the site that was asked for."""


def _run_to(net: Supernet, name: str, images: Tensor, seen: Seen) -> None:
    def stop(x: Tensor, *extras: Any) -> None:
        seen(x, *extras)
        raise _Reached

    with _tapped(net, {name: stop}):
        try:
            net(images)
        except _Reached:
            return
    raise AssertionError(f"{name} was not reached")
