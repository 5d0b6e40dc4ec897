"""Predicted against measured latency of whole plans, for the paper's four networks.

    python benchmarks/latency.py                       # CPU, eager, batch 4
    python benchmarks/latency.py --runtime onnxruntime --plans 6

Random plans of random weights at 224 px, from few sites to all, each site with a random candidate.
Predicted: the baseline's latency less what each candidate saves, timed alone, times a
factor for the whole model, as the search does.
Measured: end to end, interleaved with the baseline, as a share of which both are compared.
Results: docs/results/latency-DEVICE-RUNTIME.json, docs/latency.md.
"""

from __future__ import annotations

import argparse
import copy
import random
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from speed import device_name, slug

from updp.blocks import find
from updp.candidates import make_offers
from updp.io.files import read_json, write_json, write_text
from updp.measure import compare_modules
from updp.models import load_model
from updp.recipe import Recipe
from updp.run.records import versions
from updp.stages.sites import in_place
from updp.supernet import Supernet

ROOT = Path(__file__).parent.parent
NETWORKS = ("resnet34", "mobilenetv2_140", "convnext_tiny", "deit_tiny_patch16_224")
GROUP = 5  # plans timed together


def measure(name: str, recipe: Recipe, plans: int, device: torch.device) -> list[dict[str, Any]]:
    """Share of the baseline's latency, predicted and measured, of random plans."""
    torch.manual_seed(0)
    settings = recipe.measure
    baseline = load_model(f"timm/{name}").to(device).eval()
    x = torch.randn(settings.batch_size, 3, 224, 224, device=device)
    offers, _ = make_offers(baseline, find(baseline, x[:2]), recipe, device)
    alone = compare_modules({"baseline": baseline}, x, settings=settings, rounds=settings.rounds)
    whole = alone["baseline"].ms.median
    model = copy.deepcopy(baseline)
    candidates = {n: [o.candidate for o in found] for n, found in offers.items()}
    net = Supernet(model, find(model, x[:2]), candidates).eval()
    factor = in_place(baseline, net, offers, whole, x, settings)
    chance = random.Random(0)
    chosen = []
    for i in range(plans):
        count = max(1, round(len(offers) * (i + 1) / plans))
        sites = chance.sample(list(offers), count)
        chosen.append({n: chance.choice(offers[n]) for n in offers if n in sites})
    rows = []
    for start in range(0, plans, GROUP):
        modules = {"baseline": baseline}
        for number, plan in enumerate(chosen[start : start + GROUP]):
            net.choose({n: o.candidate.label for n, o in plan.items()})
            modules[str(number)] = net.merged()
        times = compare_modules(modules, x, settings=settings, rounds=9, round_seconds=0.1)
        for number, plan in enumerate(chosen[start : start + GROUP]):
            share = 1 / times[str(number)].speedup.median
            predicted = 1 - factor * sum(o.saved_ms for o in plan.values()) / whole
            rows.append(
                {
                    "network": name,
                    "blocks": len(plan),
                    "predicted": predicted,
                    "measured": share,
                    "error": abs(predicted / share - 1),
                }
            )
    return rows


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "# Predicted and measured latency",
        "",
        "Made by `python benchmarks/latency.py`: random plans of the paper's four networks, random",
        "weights, 224 px; latency as a share of the baseline's; error relative to the measured.",
        "",
    ]
    for result in results:
        lines += [
            f"## {result['device']}, {result['runtime']}, batch {result['batch']}",
            "",
            "| network | plans | shares measured | median error | 90th percentile |",
            "| --- | ---: | --- | ---: | ---: |",
        ]
        groups = {n: [r for r in result["rows"] if r["network"] == n] for n in NETWORKS}
        for name, rows in {**groups, "all": result["rows"]}.items():
            if not rows:
                continue
            errors = [100 * r["error"] for r in rows]
            shares = [r["measured"] for r in rows]
            lines.append(
                f"| {name} | {len(rows)} | {min(shares):.2f} to {max(shares):.2f} "
                f"| {median(errors):.1f} % | {np.quantile(errors, 0.9):.1f} % |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    options = parser.parse_args()
    device = torch.device(options.device)
    recipe = Recipe().updated(
        f"measure.batch_size={options.batch}", f"measure.runtime={options.runtime}"
    )
    rows = []
    with warnings.catch_warnings(action="ignore"):
        for name in options.network:
            rows += measure(name, recipe, options.plans, device)
            print(name, [f"{100 * r['error']:.1f}" for r in rows if r["network"] == name])
    where = device_name(device)
    result = {
        "device": where,
        "runtime": options.runtime,
        "batch": options.batch,
        "versions": versions(),
        "rows": rows,
    }
    folder = ROOT / "docs/results"
    write_json(folder / f"latency-{slug(where)}-{options.runtime}.json", result)
    found = [read_json(file) for file in sorted(folder.glob("latency-*.json"))]
    write_text(ROOT / "docs/latency.md", table(found))


if __name__ == "__main__":
    main()
