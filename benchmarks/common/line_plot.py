"""Line plots as SVG; each line is labelled at its last point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from updp.io.files import write_bytes

COLOURS = ("#0b6e99", "#d1495b", "#4f772d", "#7b4fa3", "#b5651d", "#333333", "#c2185b", "#00897b")


@dataclass(frozen=True)
class Line:
    """A labelled line through (x, y), with a shaded band from `low` to `high`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `ticks` are x positions with their labels, automatic if None."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    ticks: dict[float, str] | None = None


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Write the panels side by side as an SVG file; equal lines give an equal file."""
    figure = Figure(figsize=(5.6 * len(panels), 4), facecolor="white")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_facecolor("white")
        for line in panel.lines:
            colour = COLOURS[line.colour % len(COLOURS)]
            style = "--" if line.dashed else "-"
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(line.x, line.y, style, marker="o", markersize=3.5, color=colour)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        if panel.ticks:
            axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _label(axes, [line for line in panel.lines if line.x])
    figure.tight_layout()
    save(figure, file)


def save(figure: Figure, file: Path) -> None:
    """Write a figure as SVG, without the date and random identifiers that differ each time."""
    data = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "updp"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_bytes(file, data.getvalue())


def _label(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name to the right of its last point; overlapping names are moved apart."""
    if not lines:
        return
    low, high = axes.get_ylim()
    gap, right = (high - low) / 20, max(max(line.x) for line in lines)
    left = min(min(line.x) for line in lines)
    places = spread_out([line.y[-1] for line in lines], gap)
    width = (right - left) or 1.0
    for line, place in zip(lines, places, strict=True):
        axes.annotate(
            line.name,
            (line.x[-1], line.y[-1]),
            (right + 0.04 * width, place),
            color=COLOURS[line.colour % len(COLOURS)],
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "0.6"},
        )
    axes.set_xlim(left - 0.05 * width, right + 0.45 * width)


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near the wanted ones, in the same order, at least `gap` apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    sorted_places = [wanted[i] for i in order]
    for _ in range(200):  # neighbours push each other apart until nothing moves
        for i in range(len(sorted_places) - 1):
            if (short := gap - (sorted_places[i + 1] - sorted_places[i])) > 1e-9:
                sorted_places[i] -= short / 2
                sorted_places[i + 1] += short / 2
    places = [0.0] * len(wanted)
    for i, place in zip(order, sorted_places, strict=True):
        places[i] = place
    return places
