"""The table and the plot of the ablation."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from methods import METHODS, WHOLE
from pictures import Line, Panel, draw

INTRO = """# Ways of making and training pruned blocks, compared

Made by `python benchmarks/ablation.py`, which says how. All methods prune the same sites of a
network to the same shapes; top-1 in percent of the merged model on all test images, mean and
standard deviation over seeds. Before training (0 epochs) a method is what it starts from.
"""


def table(results: list[dict[str, Any]]) -> str:
    """All networks."""
    lines = [INTRO, *(f"- *{m.name}*: {m.about}." for m in METHODS.values()), ""]
    for result in results:
        lines += _network(result)
    return "\n".join(lines)


def _network(result: dict[str, Any]) -> list[str]:
    name, lines = result["network"], []
    epochs = sorted({row["epochs"] for row in result["rows"]})
    for blocks in sorted({row["blocks"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["blocks"] == blocks]
        plan = result["plans"][str(blocks)]
        lines += [
            f"## {name}, {blocks} blocks pruned",
            "",
            f"{result['data']}: {result['training_images']} training and {result['test_images']} "
            f"test images; {result['device']}. The baseline has {result['baseline']:.2f} %. Plan: "
            + ", ".join(f"{site} to `{label}`" for site, label in plan.items())
            + f". ![curves](ablation-{name}.svg)",
            "",
            f"| method | distilled | {' | '.join(f'{e:g} epochs' for e in epochs)} "
            "| learning rates |",
            f"| --- | --- |{' ---: |' * len(epochs)} --- |",
        ]
        for method, distill in _kinds(rows):
            cells = [_of(rows, method, distill, e) for e in epochs]
            rates = [f"{cell[0]['lr']:g}" for cell in cells if cell and cell[0]["epochs"]]
            values = " | ".join(_value(cell) for cell in cells)
            lines.append(f"| {method} | {distill} | {values} | {', '.join(rates)} |")
        lines.append("")
    return lines


def _kinds(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Methods, each with distillation and without, as far as they were trained."""
    found = {(row["method"], row["distill"]) for row in rows if row["epochs"]}
    if not found:
        found = {(row["method"], "no") for row in rows}
    order = list(METHODS)
    return sorted(found, key=lambda kind: (kind[1] == "no", order.index(kind[0])))


def _of(
    rows: list[dict[str, Any]], method: str, distill: str, epochs: float
) -> list[dict[str, Any]]:
    """The rows of a cell; before training, those of the method's start."""
    if not epochs:
        start = METHODS[method].untrained
        return [r for r in rows if not r["epochs"] and r["method"] == start]
    kind = (method, distill, epochs)
    return [r for r in rows if (r["method"], r["distill"], r["epochs"]) == kind]


def _value(cell: list[dict[str, Any]]) -> str:
    values = [row["top1"] for row in cell]
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def draw_network(result: dict[str, Any], file: Path) -> None:
    """Top-1 over epochs, a line for each method; dashed without distillation."""
    epochs = sorted({row["epochs"] for row in result["rows"]})
    panels = []
    for blocks in sorted({row["blocks"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["blocks"] == blocks]
        lines = []
        for method, distill in _kinds(rows):
            cells = [(i, _of(rows, method, distill, e)) for i, e in enumerate(epochs)]
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
