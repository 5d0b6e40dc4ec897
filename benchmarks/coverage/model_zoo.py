"""What updp can do with networks that it was not written for.

Every torchvision classifier, and of every model file of timm its smallest network, at random
weights with random BatchNorm statistics: which sites are found; half of them are pruned, merged and
verified in float64 and float32, block by block and end to end; how much faster the merged model is.
Then the other half, with other candidates, is verified too (of networks up to 25 M parameters). A
network is *exact*, *none* (no block can be pruned, with the reason) or *failed*.

    python benchmarks/coverage.py                      # all that is missing or failed before
    python benchmarks/coverage.py timm/convnext_atto torchvision/vgg11_bn
    python benchmarks/coverage.py --table              # only write the table again

Each network has a process of its own, with a time limit. Results: docs/results/coverage.json and,
as a table, docs/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS, TABLE = ROOT / "docs/results/coverage.json", ROOT / "docs/coverage.md"
INTRO = """# Coverage

Made by `python benchmarks/coverage.py`: random weights, random BatchNorm statistics, half of the
sites pruned; one CPU thread, batch 1, on a machine that did other work too, so speed-ups are rough.
*exact*: merged equals trained; relative error, of every merged block and of the logits, at most
1e-12 in float64 and 1e-5 in float32, or 4 times what the unmerged network itself loses in that
precision. Each site takes the last candidate proposed that keeps an operator, for the check's sake;
that is not the fastest one: docs/speed.md is about speed.
"""
LARGE = 25e6
LIMIT_SECONDS = 1800
FLOAT64, FLOAT32 = 1e-12, 1e-5


def torchvision_names() -> list[str]:
    """Every classifier, smallest first."""
    from torchvision import models

    names = models.list_models(module=models)
    size = {n: models.get_model_weights(n).DEFAULT.meta["num_params"] for n in names}
    return [f"torchvision/{name}" for name in sorted(names, key=size.__getitem__)]


def timm_names() -> list[str]:
    """The network with fewest parameters of each model file, smallest first."""
    import timm
    import torch

    files: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in timm.list_models():
        entry = timm.model_entrypoint(name)
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            try:
                model = timm.create_model(name, pretrained=False)
            except Exception:  # some cannot be built without data
                continue
        count = sum(p.numel() for p in model.parameters())
        files[entry.__module__.rpartition(".")[2]].append((count, name))
    return [f"timm/{name}" for _, name in sorted(min(found) for found in files.values())]


def measure(name: str, rounds: int = 7) -> dict[str, Any]:
    """One network, in this process; not timed where `rounds` is 0."""
    import torch

    from updp.blocks import find
    from updp.candidates import proposals
    from updp.data import model_input_size
    from updp.measure import compare_modules, count_macs
    from updp.models import load_model
    from updp.recipe import CandidateSettings
    from updp.stages.verify import ROUNDINGS
    from updp.supernet import Supernet

    torch.manual_seed(0)
    model = load_model(name)
    shape = model_input_size(model) or (3, 224, 224)
    x = torch.randn(2, *shape)
    randomise_norms(model, x)
    model.eval()
    findings = find(model, x[:2])
    settings = CandidateSettings(drop="always", fold_norms=True)
    options: dict[str, list] = {}
    for site in findings.sites:
        block, graph = model.get_submodule(site.block), findings.graphs[site.block]
        if found := list(proposals(site, block, graph, settings)):
            options[site.name] = found
    kinds = Counter(
        c.kind for found in options.values() for c in {c.kind: c for c in found}.values()
    )
    result: dict[str, Any] = {
        "name": name,
        "input": list(shape),
        "parameters": sum(p.numel() for p in model.parameters()),
        "blocks": len({site.block for site in findings.sites if site.name in options}),
        "sites": len(options),
        "kinds": dict(kinds),
        "unusable": [vars(u) for u in findings.unusable],
    }
    if not options:
        reasons = Counter(u.reason for u in findings.unusable) or {"no block was found": 1}
        return {**result, "status": "none", "reason": "; ".join(reasons)}

    # Half of those that merge and half of those that can only be kept or dropped.
    names = sorted(options, key=lambda n: all(c.kind in ("drop", "fold") for c in options[n]))
    # The candidate that merges most; and each site's candidates in turn.
    most = {n: ([c for c in options[n] if c.kind != "drop"] or options[n])[-1] for n in names[::2]}
    turn = {n: options[n][i % len(options[n])] for i, n in enumerate(names[1::2] or names)}
    base_macs = count_macs(model, x[:1])
    parts = [("", most), ("_others", turn)]
    if result["parameters"] > LARGE:
        parts, rounds = parts[:1], min(rounds, 3)
    for part, chosen in parts:
        net = Supernet(model, findings, {n: (c,) for n, c in chosen.items()}).eval()
        net.calibrate(x)
        net.choose({n: c.label for n, c in chosen.items()})
        for dtype, limit in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
            error, where, rounding = worst(net, x[:1], dtype)
            key = str(dtype).removeprefix("torch.") + part
            result[key] = error
            if not error <= max(limit, ROUNDINGS * rounding):
                return {**result, "status": "failed", "reason": f"{where}: {key} error {error:.1e}"}
        if not part:
            merged = net.merged()
            if rounds:
                pair = {"baseline": net.baseline().eval(), "merged": merged}
                times = compare_modules(pair, x[:1], rounds=rounds)
                result["speedup"] = times["merged"].speedup.median
            result["pruned"] = len(chosen)
            result["macs"] = base_macs / max(1, count_macs(merged, x[:1]))
        if part != parts[-1][0]:
            model = net.baseline().eval()
            findings = find(model, x[:2])
    return {**result, "status": "exact"}


def randomise_norms(model: Any, x: Any) -> None:
    """BatchNorm statistics near the data's, so that signals survive, but none of them 0 or 1."""
    import torch

    norms = [m for m in model.modules() if hasattr(m, "running_var") and m.running_var is not None]
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
        model(x)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            m.running_var *= torch.rand_like(m.running_var) + 0.5
            m.running_mean += 0.2 * m.running_var.sqrt() * torch.randn_like(m.running_mean)


def worst(net: Any, x: Any, dtype: Any) -> tuple[float, str, float]:
    """The largest relative error of a merged block, or of the logits, where it is, and rounding."""
    from updp.recipe import MergeSettings
    from updp.stages.merge import verify

    settings = MergeSettings(tolerance_float32=1e9, tolerance_float64=1e9)
    checks = verify(net, x, settings, dtypes=(dtype,), sources=("images",))
    check = max(checks, key=lambda c: (c.error != c.error, c.error))
    return check.error, check.where or "logits", check.rounding


def run(name: str) -> dict[str, Any]:
    """One network in a process of its own."""
    start = time.time()
    command = [sys.executable, __file__, "--one", name]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=one_thread
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            result = json.loads(lines[-1])
        else:
            error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            result = {"name": name, "status": "failed", "reason": error[:300]}
    except subprocess.TimeoutExpired:
        result = {"name": name, "status": "failed", "reason": f"longer than {LIMIT_SECONDS} s"}
    return {**result, "seconds": round(time.time() - start, 1)}


def write_table(results: list[dict[str, Any]]) -> None:
    lines = [INTRO]
    for library in ("torchvision", "timm"):
        mine = [r for r in results if r["name"].startswith(library)]
        counts = Counter(r["status"] for r in mine)
        lines += [
            f"## {library}: {counts['exact']} of {len(mine)} exact, {counts['none']} none, "
            f"{counts['failed']} failed",
            "",
            "| network | status | sites | kinds | pruned | MACs | speed-up | float64 | float32 |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for r in mine:
            kinds = ", ".join(f"{k} {n}" for k, n in r.get("kinds", {}).items())
            if r["status"] == "exact":
                f64, f32 = (max(r[k], r.get(f"{k}_others", 0)) for k in ("float64", "float32"))
                row = (
                    f"{r['pruned']} | {r['macs']:.2f} | {r['speedup']:.2f}x | {f64:.0e} | {f32:.0e}"
                )
            else:
                row = f"{r['reason'].replace('|', '/')} | | | |"
            lines.append(
                f"| {r['name'].partition('/')[2]} | {r['status']} | {r.get('sites', '')} | {kinds} "
                f"| {row} |"
            )
        lines.append("")
    TABLE.write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.one:
        with warnings.catch_warnings(action="ignore"):
            print(json.dumps(measure(options.one)))
        return
    if not options.table:
        everything = options.names or [*torchvision_names(), *timm_names()]
        for name in everything:
            if name in (known := load()) and known[name]["status"] != "failed":
                continue
            r = run(name)
            save(r)
            line = (name, r["status"], r.get("sites", ""), r.get("reason", ""), r["seconds"], "s")
            print(*line, flush=True)
    write_table(list(load().values()))


def save(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Add one result to what is there, which other processes may be writing too."""
    from filelock import FileLock

    from updp.io.files import write_json
    from updp.run.records import versions

    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(RESULTS.with_suffix(".lock")):
        results = {**load(), result["name"]: result}
        about = {"machine": f"{platform.machine()}, {platform.system()}", "versions": versions()}
        write_json(RESULTS, {**about, "results": [results[name] for name in sorted(results)]})
    return results


def load() -> dict[str, dict[str, Any]]:
    """What was measured before, by name."""
    known = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    return {r["name"]: r for r in known}


if __name__ == "__main__":
    main()
