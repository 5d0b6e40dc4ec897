"""How much faster the paper's four networks become, at random weights and 224 px.

    python benchmarks/speed.py                                # CPU, batch 1 and 16
    python benchmarks/speed.py --device cuda --batch 128 --half

For each network every site is timed with each of its candidates, as `updp inspect` does; the k
sites that save most milliseconds are pruned with the candidate that takes least away
("preferred") and, apart, with the fastest one that keeps an operator ("fastest"). The merged model
is then timed against the baseline, interleaved in one process: median and quartiles of the ratio,
beside the ratio of multiply-accumulates. Results: docs/results/speed-DEVICE.json, docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from updp.blocks import Findings, find
from updp.candidates import Drop, Offer, make_offers
from updp.io.files import write_json
from updp.measure import compare_modules, count_macs
from updp.models import load_model
from updp.recipe import Recipe
from updp.run.records import versions
from updp.supernet import Supernet

ROOT = Path(__file__).parent.parent
INTRO = """# Speed of the paper's four networks

Made by `python benchmarks/speed.py`: random weights, 224 px, merged against baseline, interleaved
in one process, median (quartiles) of the ratio of times. The MACs ratio is about the limit.
*preferred*: the candidate that takes least away; *fastest*: that of fewest milliseconds which
still has an operator.
"""
HALF = ("measure.precision=float16", "measure.layout=channels_last")
# Network, blocks to prune, and what the issue asked for.
PLANS = [
    ("timm/deit_tiny_patch16_224", 6, 1.26),
    ("timm/convnext_tiny", 6, 1.25),
    ("timm/convnext_tiny", 9, 1.45),
    ("timm/convnext_tiny", 12, 1.8),
    ("timm/mobilenetv2_140", 6, 1.5),
    ("timm/resnet34", 6, 1.25),
]


def cheapest(offers: dict[str, Sequence[Offer]], k: int, fastest: bool) -> dict[str, Offer]:
    """The k sites that save most, each with one candidate."""
    chosen = {}
    for name, found in offers.items():
        kept = [o for o in found if not isinstance(o.candidate, Drop)]
        if kept:
            chosen[name] = max(kept, key=lambda o: o.saved_ms) if fastest else kept[0]
    best = sorted(chosen.values(), key=lambda o: -o.saved_ms)[:k]
    return {o.site: o for o in best}


def merged(model: nn.Module, findings: Findings, chosen: dict[str, Offer]) -> nn.Module:
    """The model with these sites pruned and merged, and the baseline's own weights intact."""
    net = Supernet(model, findings, {n: (o.candidate,) for n, o in chosen.items()}).eval()
    net.choose({n: o.candidate.label for n, o in chosen.items()})
    return net.merged()


def measure(name: str, batches: list[int], device: torch.device, half: bool) -> list[dict]:
    """Every plan of one network at every batch size."""
    rows = []
    for batch in batches:
        model = load_model(name).to(device).eval()
        findings = find(model, torch.randn(2, 3, 224, 224, device=device))
        recipe = Recipe().updated(f"measure.batch_size={batch}", *(HALF if half else ()))
        offers, _ = make_offers(model, findings, recipe, device)
        x = torch.randn(batch, 3, 224, 224, device=device)
        for network, k, target in PLANS:
            if network != name:
                continue
            for fastest in (False, True):
                plan = cheapest(offers, k, fastest)
                model = load_model(name).to(device).eval()
                pruned = merged(model, find(model, x[:2]), plan)
                baseline = load_model(name).to(device).eval()
                macs = count_macs(baseline, x[:1]), count_macs(pruned, x[:1])
                pair = {"baseline": baseline, "merged": pruned}
                times = compare_modules(pair, x, settings=recipe.measure, rounds=21)
                ratio = times["merged"].speedup
                rows.append(
                    {
                        "network": name,
                        "k": k,
                        "target": target,
                        "batch": batch,
                        "candidates": "fastest" if fastest else "preferred",
                        "plan": {n: o.candidate.label for n, o in plan.items()},
                        "macs": list(macs),
                        "macs_ratio": macs[0] / macs[1],
                        "baseline_ms": vars(times["baseline"].ms),
                        "merged_ms": vars(times["merged"].ms),
                        "speedup": vars(ratio),
                    }
                )
                print(name, k, batch, rows[-1]["candidates"], f"{macs[0] / macs[1]:.2f}", ratio)
    return rows


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """A device's name as part of a file's."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def table(results: list[dict[str, Any]]) -> str:
    lines = [INTRO]
    for result in results:
        lines += [
            f"## {result['device']}{', half precision, channels_last' * result['half']}",
            "",
            "| network | P | batch | candidates | MACs ratio | speed-up | asked for |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for r in result["rows"]:
            s = r["speedup"]
            lines.append(
                f"| {r['network'].partition('/')[2]} | {r['k']} | {r['batch']} | {r['candidates']} "
                f"| {r['macs_ratio']:.2f} | {s['median']:.2f}x ({s['low']:.2f}-{s['high']:.2f}) "
                f"| {r['target']}x |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--half", action="store_true", help="half precision, channels_last")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    with warnings.catch_warnings(action="ignore"):
        for name in dict.fromkeys(network for network, *_ in PLANS):
            rows += measure(name, options.batch, device, options.half)
    name = device_name(device)
    result = {"device": name, "half": options.half, "versions": versions(), "rows": rows}
    folder = ROOT / "docs/results"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"speed-{slug(name)}.json", result)
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("speed-*.json"))]
    (ROOT / "docs/speed.md").write_text(table(results))


if __name__ == "__main__":
    main()
