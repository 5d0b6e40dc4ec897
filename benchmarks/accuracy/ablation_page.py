"""Page and plots of the ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.accuracy.methods import METHODS, WHOLE
from benchmarks.accuracy.trials import Row
from benchmarks.common.line_plot import Line, Panel, draw
from benchmarks.common.markdown import table
from benchmarks.common.output import Result

INTRO = """# Ways of making and training pruned blocks, compared

Made by `python -m benchmarks.accuracy.ablation`, which says how. All methods prune the same sites
of a network to the same shapes; top-1 in percent of the merged model on all test images, mean and
standard deviation over seeds. Before training (0 epochs) a method is what it starts from.
"""


def page(results: Sequence[Result]) -> str:
    """The Markdown page, with a table for each network and number of blocks."""
    lines = [INTRO, *(f"- *{m.name}*: {m.about}." for m in METHODS.values()), ""]
    for result in results:
        lines += _network(result)
    return "\n".join(lines)


def _network(result: Result) -> list[str]:
    name, lines = result["network"], []
    epochs = sorted({row["epochs"] for row in result["rows"]})
    titles = [f"{e:g} epochs" for e in epochs]
    for blocks in sorted({row["blocks"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["blocks"] == blocks]
        plan = result["plans"][str(blocks)]
        table_rows = []
        for method, distill in _trainings(rows):
            cells = [_cell(rows, method, distill, e) for e in epochs]
            rates = [f"{cell[0]['lr']:g}" for cell in cells if cell and cell[0]["epochs"]]
            table_rows.append((method, distill, *map(_accuracy, cells), ", ".join(rates)))
        lines += [
            f"## {name}, {blocks} blocks pruned",
            "",
            f"{result['data']}: {result['training_images']} training and {result['test_images']} "
            f"test images; {result['device']}. The baseline has {result['baseline']:.2f} %. Plan: "
            + ", ".join(f"{site} to `{label}`" for site, label in plan.items())
            + f". ![curves](ablation-{name}.svg)",
            "",
            *table(("method", "distilled", *titles, "learning rates"), table_rows, titles),
            "",
        ]
    return lines


def _trainings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Methods, each with and without distillation, that were trained; distilled ones first."""
    trained = {(row["method"], row["distill"]) for row in rows if row["epochs"]}
    if not trained:
        trained = {(row["method"], "no") for row in rows}
    order = list(METHODS)
    return sorted(trained, key=lambda pair: (pair[1] == "no", order.index(pair[0])))


def _cell(rows: Sequence[Row], method: str, distill: str, epochs: float) -> list[Row]:
    """The rows of all seeds; before training, those of the method's start."""
    if not epochs:
        start = METHODS[method].untrained
        return [r for r in rows if not r["epochs"] and r["method"] == start]
    key = (method, distill, epochs)
    return [r for r in rows if (r["method"], r["distill"], r["epochs"]) == key]


def _accuracy(cell: Sequence[Row]) -> str:
    """Mean top-1 and its standard deviation over seeds."""
    values = [row["top1"] for row in cell]
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def draw_network(result: Result, file: Path) -> None:
    """Draw top-1 over epochs, a line for each method; dashed without distillation."""
    epochs = sorted({row["epochs"] for row in result["rows"]})
    panels = []
    for blocks in sorted({row["blocks"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["blocks"] == blocks]
        lines = []
        for method, distill in _trainings(rows):
            cells = [(i, _cell(rows, method, distill, e)) for i, e in enumerate(epochs)]
            found = [(i, [row["top1"] for row in cell]) for i, cell in cells if cell]
            if not any(epochs[i] for i, _ in found) and any(epochs):
                continue
            lines.append(
                Line(
                    method + (" (labels alone)" if distill == "no" else ""),
                    [i for i, _ in found],
                    [mean(values) for _, values in found],
                    [min(values) for _, values in found],
                    [max(values) for _, values in found],
                    list(METHODS).index(method),
                    dashed=distill == "no" or method == WHOLE,
                )
            )
        title = f"{result['network']}: {blocks} blocks pruned"
        ticks = {float(i): f"{e:g}" for i, e in enumerate(epochs)}
        panels.append(Panel(title, "epochs of training", "top-1 (%)", lines, ticks))
    draw(panels, file)
