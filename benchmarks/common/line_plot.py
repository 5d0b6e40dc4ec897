"""Line plots with each line's name at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from updp.io.files import write_bytes

COLOURS = ("#0b6e99", "#d1495b", "#4f772d", "#7b4fa3", "#b5651d", "#333333", "#c2185b", "#00897b")


@dataclass(frozen=True)
class Line:
    """Points (x, y) of one name; `low` and `high` are a band around y."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `ticks` name places on x."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    ticks: dict[float, str] | None = None


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Write an SVG; the same lines give the same file."""
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
    data = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "updp"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_bytes(file, data.getvalue())


def _label(axes: object, lines: Sequence[Line]) -> None:
    """Names right of the last points, moved apart where they would overlap."""
    if not lines:
        return
    low, high = axes.get_ylim()  # type: ignore[attr-defined]
    gap, right = (high - low) / 20, max(max(line.x) for line in lines)
    left = min(min(line.x) for line in lines)
    places = spread([line.y[-1] for line in lines], gap)
    width = (right - left) or 1.0
    for line, place in zip(lines, places, strict=True):
        axes.annotate(  # type: ignore[attr-defined]
            line.name,
            (line.x[-1], line.y[-1]),
            (right + 0.04 * width, place),
            color=COLOURS[line.colour % len(COLOURS)],
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "0.6"},
        )
    axes.set_xlim(left - 0.05 * width, right + 0.45 * width)  # type: ignore[attr-defined]


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places near the wanted ones, in their order, no two closer than the gap."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [wanted[i] for i in order]
    for _ in range(200):  # neighbours push each other apart
        for i in range(len(places) - 1):
            if (short := gap - (places[i + 1] - places[i])) > 1e-9:
                places[i] -= short / 2
                places[i + 1] += short / 2
    found = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        found[i] = place
    return found
