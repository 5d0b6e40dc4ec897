"""Predicted against measured latency of whole plans, for the paper's four networks.

    python -m benchmarks.speed.latency                       # CPU, eager, batch 4
    python -m benchmarks.speed.latency --runtime onnxruntime --plans 6
    python -m benchmarks.speed.latency --network timm/resnet34 --batch 1 --plans 2 --output DIR

Random plans of random weights at 224 px, from few sites to all, each site with a random candidate.
Predicted: the baseline's latency less what each candidate saves, timed alone, times a factor for
the whole model, as the search does. Measured: end to end, interleaved with the baseline, as a share
of which both are compared. Results: results/latency-DEVICE-RUNTIME.json, docs/results/latency.md.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch

from benchmarks.common.markdown import table
from benchmarks.common.output import Result, device_name, make_parser, slug
from benchmarks.speed.pruned_networks import NETWORKS, SIZE, load
from updp.blocks import find
from updp.candidates import make_offers
from updp.measure import compare_modules
from updp.recipe import Recipe
from updp.stages.sites import in_place
from updp.supernet import Supernet
from updp.supernet.timing import time_plans

INTRO = """# Predicted and measured latency

Made by `python -m benchmarks.speed.latency`: random plans of the paper's four networks, random
weights, 224 px; latency as a share of the baseline's; error relative to the measured.
"""
GROUP = 5  # plans timed together: many models at once do not fit into memory


def measure(network: str, recipe: Recipe, plans: int, device: torch.device) -> list[Result]:
    """Share of the baseline's latency, predicted and measured, of random plans."""
    torch.manual_seed(0)
    settings = recipe.measure
    baseline = load(network, device)
    x = torch.randn(settings.batch_size, *SIZE, device=device)
    offers, _ = make_offers(baseline, find(baseline, x[:2]), recipe, device)
    alone = compare_modules({"baseline": baseline}, x, settings=settings, rounds=settings.rounds)
    whole = alone["baseline"].ms.median
    model = copy.deepcopy(baseline)
    candidates = {name: [o.candidate for o in site_offers] for name, site_offers in offers.items()}
    net = Supernet(model, find(model, x[:2]), candidates).eval()
    factor = in_place(baseline, net, offers, whole, x, settings)
    chance = random.Random(0)
    chosen = []
    for i in range(plans):
        count = max(1, round(len(offers) * (i + 1) / plans))
        sites = chance.sample(list(offers), count)
        chosen.append({name: chance.choice(offers[name]) for name in offers if name in sites})
    rows = []
    for start in range(0, plans, GROUP):
        group = chosen[start : start + GROUP]
        choices = [{name: o.candidate.label for name, o in plan.items()} for plan in group]
        times = time_plans(baseline, net, choices, x, settings)
        for plan, latency in zip(group, times, strict=True):
            share = 1 / latency.speedup.median
            predicted = 1 - factor * sum(o.saved_ms for o in plan.values()) / whole
            rows.append(
                {
                    "network": network.partition("/")[2],
                    "blocks": len(plan),
                    "predicted": predicted,
                    "measured": share,
                    "error": abs(predicted / share - 1),
                }
            )
    return rows


def page(results: Sequence[Result]) -> str:
    """The Markdown page, with a table for each device, runtime and batch size."""
    lines = [INTRO]
    columns = ("network", "plans", "shares measured", "median error", "90th percentile")
    right = ("plans", "median error", "90th percentile")
    for result in results:
        networks = dict.fromkeys(row["network"] for row in result["rows"])
        groups = {n: [r for r in result["rows"] if r["network"] == n] for n in networks}
        rows = []
        for name, group in {**groups, "all": result["rows"]}.items():
            errors = [100 * row["error"] for row in group]
            shares = [row["measured"] for row in group]
            rows.append(
                (
                    name,
                    len(group),
                    f"{min(shares):.2f} to {max(shares):.2f}",
                    f"{median(errors):.1f} %",
                    f"{np.quantile(errors, 0.9):.1f} %",
                )
            )
        title = f"## {result['device']}, {result['runtime']}, batch {result['batch']}"
        lines += [title, "", *table(columns, rows, right), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    recipe = Recipe().updated(
        f"measure.batch_size={options.batch}", f"measure.runtime={options.runtime}"
    )
    rows: list[Result] = []
    with warnings.catch_warnings(action="ignore"):
        for network in options.network:
            found = measure(network, recipe, options.plans, device)
            print(network, [f"{100 * row['error']:.1f}" for row in found])
            rows += found
    where = device_name(device)
    result = {"device": where, "runtime": options.runtime, "batch": options.batch, "rows": rows}
    options.output.write(f"latency-{slug(where)}-{options.runtime}", result)
    options.output.write_page("latency", page(options.output.read("latency-*")))


if __name__ == "__main__":
    main()
