"""Prune, merge and verify one network at random weights; print its figures as JSON.

python -m benchmarks.coverage.network timm/test_resnet --rounds 0
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.common.output import Result
from benchmarks.coverage.libraries import LIBRARIES, load_network
from updp.blocks import Findings, find
from updp.blocks.nested import Samples, call, tensors_in
from updp.candidates import Candidate, proposals
from updp.errors import UserError, reason
from updp.measure import compare_modules, count_macs, count_parameters
from updp.recipe import CandidateSettings, MergeSettings
from updp.stages.checks import ROUNDINGS
from updp.stages.verify import verify
from updp.supernet import Supernet
from updp.tasks import Task

LARGE = 25e6  # parameters: of larger networks only half of the sites is pruned
FLOAT64, FLOAT32 = 1e-12, 1e-5  # relative errors at most


def measure(name: str, rounds: int = 7) -> Result:
    """Figures of one network; its speed-up is not timed where `rounds` is 0."""
    library = LIBRARIES[name.partition("/")[0]]
    result: Result = {"name": name, "version": version(library.package)}
    try:
        network = load_network(name)
        model, x, task = network.model.eval(), network.example, network.task
        with torch.no_grad():
            call(model, x)
    except Exception as error:  # of the library, before anything of ours
        return {**result, "status": "unusable", "reason": reason(error)}
    randomise_norms(model, x)
    model.eval()
    try:
        findings = find(model, x)
    except UserError as error:  # such as of a model that is random in evaluation
        return {**result, "status": "none", "reason": str(error)}
    candidates = candidates_of(model, findings)
    kinds = Counter(
        kind for of_site in candidates.values() for kind in dict.fromkeys(c.kind for c in of_site)
    )
    parameters = count_parameters(model)
    result |= {
        "input": [list(tensor.shape[1:]) for tensor in tensors_in(x[:1])],
        "parameters": parameters,
        "blocks": len({site.block for site in findings.sites if site.name in candidates}),
        "sites": len(candidates),
        "kinds": dict(kinds),
        "unusable": [vars(u) for u in findings.unusable],
    }
    if not candidates:
        reasons = Counter(u.reason for u in findings.unusable) or {"no block was found": 1}
        return {**result, "status": "none", "reason": "; ".join(reasons)}

    # Sites that merge come first, so that every other site is half of those and half of the rest.
    names = sorted(candidates, key=lambda n: all(c.kind in ("drop", "fold") for c in candidates[n]))
    most_merged = {
        n: ([c for c in candidates[n] if c.kind != "drop"] or candidates[n])[-1] for n in names[::2]
    }
    in_turn = {n: candidates[n][i % len(candidates[n])] for i, n in enumerate(names[1::2] or names)}
    base_macs = count_macs(model, x[:1])
    parts = [("", most_merged), ("_others", in_turn)]
    if parameters > LARGE:
        parts, rounds = parts[:1], min(rounds, 3)
    for suffix, chosen in parts:
        net = Supernet(model, findings, {n: (c,) for n, c in chosen.items()}).eval()
        net.calibrate(x)
        net.choose({n: c.label for n, c in chosen.items()})
        for dtype, limit in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
            gap, where, rounding = worst_error(net, x[:1], dtype, task)
            key = str(dtype).removeprefix("torch.") + suffix
            result[key] = gap
            if not gap <= max(limit, ROUNDINGS * rounding):
                return {**result, "status": "failed", "reason": f"{where}: {key} error {gap:.1e}"}
        if not suffix:
            merged = net.merged()
            if rounds:
                pair = {"baseline": net.baseline().eval(), "merged": merged}
                times = compare_modules(pair, x[:1], rounds=rounds)
                result["speedup"] = times["merged"].speedup.median
            result["pruned"] = len(chosen)
            result["macs"] = base_macs / max(1, count_macs(merged, x[:1]))
        if suffix != parts[-1][0]:  # a supernet takes its model over: the next one needs another
            model = net.baseline().eval()
            findings = find(model, x)
    return {**result, "status": "exact"}


def candidates_of(model: nn.Module, findings: Findings) -> dict[str, list[Candidate]]:
    """Every candidate of every site that has one, none of them timed."""
    settings = CandidateSettings(drop="always", fold_norms=True)
    found: dict[str, list[Candidate]] = {}
    for site in findings.sites:
        if candidates := list(proposals(findings.traced(site, model), settings)):
            found[site.name] = candidates
    return found


def randomise_norms(model: nn.Module, x: Samples) -> None:
    """Give BatchNorms random parameters, and statistics near those of the samples x.

    Signals then survive many layers, but no statistic is 0 or 1, which would hide errors.
    """
    norms: list[Any] = [m for m in model.modules() if getattr(m, "running_var", None) is not None]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = None  # the mean over batches
    with torch.no_grad():
        model.eval()
        for m in norms:
            m.train()
            for parameter, start in ((m.weight, 1.0), (m.bias, 0.0)):
                if parameter is not None:
                    parameter.copy_(start + 0.2 * torch.randn_like(parameter))
        call(model, x)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            m.running_var *= torch.rand_like(m.running_var) + 0.5
            m.running_mean += 0.2 * m.running_var.sqrt() * torch.randn_like(m.running_mean)


def worst_error(
    net: Supernet, x: Samples, dtype: torch.dtype, task: Task
) -> tuple[float, str, float]:
    """Largest relative error of a merged block or of the outputs, where, and its own rounding."""
    settings = MergeSettings(tolerance_float32=1e9, tolerance_float64=1e9)
    checks = verify(net, x, settings, dtypes=(dtype,), sources=("images",), task=task)
    check = max(checks, key=lambda c: (c.error != c.error, c.error))  # NaN is the worst
    return check.error, check.where or "outputs", check.rounding


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage.network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="LIBRARY/NETWORK, such as timm/test_resnet")
    parser.add_argument("--rounds", type=int, default=7, help="of timing; 0: none")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings(action="ignore"):
        print(json.dumps(measure(options.name, options.rounds)))


if __name__ == "__main__":
    main()
