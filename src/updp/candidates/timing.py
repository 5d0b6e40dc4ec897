"""Candidates on the clock: each merged form against its block, or what the table has of it."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks import Site
from updp.blocks.modules import seeded_input
from updp.blocks.surgery import extract, isolate
from updp.candidates.base import Candidate
from updp.errors import UserError
from updp.measure import (
    Latency,
    LatencyTable,
    compare,
    count_macs,
    count_parameters,
    fingerprint,
    peak_memory,
    runner,
)
from updp.recipe import MeasureSettings

_log = logging.getLogger(__name__)
_KEEP = "keep"


@dataclass(frozen=True)
class Timed:
    """A candidate's merged form and its block (`keep`), in one comparison.

    MACs are for one image and one call, latencies and `memory` for one batch; see `Offer`.
    """

    parameters: int
    keep_parameters: int
    weights: int
    keep_weights: int
    memory: int
    macs: int
    keep_macs: int
    latency: Latency
    keep: Latency

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal one."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Timed:
        """The inverse of `to_json`. Raises KeyError or TypeError for data that are not its own."""
        latency, keep = (Latency.from_json(data[name]) for name in ("latency", "keep"))
        return cls(**{**data, "latency": latency, "keep": keep})


def time_site(
    candidates: Sequence[Candidate],
    site: Site,
    block: nn.Module,
    graph: fx.Graph,
    settings: MeasureSettings,
    device: torch.device,
    table: LatencyTable,
) -> list[Timed]:
    """Each candidate of a site; only those that the table does not have are built and timed.

    Raises UserError, which names the site, where the runtime does not run one of them.
    """
    if not candidates:
        return []
    region = site.region
    keep = copy.deepcopy(extract(block, graph, region.entry, region.exit, region.extras)).eval()
    operators = fingerprint(keep, *inputs(site, 1, device))
    keys = [_key(operators, candidate, settings) for candidate in candidates]
    found = {key: timed for key in keys if (timed := _recall(table, key)) is not None}
    _log.info("%s: %d of %d candidates were timed before", site.name, len(found), len(set(keys)))
    if missing := {k: c for k, c in zip(keys, candidates, strict=True) if k not in found}:
        modules: dict[str, nn.Module] = {_KEEP: keep}
        for key, candidate in missing.items():
            form = candidate.build(site, block, graph).eval()
            part = form.merged().replacement(site, torch.float32, device)
            modules[key] = copy.deepcopy(isolate(block, graph, part)).eval()
        try:
            new = _time(modules, site, settings, device)
        except UserError as error:
            raise UserError(f"site {site.name!r}: {error}") from error
        for key, timed in new.items():
            table.put(key, timed.to_json())
        found |= new
    return [found[key] for key in keys]


def _key(operators: str, candidate: Candidate, settings: MeasureSettings) -> str:
    """What decides a latency on the table's device, and how surely it is known.

    The block's operators, which its names and weights do not change, and the candidate's own data
    decide the merged form.
    """
    data = [operators, candidate.to_json(), settings.batch_size, settings.rounds]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _recall(table: LatencyTable, key: str) -> Timed | None:
    try:
        return Timed.from_json(table.get(key))
    except (KeyError, TypeError):  # nothing there, or what another version wrote
        return None


def _time(
    modules: dict[str, nn.Module], site: Site, settings: MeasureSettings, device: torch.device
) -> dict[str, Timed]:
    """Every module but `keep` against it."""
    entry = site.branch.layout_in if site.branch else site.layout
    if entry == "last":  # its (N, H, W, C) lies in memory as channels_last means it
        settings = settings.model_copy(update={"layout": "contiguous"})
    batch = inputs(site, settings.batch_size, device)
    runners = {name: runner(module, batch, settings) for name, module in modules.items()}
    times: dict[str, tuple[Latency, Latency]] = {}

    def ask(names: list[str], rounds: int) -> None:
        functions = {name: runners[name] for name in (_KEEP, *names)}
        new = compare(functions, rounds=rounds, round_seconds=0.005)
        times.update({name: (new[name], new[_KEEP]) for name in names})

    names = [name for name in modules if name != _KEEP]
    ask(names, 3)
    names = [name for name in names if times[name][0].speedup.high > 1]  # others are slower
    for rounds in (settings.rounds, 2 * settings.rounds):
        if names:
            ask(names, rounds)
        names = [name for name in names if times[name][0].undecided]  # the machine was busy
    one = inputs(site, 1, device)
    parameters = {name: count_parameters(module) for name, module in modules.items()}
    memory = {name: peak_memory(module, *batch) for name, module in modules.items()}
    macs = {name: count_macs(module, *one) for name, module in modules.items()}
    return {
        name: Timed(
            parameters=parameters[name],
            keep_parameters=parameters[_KEEP],
            weights=memory[name].weights,
            keep_weights=memory[_KEEP].weights,
            memory=memory[name].own,
            macs=macs[name],
            keep_macs=macs[_KEEP],
            latency=latency,
            keep=keep,
        )
        for name, (latency, keep) in times.items()
    }


def inputs(site: Site, count: int, device: torch.device) -> tuple[Any, ...]:
    """Random values for the site's entry, and its extras, for `count` images."""
    images = site.shape_in[0]  # of the example; windows may be several to an image

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == images:
            return value[:1].expand(count, *value.shape[1:]).clone()
        return value

    x = seeded_input((count, *site.shape_in[1:])).to(device)
    return (x, *map(repeated, site.extras))
