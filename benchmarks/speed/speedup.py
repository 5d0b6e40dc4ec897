"""Speed-up of the paper's four networks at random weights and 224 px.

    python -m benchmarks.speed.speedup                                # CPU, batch 1 and 16
    python -m benchmarks.speed.speedup --device cuda --batch 128 --half
    python -m benchmarks.speed.speedup --network timm/resnet34 --batch 1 --rounds 3 --output DIR

For each network every site is timed with each of its candidates, as `updp inspect` does; the k
sites that save most milliseconds are pruned with the candidate that takes least away
("preferred") and, apart, with the fastest one that keeps an operator ("fastest"). The merged model
is then timed against the baseline, interleaved in one process: median and quartiles of the ratio,
beside the ratio of multiply-accumulates. Results: results/speedup-DEVICE.json,
docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

import updp
from benchmarks.common.markdown import quartiles, table
from benchmarks.common.output import Result, device_name, make_parser, slug
from benchmarks.speed.pruned_networks import NETWORKS, SIZE, cheapest, load, merged, offers_of
from updp.blocks import find
from updp.errors import UserError
from updp.measure import count_macs
from updp.recipe import Recipe

INTRO = """# Speed of the paper's four networks

Made by `python -m benchmarks.speed.speedup`: random weights, 224 px, merged against baseline,
interleaved in one process, median (quartiles) of the ratio of times. The MACs ratio is about the
limit. *preferred*: the candidate that takes least away; *fastest*: that of fewest milliseconds
which still has an operator.
"""
# Blocks to prune, and the speed-up that was asked for.
PLANS = {
    "timm/deit_tiny_patch16_224": ((6, 1.26),),
    "timm/convnext_tiny": ((6, 1.25), (9, 1.45), (12, 1.8)),
    "timm/mobilenetv2_140": ((6, 1.5),),
    "timm/resnet34": ((6, 1.25),),
}


def measure(network: str, batch: int, options: argparse.Namespace) -> Iterator[Result]:
    """A row for each plan of one network at one batch size."""
    device = torch.device(options.device)
    precision, layout = ("float16", "channels_last") if options.half else ("float32", "contiguous")
    recipe = Recipe().updated(
        f"measure.batch_size={batch}", f"measure.precision={precision}", f"measure.layout={layout}"
    )
    offers = offers_of(network, recipe, device)
    x = torch.randn(2, *SIZE, device=device)
    for blocks, target in PLANS[network]:
        for candidates in ("preferred", "fastest"):
            plan = cheapest(offers, blocks, fastest=candidates == "fastest")
            baseline, model = load(network, device), load(network, device)
            pruned = merged(model, find(model, x), {n: o.candidate for n, o in plan.items()})
            macs = count_macs(baseline, x[:1]), count_macs(pruned, x[:1])
            (row,) = updp.bench(
                baseline,
                pruned,
                runtimes=["eager"],
                batch_sizes=[batch],
                precisions=[precision],
                layouts=[layout],
                rounds=options.rounds,
                device=options.device,
                input_size=SIZE,
            ).rows
            if row.baseline is None or row.other is None or row.speedup is None:
                raise UserError(f"{network} cannot be timed: {row.failure}")
            print(network, blocks, batch, candidates, f"{macs[0] / macs[1]:.2f}", row.speedup)
            yield {
                "network": network,
                "k": blocks,
                "target": target,
                "batch": batch,
                "candidates": candidates,
                "plan": {n: o.candidate.label for n, o in plan.items()},
                "macs": list(macs),
                "macs_ratio": macs[0] / macs[1],
                "baseline_ms": asdict(row.baseline.ms),
                "merged_ms": asdict(row.other.ms),
                "speedup": asdict(row.speedup),
            }


def page(results: Sequence[Result]) -> str:
    """The Markdown page, with a table for each device."""
    lines = [INTRO]
    columns = ("network", "P", "batch", "candidates", "MACs ratio", "speed-up", "asked for")
    for result in results:
        rows = [
            (
                row["network"].partition("/")[2],
                row["k"],
                row["batch"],
                row["candidates"],
                f"{row['macs_ratio']:.2f}",
                quartiles(row["speedup"], "x"),
                f"{row['target']}x",
            )
            for row in result["rows"]
        ]
        half = ", half precision, channels_last" if result["half"] else ""
        lines += [f"## {result['device']}{half}", "", *table(columns, rows), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--half", action="store_true", help="half precision, channels_last")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved repetitions")
    options = parser.parse_args(arguments)
    rows: list[Result] = []
    with warnings.catch_warnings(action="ignore"):
        for network in options.network:
            for batch in options.batch:
                rows += measure(network, batch, options)
    device = device_name(torch.device(options.device))
    result = {"device": device, "half": options.half, "rows": rows}
    options.output.write(f"speedup-{slug(device)}", result)
    options.output.write_page("speed", page(options.output.read("speedup-*")))


if __name__ == "__main__":
    main()
