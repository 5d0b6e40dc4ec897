"""What updp can do with networks that it was not written for.

Networks of other libraries (`benchmarks.coverage.libraries`), at random weights with random
BatchNorm statistics: which sites are found; half of them are pruned, merged and verified in float64
and float32, block by block and end to end. Then the other half, with other candidates, is verified
too (of networks up to 25 M parameters). A network is *exact*, *none* (no block can be pruned, with
the reason), *failed*, or *unusable*: it does not run here by itself.

    python -m benchmarks.coverage.model_zoo                      # all that is missing or has failed
    python -m benchmarks.coverage.model_zoo torchvision timm     # all of two libraries
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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from filelock import FileLock

from benchmarks.common.data import ROOT
from benchmarks.common.markdown import table
from benchmarks.common.output import Output, Result, make_parser
from benchmarks.coverage.libraries import LIBRARIES

INTRO = """# Coverage

Made by `python -m benchmarks.coverage.model_zoo`: random weights, random BatchNorm statistics, half
of the sites pruned; one CPU thread, batch 1, on a machine that did other work too, so the speed-ups
that were timed are rough. *exact*: merged equals trained; relative error, of every merged block and
of the outputs, at most 1e-12 in float64 and 1e-5 in float32, or 4 times what the unmerged network
itself loses in that precision. Each site takes the last candidate proposed that keeps an operator,
for the check's sake; that is not the fastest one: docs/results/speed.md is about speed. *none*: no
block can be pruned. *unusable*: it does not run by itself, with these versions of the libraries.
"""
LIMIT_SECONDS = 1800
TIMED = ("torchvision", "timm")  # libraries whose networks are timed
LONG = 200  # networks of a library above which the page lists only those that are not exact
DROPS = {"drop", "fold"}  # kinds of candidates that leave no operator of ours


def measure_apart(name: str) -> Result:
    """Measure one network in a process of its own; a crash or a time-out is a failure."""
    start = time.time()
    command = [sys.executable, "-m", "benchmarks.coverage.network", name]
    if name.partition("/")[0] not in TIMED:
        command += ["--rounds", "0"]
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
    for name, library in LIBRARIES.items():
        own = [r for r in networks if r["name"].partition("/")[0] == name]
        if not own:
            continue
        counts = Counter(r["status"] for r in own)
        shown = [r for r in own if r["status"] != "exact"] if len(own) > LONG else own
        lines += [f"## {library.title}", "", _summary(counts, own), ""]
        lines += [*table(columns, map(_row, shown)), ""]
    return "\n".join(lines)


def _summary(counts: Counter[str], results: list[Result]) -> str:
    """How many are what, of those that run; and what the exact ones consist of."""
    usable = len(results) - counts["unusable"]
    versions = sorted({r["version"] for r in results if "version" in r})
    merged = sum(r["status"] == "exact" and bool({*r["kinds"]} - DROPS) for r in results)
    parts = [f"{counts['exact']} of {usable} exact ({merged} of these keep an operator at a site)"]
    parts += [f"{counts[s]} {s}" for s in ("none", "failed", "unusable") if counts[s]]
    return ", ".join(parts) + (f"; version {', '.join(versions)}." if versions else ".")


def _row(result: Result) -> tuple[object, ...]:
    kinds = ", ".join(f"{kind} {count}" for kind, count in result.get("kinds", {}).items())
    name = result["name"].partition("/")[2]
    row = (name, result["status"], result.get("sites", ""), kinds)
    if result["status"] != "exact":
        return (*row, result["reason"], "", "", "", "")
    errors = (max(result[k], result.get(f"{k}_others", 0)) for k in ("float64", "float32"))
    timed = f"{result['speedup']:.2f}x" if "speedup" in result else ""
    ratios = f"{result['macs']:.2f}", timed
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


def networks(names: Iterable[str]) -> Iterator[str]:
    """Networks by their names; the name of a library stands for all of its networks."""
    for name in names:
        library, _, network = name.partition("/")
        of_library = [network] if network else LIBRARIES[library].names()
        yield from (f"{library}/{one}" for one in of_library)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("names", nargs="*", help="LIBRARY or LIBRARY/NETWORK; default: all")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    output = options.output
    if not options.page:
        for name in networks(options.names or list(LIBRARIES)):
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
