"""Timing of a site's candidates against their block, with results cached for later runs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from updp.blocks import Site, TracedSite
from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.reading.scaling import NotScalable
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
    """Costs of a candidate's merged form and of its block (`keep`), from one comparison.

    MACs are for one image and one call, latencies (ms) and `memory` (bytes) for one batch; see
    `Offer`.
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


def time_site(
    candidates: Sequence[Candidate],
    traced: TracedSite,
    settings: MeasureSettings,
    device: torch.device,
    table: LatencyTable,
) -> list[Timed]:
    """Return the costs of each candidate; build and time only those missing in the table.

    Args:
        candidates: the site's candidates, in the order of the result.
        traced: the branch that may be replaced, in its block.
        settings: how latency is measured.
        device: the device to measure on.
        table: cached latencies for this device; new ones are added.

    Raises:
        UserError: the runtime cannot run one of the modules; the text names the site.
        NotScalable: the block's inputs for another number of samples are not known.
    """
    site = traced.site
    if not candidates:
        return []
    keep = copy_module(traced.whole()).eval()
    _try(keep, site, 1, device)
    operators = fingerprint(keep, *site.inputs_for(1, device))
    shape = site.shape_for(settings.batch_size)
    keys = [_key(operators, candidate, shape, settings) for candidate in candidates]
    found = {key: timed for key in keys if (timed := _recall(table, key)) is not None}
    _log.info("%s: %d of %d candidates were timed before", site.name, len(found), len(set(keys)))
    if missing := {k: c for k, c in zip(keys, candidates, strict=True) if k not in found}:
        _try(keep, site, settings.batch_size, device)
        modules: dict[str, nn.Module] = {_KEEP: keep}
        for key, candidate in missing.items():
            form = candidate.build(traced).eval()
            part = form.merged().replacement(site, torch.float32, device)
            modules[key] = copy_module(traced.isolate(part)).eval()
        try:
            new = _time(modules, site, settings, device)
        except UserError as error:
            raise UserError(f"site {site.name!r}: {error}") from error
        for key, timed in new.items():
            # An undecided latency is kept for this run only: the machine may be quiet in another.
            table.put(key, asdict(timed), passing=timed.latency.undecided)
        found |= new
    return [found[key] for key in keys]


def _try(keep: nn.Module, site: Site, samples: int, device: torch.device) -> None:
    """Run the block on its inputs for `samples` samples. Raises NotScalable if that fails."""
    try:
        with torch.no_grad():
            call_user_code(keep, *site.inputs_for(samples, device))
    except UserCodeError as error:
        why = f"it does not run on inputs made for a batch of {samples}: {error}"
        raise NotScalable(why) from error


def _key(
    operators: str, candidate: Candidate, shape: Sequence[int], settings: MeasureSettings
) -> str:
    """Hash of everything that a latency depends on, and of its number of rounds.

    The merged form depends on the block's operators for one sample (not on names or weights),
    on the shape of a batch at its entry, and on the candidate's own data.
    """
    data = [operators, candidate.to_json(), shape, settings.batch_size, settings.rounds]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _recall(table: LatencyTable, key: str) -> Timed | None:
    """Return a cached timing; None if there is none, or if another version wrote it."""
    data = table.get(key)
    try:
        latency, keep = (Latency.from_json(data[name]) for name in ("latency", "keep"))
        return Timed(**{**data, "latency": latency, "keep": keep})
    except (KeyError, TypeError):
        return None


def _time(
    modules: dict[str, nn.Module], site: Site, settings: MeasureSettings, device: torch.device
) -> dict[str, Timed]:
    """Time every module against the one named `keep`, and count its MACs, parameters and memory."""
    entry = site.branch.layout_in if site.branch else site.layout
    # A map (N, H, W, C) already has the memory order of channels_last.
    if entry == "last":
        settings = settings.model_copy(update={"layout": "contiguous"})
    batch = site.inputs_for(settings.batch_size, device)
    runners = {name: runner(module, batch, settings) for name, module in modules.items()}
    times: dict[str, tuple[Latency, Latency]] = {}

    def time_against_keep(names: list[str], rounds: int) -> None:
        functions = {name: runners[name] for name in (_KEEP, *names)}
        new = compare(functions, rounds=rounds, round_seconds=0.005)
        times.update({name: (new[name], new[_KEEP]) for name in names})

    names = [name for name in modules if name != _KEEP]
    # Three rounds rule out forms that are clearly slower; the others get the full number, and twice
    # that if the result is still undecided because the machine is busy.
    time_against_keep(names, 3)
    names = [name for name in names if times[name][0].speedup.high > 1]
    for rounds in (settings.rounds, 2 * settings.rounds):
        if names:
            time_against_keep(names, rounds)
        names = [name for name in names if times[name][0].undecided]
    one_sample = site.inputs_for(1, device)
    parameters = {name: count_parameters(module) for name, module in modules.items()}
    memory = {name: peak_memory(module, *batch) for name, module in modules.items()}
    macs = {name: count_macs(module, *one_sample) for name, module in modules.items()}
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
