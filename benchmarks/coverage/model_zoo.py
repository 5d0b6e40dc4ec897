"""What updp can do with networks that it was not written for.

Every torchvision classifier, and of every model file of timm its smallest network, at random
weights with random BatchNorm statistics: which sites are found; half of them are pruned, merged and
verified in float64 and float32, block by block and end to end; how much faster the merged model is.
Then the other half, with other candidates, is verified too (of networks up to 25 M parameters). A
network is *exact*, *none* (no block can be pruned, with the reason) or *failed*.

    python -m benchmarks.coverage.model_zoo                      # all that is missing or has failed
    python -m benchmarks.coverage.model_zoo timm/convnext_atto torchvision/vgg11_bn
    python -m benchmarks.coverage.model_zoo --page               # only write the page again
    python -m benchmarks.coverage.model_zoo timm/test_resnet --output DIR

Each network has a process of its own (`benchmarks.coverage.network`), with a time limit. Results:
results/coverage.json, docs/results/coverage.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import timm
import torch
from filelock import FileLock
from torchvision import models

from benchmarks.common.data import ROOT
from benchmarks.common.markdown import table
from benchmarks.common.output import Output, Result, make_parser

INTRO = """# Coverage

Made by `python -m benchmarks.coverage.model_zoo`: random weights, random BatchNorm statistics, half
of the sites pruned; one CPU thread, batch 1, on a machine that did other work too, so speed-ups are
rough. *exact*: merged equals trained; relative error, of every merged block and of the logits, at
most 1e-12 in float64 and 1e-5 in float32, or 4 times what the unmerged network itself loses in that
precision. Each site takes the last candidate proposed that keeps an operator, for the check's sake;
that is not the fastest one: docs/results/speed.md is about speed.
"""
LIMIT_SECONDS = 1800


def torchvision_names() -> list[str]:
    """Every classifier of torchvision, smallest first."""
    names = models.list_models(module=models)
    size = {n: models.get_model_weights(n).DEFAULT.meta["num_params"] for n in names}
    return [f"torchvision/{name}" for name in sorted(names, key=size.__getitem__)]


def timm_names() -> list[str]:
    """The network with fewest parameters of each of timm's model files, smallest first."""
    files: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in timm.list_models():
        entry = timm.model_entrypoint(name)
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            try:
                model = timm.create_model(name, pretrained=False)
            except Exception:  # some compute values while they are built: not on the meta device
                continue
        count = sum(p.numel() for p in model.parameters())
        files[entry.__module__.rpartition(".")[2]].append((count, name))
    return [f"timm/{name}" for _, name in sorted(min(of_file) for of_file in files.values())]


def measure_apart(name: str) -> Result:
    """Measure one network in a process of its own; a crash or a time-out is a failure."""
    start = time.time()
    command = [sys.executable, "-m", "benchmarks.coverage.network", name]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=one_thread, cwd=ROOT
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


def page(results: Iterable[Result]) -> str:
    """The Markdown page, with a table for each library."""
    lines = [INTRO]
    figures = ("pruned", "MACs", "speed-up", "float64", "float32")
    columns = ("network", "status", "sites", "kinds", *figures)
    networks = list(results)
    for library in ("torchvision", "timm"):
        own = [r for r in networks if r["name"].startswith(library)]
        counts = Counter(r["status"] for r in own)
        title = (
            f"## {library}: {counts['exact']} of {len(own)} exact, {counts['none']} none, "
            f"{counts['failed']} failed"
        )
        lines += [title, "", *table(columns, map(_row, own)), ""]
    return "\n".join(lines)


def _row(result: Result) -> tuple[object, ...]:
    kinds = ", ".join(f"{kind} {count}" for kind, count in result.get("kinds", {}).items())
    name = result["name"].partition("/")[2]
    row = (name, result["status"], result.get("sites", ""), kinds)
    if result["status"] != "exact":
        return (*row, result["reason"], "", "", "", "")
    errors = (max(result[k], result.get(f"{k}_others", 0)) for k in ("float64", "float32"))
    ratios = f"{result['macs']:.2f}", f"{result['speedup']:.2f}x"
    return (*row, result["pruned"], *ratios, *(f"{error:.0e}" for error in errors))


def load(output: Output) -> dict[str, Result]:
    """Results that were measured before, by network."""
    return {r["name"]: r for file in output.read("coverage") for r in file["results"]}


def save(output: Output, result: Result) -> None:
    """Add one result to the file, which other processes may be writing too."""
    output.results.mkdir(parents=True, exist_ok=True)
    with FileLock(output.results / "coverage.lock"):
        results = {**load(output), result["name"]: result}
        machine = f"{platform.machine()}, {platform.system()}"
        rows = [results[name] for name in sorted(results)]
        output.write("coverage", {"machine": machine, "results": rows})


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    output = options.output
    if not options.page:
        for name in options.names or [*torchvision_names(), *timm_names()]:
            known = load(output)
            if name in known and known[name]["status"] != "failed":
                continue
            result = measure_apart(name)
            save(output, result)
            figures = result["status"], result.get("sites", ""), result.get("reason", "")
            print(name, *figures, result["seconds"], "s", flush=True)
    output.write_page("coverage", page(load(output).values()))


if __name__ == "__main__":
    main()
