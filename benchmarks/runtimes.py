"""Does what is faster in PyTorch stay faster elsewhere? The paper's four networks, four runtimes.

    python benchmarks/runtimes.py                       # CPU, batch 1 and 16
    python benchmarks/runtimes.py --network timm/resnet34 --runtime eager,onnxruntime

Random weights at 224 px; 6 blocks pruned as `speed.py` does ("preferred": where it saves most in
eager mode at this batch size, with the candidates that take least away). The same two models then
run in each runtime, interleaved, as `updp bench` does. A network and batch size that is done is
kept: the same command goes on with the next, `--fresh` measures again. Results:
docs/results/runtimes-DEVICE.json, docs/runtimes.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from speed import PLANS, cheapest, device_name, merged, slug

from updp.blocks import find
from updp.candidates import choose
from updp.cli.progress import Bars
from updp.compare import RUNTIMES, Bench, Grid, Pair, Row, measure
from updp.engine.files import read_json, write_json, write_text
from updp.measure import count_macs
from updp.models import load_model
from updp.opening import as_device
from updp.recipe import Recipe
from updp.rundir import versions

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


def pruned(name: str, batch: int, device: torch.device) -> tuple[Pair, dict[str, Any]]:
    """Baseline and merged model of one network, and what was pruned."""
    x = torch.randn(2, *SIZE, device=device)
    model = load_model(name).to(device).eval()
    recipe = Recipe().updated(f"measure.batch_size={batch}")
    offers, _ = choose(model, find(model, x), recipe, device)
    plan = cheapest(offers, BLOCKS, fastest=False)
    other = load_model(name).to(device).eval()
    other = merged(other, find(other, x), plan)
    baseline = load_model(name).to(device).eval()
    about = {
        "plan": {site: offer.candidate.label for site, offer in plan.items()},
        "macs_ratio": count_macs(baseline, x[:1]) / count_macs(other, x[:1]),
    }
    return Pair(("baseline", "merged"), (baseline, other), SIZE), about


def entry(
    name: str, batch: int, runtimes: list[str], rounds: int, device: torch.device, bars: Bars
) -> dict[str, Any]:
    """One network at one batch size, in each runtime."""
    bars.say(f"{name}, batch {batch}: timing candidates")
    with warnings.catch_warnings(action="ignore"):
        pair, about = pruned(name, batch, device)
        grid = Grid.of(runtimes, [batch])
        *_, record = measure(pair, grid, device, rounds=rounds, progress=bars)
    return {"network": name, "batch": batch, **about, "bench": record.model_dump(mode="json")}


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--runtime", default=",".join(RUNTIMES), help="with commas")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results go")
    options = parser.parse_args()
    device, runtimes = as_device(options.device), options.runtime.split(",")
    Grid.of(runtimes, options.batch)  # wrong names are told now
    where = device_name(device)
    file = options.docs / "results" / f"runtimes-{slug(where)}.json"
    known = read_json(file)["entries"] if file.exists() else []
    entries = {(e["network"], e["batch"]): e for e in known}
    with Bars(Console()) as bars:
        for name in options.network:
            for batch in options.batch:
                done = entries.get((name, batch), {"bench": {"rows": []}})["bench"]["rows"]
                there = {row["setting"]["runtime"] for row in done if not row["failure"]}
                if there >= set(runtimes) and not options.fresh:
                    bars.say(f"{name}, batch {batch}: is there")
                    continue
                new = entry(name, batch, runtimes, options.rounds, device, bars)
                entries[name, batch] = new
                own = {}
                for row in new["bench"]["rows"]:
                    own |= row["versions"]
                order = sorted(entries, key=lambda key: (NETWORKS.index(key[0]), key[1]))
                result = {
                    "device": where,
                    "versions": versions() | own,
                    "entries": [entries[key] for key in order],
                }
                write_json(file, result)
                found = sorted(file.parent.glob("runtimes-*.json"))
                write_text(options.docs / "runtimes.md", table([read_json(f) for f in found]))


if __name__ == "__main__":
    main()
