"""Does what is faster in PyTorch stay faster elsewhere? The paper's four networks, four runtimes.

    python benchmarks/runtimes.py                       # CPU, batch 1 and 16
    python benchmarks/runtimes.py --network timm/resnet34 --runtime eager onnxruntime --batch 1

Random weights at 224 px; 6 blocks pruned as `speed.py` does ("preferred": where it saves most in
eager mode at this batch size, with the candidates that take least away). The same two models then
run in each runtime, interleaved, as `updp bench` does. Each row is kept: the same command measures
only what is missing, `--fresh` measures again what it is asked for. The plan of a network and batch
size is chosen once, so that its rows can be compared: to choose anew, move the results away.
Results: docs/results/runtimes-DEVICE.json, docs/runtimes.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from speed import PLANS, cheapest, device_name, slug
from torch import Tensor, nn

from updp.blocks import find
from updp.candidates import make_offers, proposals
from updp.cli.progress import Bars
from updp.deploy.bench import RUNTIMES, Bench, Grid, Pair, Row, measure
from updp.deploy.bench.benchmark import LEAST_ROUNDS
from updp.errors import UserError
from updp.io.files import read_json, write_json, write_text
from updp.measure import count_macs
from updp.models import load_model
from updp.recipe import Recipe
from updp.run.inputs import as_device
from updp.run.records import versions
from updp.supernet import Supernet

ROOT = Path(__file__).parent.parent
BLOCKS = 6
SIZE = (3, 224, 224)
NETWORKS = tuple(name for name, blocks, _ in PLANS if blocks == BLOCKS)
TITLES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
INTRO = f"""# Speed-up in each runtime

Made by `python benchmarks/runtimes.py`: random weights, 224 px, float32, {BLOCKS} blocks pruned
as in [speed.md](speed.md) ("preferred", chosen in eager mode at this batch size); the same merged
model against the same baseline in each runtime, interleaved in one process. Median (quartiles) of
the ratio of times; *no difference*: the quartiles lie on both sides of 1. Last column: the
quartiles of ONNX Runtime's speed-up lie above eager's, below, or overlap.
"""


def chosen(name: str, batch: int, device: torch.device) -> dict[str, str]:
    """What to prune in a network: each site's candidate, by its label."""
    model = load_model(name).to(device).eval()
    recipe = Recipe().updated(f"measure.batch_size={batch}")
    offers, _ = make_offers(
        model, find(model, torch.randn(2, *SIZE, device=device)), recipe, device
    )
    plan = cheapest(offers, BLOCKS, fastest=False)
    return {site: offer.candidate.label for site, offer in plan.items()}


def merged(model: nn.Module, x: Tensor, plan: Mapping[str, str]) -> nn.Module:
    """`model` by `plan`, without timing anything; x (N, C, H, W). Raises UserError."""
    findings = find(model, x)
    candidates = {}
    for site in findings.sites:
        if site.name in plan:
            block, graph = model.get_submodule(site.block), findings.graphs[site.block]
            offered = proposals(site, block, graph, Recipe().candidates)
            candidates[site.name] = tuple(c for c in offered if c.label == plan[site.name])
    if gone := [site for site in plan if not candidates.get(site)]:
        raise UserError(
            f"the plan kept in the results has {plan[gone[0]]!r} at {gone[0]}, which is offered "
            "no longer: move the results away"
        )
    net = Supernet(model, findings, candidates).eval()
    net.choose(dict(plan))
    return net.merged()


def pruned(name: str, plan: Mapping[str, str], device: torch.device) -> tuple[Pair, float]:
    """Baseline and merged model of one network, and the ratio of their MACs. Raises UserError."""
    x = torch.randn(2, *SIZE, device=device)
    baseline, other = (load_model(name).to(device).eval() for _ in range(2))
    other = merged(other, x, plan)
    ratio = count_macs(baseline, x[:1]) / count_macs(other, x[:1])
    return Pair(("baseline", "merged"), (baseline, other), SIZE), ratio


def missing(known: dict[str, Any] | None, grid: Grid, device: torch.device) -> list[str]:
    """The runtimes of a grid of one batch size that `known` has no figures of."""
    rows = Bench.model_validate(known["bench"]).measured if known else []
    measured = {row.setting for row in rows}
    return [s.runtime for s in grid.settings(device) if s not in measured]


def grown(
    known: dict[str, Any] | None,
    name: str,
    grid: Grid,
    rounds: int,
    device: torch.device,
    bars: Bars,
) -> Iterator[dict[str, Any]]:
    """One network at one batch size: its entry after each row that is added. Raises UserError."""
    (batch,) = grid.batch_sizes
    bars.say(f"{name}, batch {batch}: {', '.join(grid.runtimes)}")
    plan = known["plan"] if known else chosen(name, batch, device)
    pair, ratio = pruned(name, plan, device)
    bench = Bench(names=pair.names, input_shape=pair.shape)
    if known:
        bench = Bench.model_validate(known["bench"])
    about = {"network": name, "batch": batch, "plan": plan, "macs_ratio": ratio}
    try:
        for record in measure(pair, grid, device, rounds=rounds, progress=bars):
            bench = bench.with_row(record.rows[-1])
            yield {**about, "bench": bench.model_dump(mode="json")}
    except UserError as error:  # none of them runs, as their rows say: others may
        bars.say(f"{name}, batch {batch}: {error}")


def used_versions(entries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of all that measured them; several where rows are of different days."""
    found: dict[str, dict[str, None]] = {}
    rows = [row for entry in entries for row in entry["bench"]["rows"]]
    for about in [r["versions"] for r in rows if r["versions"]] or [versions()]:
        for package, number in about.items():
            found.setdefault(package, {})[number] = None
    return {package: " and ".join(numbers) for package, numbers in found.items()}


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.speedup is None:
        return f"not run: {row.failure}".replace("|", "/")
    interval = f"({row.speedup.low:.2f}-{row.speedup.high:.2f})"
    claimed = row.verdict != "no difference"
    return f"{row.speedup.median:.2f}x {interval}" if claimed else f"no difference {interval}"


def against_eager(rows: dict[str, Row]) -> str:
    """ONNX Runtime's speed-up beside eager's."""
    pair = [rows[name].speedup for name in ("onnxruntime", "eager") if name in rows]
    if len(pair) < 2 or pair[0] is None or pair[1] is None:
        return ""
    if pair[0].overlaps(pair[1]):
        return "overlaps"
    return "above" if pair[0].median > pair[1].median else "below"


def milliseconds(row: Row | None) -> str:
    if row is None or row.baseline is None or row.other is None:
        return ""
    return f"{row.baseline.ms.median:.1f} > {row.other.ms.median:.1f}"


def table(results: list[dict[str, Any]]) -> str:
    lines = [INTRO]
    for result in results:
        found = [
            (e, {r.setting.runtime: r for r in Bench.model_validate(e["bench"]).rows})
            for e in result["entries"]
        ]
        used = [name for name in RUNTIMES if any(name in rows for _, rows in found)]
        titles = " | ".join(TITLES[name] for name in used)
        marks = " --- |" * len(used)
        lines += [
            f"## {result['device']}",
            "",
            f"| network | batch | MACs ratio | {titles} | ONNX Runtime's against eager's |",
            f"| --- | ---: | ---: |{marks} --- |",
        ]
        for e, rows in found:
            cells = " | ".join(cell(rows.get(name)) for name in used)
            lines.append(
                f"| {e['network'].partition('/')[2]} | {e['batch']} | {e['macs_ratio']:.2f} "
                f"| {cells} | {against_eager(rows)} |"
            )
        lines += [
            "",
            "Milliseconds of a batch, baseline > merged (medians):",
            "",
            f"| network | batch | {titles} |",
            f"| --- | ---: |{marks}",
        ]
        for e, rows in found:
            cells = " | ".join(milliseconds(rows.get(name)) for name in used)
            lines.append(f"| {e['network'].partition('/')[2]} | {e['batch']} | {cells} |")
        said = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        lines += ["", f"Versions: {said}.", ""]
    return "\n".join(lines)


def write(docs: Path, file: Path, where: str, entries: dict[tuple[str, int], Any]) -> None:
    """The results so far, and the page of all devices."""
    order = sorted(entries, key=lambda key: (NETWORKS.index(key[0]), key[1]))
    kept = [entries[key] for key in order]
    write_json(file, {"device": where, "versions": used_versions(kept), "entries": kept})
    found = sorted(file.parent.glob("runtimes-*.json"))
    write_text(docs / "runtimes.md", table([read_json(f) for f in found]))


def run(options: argparse.Namespace) -> None:
    """Measure what is missing of what is asked for. Raises UserError."""
    device = as_device(options.device)
    runtimes, batches = (",".join(given).split(",") for given in (options.runtime, options.batch))
    grid = Grid.of(runtimes, batches)
    if options.rounds < LEAST_ROUNDS:
        raise UserError(f"--rounds {options.rounds}: quartiles want at least {LEAST_ROUNDS}")
    where = device_name(device)
    file = options.docs / "results" / f"runtimes-{slug(where)}.json"
    known = read_json(file)["entries"] if file.exists() else []
    entries = {(e["network"], e["batch"]): e for e in known}
    with Bars(Console()) as bars, warnings.catch_warnings(action="ignore"):
        for key in ((n, b) for n in options.network for b in grid.batch_sizes):
            name, batch = key
            part = Grid.of(grid.runtimes, [batch])
            left = grid.runtimes if options.fresh else missing(entries.get(key), part, device)
            if not left:
                bars.say(f"{name}, batch {batch}: is there")
                continue
            part = Grid.of(left, [batch])
            for entry in grown(entries.get(key), name, part, options.rounds, device, bars):
                entries[key] = entry
                write(options.docs, file, where, entries)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", nargs="+", default=["1", "16"], help="with spaces or commas")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--runtime", nargs="+", default=RUNTIMES, help="with spaces or commas")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results go")
    try:
        run(parser.parse_args(arguments))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
