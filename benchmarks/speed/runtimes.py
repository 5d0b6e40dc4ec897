"""Does what is faster in PyTorch stay faster elsewhere? The paper's four networks, four runtimes.

    python -m benchmarks.speed.runtimes                       # CPU, batch 1 and 16
    python -m benchmarks.speed.runtimes --network timm/resnet34 --runtime eager --batch 1

Random weights at 224 px; 6 blocks pruned as `speedup` does ("preferred": where it saves most in
eager mode at this batch size, with the candidates that take least away). The same two models then
run in each runtime, interleaved, as `updp bench` does. Each row is kept: the same command measures
only what is missing, `--fresh` measures again what it is asked for. The plan of a network and batch
size is chosen once, so that its rows can be compared: to choose anew, move the results away.
Results: results/runtimes-DEVICE.json, docs/results/runtimes.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.common.markdown import quartiles, table
from benchmarks.common.output import Output, Result, device_name, make_parser, slug
from benchmarks.speed import pruned_networks
from benchmarks.speed.pruned_networks import NETWORKS, SIZE, cheapest, load, offers_of
from updp.blocks import find
from updp.candidates import proposals
from updp.deploy.bench import RUNTIMES, Bench, Grid, Pair, Row, measure
from updp.deploy.bench.benchmark import LEAST_ROUNDS
from updp.errors import UserError
from updp.io.bars import Bars
from updp.measure import count_macs
from updp.recipe import Recipe
from updp.run.inputs import as_device
from updp.run.records import versions

BLOCKS = 6
TITLES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
INTRO = f"""# Speed-up in each runtime

Made by `python -m benchmarks.speed.runtimes`: random weights, 224 px, float32, {BLOCKS} blocks
pruned as in [speed.md](speed.md) ("preferred", chosen in eager mode at this batch size); the same
merged model against the same baseline in each runtime, interleaved in one process. Median
(quartiles) of the ratio of times; *no difference*: the quartiles lie on both sides of 1. Last
column: the quartiles of ONNX Runtime's speed-up lie above eager's, below, or overlap.
"""


def chosen(network: str, batch: int, device: torch.device) -> dict[str, str]:
    """What to prune in a network: each site's candidate, by its label."""
    offers = offers_of(network, Recipe().updated(f"measure.batch_size={batch}"), device)
    plan = cheapest(offers, BLOCKS, fastest=False)
    return {site: offer.candidate.label for site, offer in plan.items()}


def merged(model: nn.Module, x: Tensor, plan: Mapping[str, str]) -> nn.Module:
    """`model` pruned by the labels in `plan`, without timing anything; x (N, C, H, W).

    Raises UserError: a site has no candidate of that label any more.
    """
    findings = find(model, x)
    candidates = {}
    for site in findings.sites:
        if site.name in plan:
            for candidate in proposals(findings.traced(site, model), Recipe().candidates):
                if candidate.label == plan[site.name]:
                    candidates[site.name] = candidate
    if gone := [site for site in plan if site not in candidates]:
        raise UserError(
            f"the plan kept in the results has {plan[gone[0]]!r} at {gone[0]}, which is offered "
            "no longer: move the results away"
        )
    return pruned_networks.merged(model, findings, candidates)


def pruned(network: str, plan: Mapping[str, str], device: torch.device) -> tuple[Pair, float]:
    """Baseline and merged model of one network, and the ratio of their MACs. Raises UserError."""
    x = torch.randn(2, *SIZE, device=device)
    baseline = load(network, device)
    other = merged(load(network, device), x, plan)
    ratio = count_macs(baseline, x[:1]) / count_macs(other, x[:1])
    return Pair(("baseline", "merged"), (baseline, other), SIZE), ratio


def missing(known: Result | None, grid: Grid, device: torch.device) -> list[str]:
    """The runtimes of a grid of one batch size that `known` has no figures of."""
    rows = Bench.model_validate(known["bench"]).measured if known else []
    measured = {row.setting for row in rows}
    return [s.runtime for s in grid.settings(device) if s not in measured]


def add_rows(
    known: Result | None, network: str, grid: Grid, rounds: int, device: torch.device, bars: Bars
) -> Iterator[Result]:
    """Measure one network at one batch size: its entry after each row that is added.

    Raises UserError.
    """
    (batch,) = grid.batch_sizes
    bars.say(f"{network}, batch {batch}: {', '.join(grid.runtimes)}")
    plan = known["plan"] if known else chosen(network, batch, device)
    pair, ratio = pruned(network, plan, device)
    bench = Bench(names=pair.names, input_shape=pair.shape)
    if known:
        bench = Bench.model_validate(known["bench"])
    about = {"network": network, "batch": batch, "plan": plan, "macs_ratio": ratio}
    try:
        for record in measure(pair, grid, device, rounds=rounds, progress=bars):
            bench = bench.with_row(record.rows[-1])
            yield {**about, "bench": bench.model_dump(mode="json")}
    except UserError as error:  # none of these runtimes works, as the rows say: others may
        bars.say(f"{network}, batch {batch}: {error}")


def used_versions(entries: Sequence[Result]) -> dict[str, str]:
    """Versions that measured the rows; several of a package where rows are of different days."""
    found: dict[str, dict[str, None]] = {}
    rows = [row for entry in entries for row in entry["bench"]["rows"]]
    for row_versions in [r["versions"] for r in rows if r["versions"]] or [versions()]:
        for package, number in row_versions.items():
            found.setdefault(package, {})[number] = None
    return {package: " and ".join(numbers) for package, numbers in found.items()}


def speedup_cell(row: Row | None) -> str:
    """The speed-up with its quartiles, "no difference", or why it was not run."""
    if row is None:
        return ""
    if row.speedup is None:
        return f"not run: {row.failure}"
    if row.verdict == "no difference":
        return f"no difference ({row.speedup.low:.2f}-{row.speedup.high:.2f})"
    return quartiles(vars(row.speedup), "x")


def milliseconds_cell(row: Row | None) -> str:
    """Median milliseconds of the baseline and of the merged model."""
    if row is None or row.baseline is None or row.other is None:
        return ""
    return f"{row.baseline.ms.median:.1f} > {row.other.ms.median:.1f}"


def against_eager(rows: Mapping[str, Row]) -> str:
    """Whether ONNX Runtime's speed-up is above eager's, below, or overlaps with it."""
    if "onnxruntime" not in rows or "eager" not in rows:
        return ""
    onnx, eager = rows["onnxruntime"].speedup, rows["eager"].speedup
    if onnx is None or eager is None:
        return ""
    if onnx.overlaps(eager):
        return "overlaps"
    return "above" if onnx.median > eager.median else "below"


def page(results: Sequence[Result]) -> str:
    """The Markdown page, with two tables for each device."""
    lines = [INTRO]
    for result in results:
        entries = [
            (e, {r.setting.runtime: r for r in Bench.model_validate(e["bench"]).rows})
            for e in result["entries"]
        ]
        used = [name for name in RUNTIMES if any(name in rows for _, rows in entries)]
        titles = [TITLES[name] for name in used]
        speedups, times = [], []
        for entry, rows in entries:
            name, batch = entry["network"].partition("/")[2], entry["batch"]
            cells = [speedup_cell(rows.get(runtime)) for runtime in used]
            ratio = f"{entry['macs_ratio']:.2f}"
            speedups.append((name, batch, ratio, *cells, against_eager(rows)))
            times.append((name, batch, *(milliseconds_cell(rows.get(runtime)) for runtime in used)))
        columns = ("network", "batch", "MACs ratio", *titles, "ONNX Runtime's against eager's")
        used_packages = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
        lines += [
            f"## {result['device']}",
            "",
            *table(columns, speedups, ("batch", "MACs ratio")),
            "",
            "Milliseconds of a batch, baseline > merged (medians):",
            "",
            *table(("network", "batch", *titles), times, ("batch",)),
            "",
            f"Versions: {used_packages}.",
            "",
        ]
    return "\n".join(lines)


def write(output: Output, device: str, entries: Mapping[tuple[str, int], Any]) -> None:
    """Write the results so far, and the page of all devices."""
    order = sorted(entries, key=lambda key: (NETWORKS.index(key[0]), key[1]))
    kept = [entries[key] for key in order]
    result = {"device": device, "versions": used_versions(kept), "entries": kept}
    output.write(f"runtimes-{slug(device)}", result)
    output.write_page("runtimes", page(output.read("runtimes-*")))


def run(options: argparse.Namespace) -> None:
    """Measure what is missing of what is asked for. Raises UserError."""
    device, output = as_device(options.device), options.output
    runtimes, batches = (",".join(words).split(",") for words in (options.runtime, options.batch))
    grid = Grid.of(runtimes, batches)
    if options.rounds < LEAST_ROUNDS:
        raise UserError(f"--rounds {options.rounds}: quartiles want at least {LEAST_ROUNDS}")
    where = device_name(device)
    known = [e for r in output.read(f"runtimes-{slug(where)}") for e in r["entries"]]
    entries = {(e["network"], e["batch"]): e for e in known}
    with Bars(Console()) as bars, warnings.catch_warnings(action="ignore"):
        for key in ((n, b) for n in options.network for b in grid.batch_sizes):
            network, batch = key
            part = Grid.of(grid.runtimes, [batch])
            left = grid.runtimes if options.fresh else missing(entries.get(key), part, device)
            if not left:
                bars.say(f"{network}, batch {batch}: was measured before")
                continue
            part = Grid.of(left, [batch])
            for entry in add_rows(entries.get(key), network, part, options.rounds, device, bars):
                entries[key] = entry
                write(output, where, entries)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", nargs="+", default=["1", "16"], help="with spaces or commas")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--runtime", nargs="+", default=RUNTIMES, help="with spaces or commas")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    try:
        run(parser.parse_args(arguments))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
