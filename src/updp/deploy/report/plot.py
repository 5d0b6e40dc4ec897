"""Plots as data: axes with ticks, series of marks, and their coordinates in the drawing.

A template draws them as SVG; docs/guides/report.md says why no plotting library does.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

_CHARACTER = 6.4  # width of a text character, in units of the drawing


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; `names`, if any, are at 0, 1, ..."""

    label: str
    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()

    def place(self, value: float) -> float:
        """The position on the axis: 0 at `low`, 1 at `high`."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(v) for v in (value, low, high))
        return (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Values of the ticks and their text."""
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        if self.log:
            return _decades(self.low, self.high)
        step = _step((self.high - self.low) / 6)
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        values = [min(max((first + i) * step, self.low), self.high) for i in range(count)]
        return [(v, f"{v + 0.0:.{places}f}".replace("-", "−")) for v in values]


def linear(label: str, values: Iterable[float], *, room: float = 0.06) -> Axis:
    """A linear axis over the finite `values`, extended at each end by a share of their range."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    top = max(abs(low), abs(high))
    extra = (high - low) * room
    if high - low <= max(1e-6 * top, 1e-12):  # equal up to rounding: all ticks would read the same
        extra = 0.05 * top if top > 1e-9 else 1.0
    return Axis(label, low - extra, high + extra)


def logarithmic(label: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis over the finite, positive `values`; it covers at least a factor of 2."""
    known = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = min(known), max(known)
    extra = max((high / low) ** 0.06, 2**0.5 if high / low < 2 else 1.0)
    return Axis(label, low / extra, high * extra, log=True)


def named(names: Sequence[str]) -> Axis:
    """An axis with a row per name; long names lose their middle."""
    return Axis("", -0.6, len(names) - 0.4, names=tuple(map(shortened, names)))


@dataclass(frozen=True)
class Mark:
    """A point; its text appears on hovering."""

    x: float
    y: float
    text: str
    along: tuple[float, float] | None = None  # ends of an error bar in x
    across: tuple[float, float] | None = None  # ends of an error bar in y


@dataclass(frozen=True)
class Series:
    """Marks with the same look."""

    name: str
    style: str  # CSS class of the colour
    marks: tuple[Mark, ...]
    line: bool = False  # whether a line joins the marks
    dots: bool = True  # whether the marks are drawn
    shape: str = "dot"  # dot, ring, diamond, star


@dataclass(frozen=True)
class Plot:
    """A plot; sizes and coordinates are in units of the drawing, from its upper left corner."""

    width: ClassVar[float] = 460
    right: ClassVar[float] = width - 14.0  # end of the x axis

    key: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""
    guide: tuple[float, float, float, float] | None = None  # a line, in values: x1, y1, x2, y2
    tall: int = 290
    listed: bool = True  # whether to list the marks in a table; not if the page has one anyway

    @property
    def left(self) -> float:
        """Start of the x axis, with room for the longest tick label of the y axis."""
        longest = max(len(text) for _, text in self.y.ticks())
        return longest * _CHARACTER + (14 if self.y.names else 34)

    @property
    def bottom(self) -> float:
        """Start of the y axis, above ticks and label of the x axis."""
        return self.tall - 42.0

    def at_x(self, value: float) -> float:
        """Horizontal coordinate of a value."""
        return round(self.left + self.x.place(value) * (self.right - self.left), 1)

    def at_y(self, value: float) -> float:
        """Vertical coordinate of a value: numbers grow upwards, rows of names downwards."""
        place = self.y.place(value)
        return round(10 + (place if self.y.names else 1 - place) * (self.bottom - 10), 1)

    def drawn(self, series: Series) -> list[Mark]:
        """The marks that can be drawn: finite, and positive on a logarithmic axis."""
        return [m for m in series.marks if _fits(self.x, m.x) and _fits(self.y, m.y)]

    def path(self, series: Series) -> str:
        """The line through the marks as an SVG path; empty for fewer than two marks."""
        points = [f"{self.at_x(m.x)} {self.at_y(m.y)}" for m in self.drawn(series)]
        return "M" + "L".join(points) if len(points) > 1 else ""

    def bar(self, ends: tuple[float, float], *, vertical: bool) -> tuple[float, float]:
        """Coordinates of an error bar's ends, clipped to the axis."""
        axis = self.y if vertical else self.x
        low, high = (min(max(end, axis.low), axis.high) for end in ends)
        return (self.at_y(low), self.at_y(high)) if vertical else (self.at_x(low), self.at_x(high))


def shortened(text: str, most: int = 24) -> str:
    """Shorten a text to at most `most` characters by cutting out its middle."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _fits(axis: Axis, value: float) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _step(least: float) -> float:
    """The smallest round number (1, 2 or 5 times a power of ten) that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= least * (1 - 1e-9))


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: powers of ten; on short ranges also 2 and 5 times these."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    every = max(1, (last - first) // 6 + 1)
    powers = range(first, last + 1)
    factors = (1,) if len(powers) > 2 else (1, 2, 5)
    found = [
        m * 10.0**p
        for p in range(first - 1, last + 1)
        for m in factors
        if low <= m * 10.0**p <= high and (len(factors) > 1 or p % every == 0)
    ]
    if len(found) < 2:
        found = [low * (high / low) ** part for part in (0.1, 0.5, 0.9)]
    return [(v, f"{v:.3g}" if 1e-3 <= v < 1e4 else f"{v:.0e}") for v in found]
