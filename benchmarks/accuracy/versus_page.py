"""Page and plots of updp beside other pruners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.common.line_plot import Line, Panel, draw
from benchmarks.common.markdown import quartiles, table
from benchmarks.common.output import Result

OWN = "updp"
INTRO = """# updp beside other pruners, within the same latency

Made by `python -m benchmarks.accuracy.versus`, which says how. Each method prunes to its largest
model that is not slower than a share of the baseline's latency; all are trained alike. Times are of
all models of a network interleaved in one process, median (quartiles) in ms; top-1 in percent on
all test images. The other depth pruners choose among updp's own candidates and are merged by it,
for their own code does not run on these networks. The table's times were taken again when all
models were there, so that some lie a hundredth beyond the share. All figures are from before
repairs were judged (`fit.judged=0`).
"""


def page(results: Sequence[Result]) -> str:
    """The Markdown page, with a table for each network."""
    lines = [INTRO]
    for result in results:
        lines += _network(result)
    return "\n".join(lines)


def _network(result: Result) -> list[str]:
    name, base = result["network"], result["baseline"]
    columns = ("point", "method", "ms", "speed-up", "MACs", "parameters", "learning rate", "top-1")
    rows = [
        (
            f"{row['point']:g}",
            row["method"],
            quartiles(row["ms"]),
            quartiles(row["speedup"]),
            f"{row['macs'] / 1e6:.2f} M",
            f"{row['parameters'] / 1e3:.0f} K",
            f"{row['lr']:g}",
            f"{row['top1']:.2f}",
        )
        for row in sorted(result["rows"], key=lambda row: -row["point"])
    ]
    return [
        f"## {name}; {result['device']}, {result['runtime']}",
        "",
        f"{result['data']}: {result['training_images']} training and {result['test_images']} test "
        f"images, {result['epochs']:g} epochs. The baseline has {base['top1']:.2f} %, "
        f"{base['trained']:.2f} % after the same training, and takes {quartiles(base['ms'])} ms. "
        f"![top-1 over latency](versus-{name}.svg)",
        "",
        *(f"- *{method}*: {about}." for method, about in result["methods"].items()),
        *(f"- Left out: {what} ({why})." for what, why in result["left_out"].items()),
        "",
        *table(columns, rows, ("point", "MACs", "parameters", "learning rate", "top-1")),
        "",
        _summary(result),
        "",
    ]


def _summary(result: Result) -> str:
    """Top-1 of updp minus that of the best other method, point by point."""
    gaps = {}
    for point in sorted({row["point"] for row in result["rows"]}, reverse=True):
        rows = [row for row in result["rows"] if row["point"] == point]
        own = [row["top1"] for row in rows if row["method"] == OWN]
        others = [row["top1"] for row in rows if row["method"] != OWN]
        if own and others:
            gaps[point] = own[0] - max(others)
    if not gaps:
        return "No point that updp and another method reach."
    each = ", ".join(f"{gap:+.2f} at {point:g}" for point, gap in gaps.items())
    return f"updp minus the best other: {each}; mean {mean(gaps.values()):+.2f} points."


def draw_network(result: Result, file: Path) -> None:
    """Draw top-1 over measured milliseconds, a line for each method, and the baseline."""
    base, lines = result["baseline"], []
    for number, method in enumerate(result["methods"]):
        rows = [row for row in result["rows"] if row["method"] == method]
        rows.sort(key=lambda row: row["ms"]["median"])
        if not rows:
            continue
        x, y = [row["ms"]["median"] for row in rows], [row["top1"] for row in rows]
        low, high = ([f(row["seeds"]) for row in rows] for f in (min, max))
        lines.append(Line(method, x, y, low, high, number, dashed=method != OWN))
    for what, name in (("top1", "baseline as it was"), ("trained", "baseline, same training")):
        x, y = [base["ms"]["median"]], [base[what]]
        lines.append(Line(name, x, y, y, y, len(lines)))
    title = f"{result['network']}: {result['epochs']:g} epochs"
    unit = f"ms for a batch ({result['device']}, {result['runtime']})"
    draw([Panel(title, unit, "top-1 (%)", lines)], file)
