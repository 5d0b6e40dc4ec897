"""A plot as data: axes with ticks, series of marks, and where each lies in the drawing.

The template draws it as SVG: a few kilobytes in the page's own colours, light, dark and on paper,
which works without a script. See docs/report.md for why it is not a library's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH, CHARACTER = 460, 6.4  # units of the drawing; a character of its text is so wide


@dataclass(frozen=True)
class Axis:
    """A line of numbers from `low` to `high`; `names` stand at 0, 1, ... instead of ticks."""

    label: str
    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            value, low, high = (math.log10(v) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their text."""
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
    """An axis that holds the finite ones of `values`, with some room at the ends."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    top = max(abs(low), abs(high))
    extra = (high - low) * room
    if high - low <= max(1e-6 * top, 1e-12):  # as good as equal: numbers have so many digits
        extra = 0.05 * top if top > 1e-9 else 1.0
    return Axis(label, low - extra, high + extra)


def logarithmic(label: str, values: Iterable[float]) -> Axis:
    """The same for the positive ones, at least a factor of two."""
    known = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = min(known), max(known)
    extra = max((high / low) ** 0.06, 2**0.5 if high / low < 2 else 1.0)
    return Axis(label, low / extra, high * extra, log=True)


def named(names: Sequence[str]) -> Axis:
    """A row for each name."""
    return Axis("", -0.6, len(names) - 0.4, names=tuple(names))


@dataclass(frozen=True)
class Mark:
    """A point with its text for hovering; `across` and `along` are ends of its error bars."""

    x: float
    y: float
    text: str
    along: tuple[float, float] | None = None  # in x
    across: tuple[float, float] | None = None  # in y


@dataclass(frozen=True)
class Series:
    """Marks of one look: `style` is the class of their colour, `line` joins them."""

    name: str
    style: str
    marks: tuple[Mark, ...]
    line: bool = False
    dots: bool = True
    shape: str = "dot"  # dot, ring, diamond, star


@dataclass(frozen=True)
class Plot:
    """`guide` is a line without marks, such as the diagonal, in values: x1, y1, x2, y2."""

    key: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""
    guide: tuple[float, float, float, float] | None = None
    tall: int = 290
    width: int = field(default=WIDTH)

    @property
    def left(self) -> float:
        """Where the axes begin, by the longest text beside them."""
        longest = max(len(shortened(text)) for _, text in self.y.ticks())
        return longest * CHARACTER + (14 if self.y.names else 34)

    @property
    def right(self) -> float:
        """Where they end."""
        return self.width - 14.0

    @property
    def bottom(self) -> float:
        """The lower end, above ticks and label."""
        return self.tall - 42.0

    def at_x(self, value: float) -> float:
        """Units from the left."""
        return round(self.left + self.x.place(value) * (self.right - self.left), 1)

    def at_y(self, value: float) -> float:
        """Units from the top: values rise, names fall."""
        place = self.y.place(value)
        return round(10 + (place if self.y.names else 1 - place) * (self.bottom - 10), 1)

    def drawn(self, series: Series) -> list[Mark]:
        """Its marks that can be drawn: finite, and positive on a logarithm."""
        return [m for m in series.marks if _fits(self.x, m.x) and _fits(self.y, m.y)]

    def path(self, series: Series) -> str:
        """Its line, as SVG has it."""
        places = [f"{self.at_x(m.x)} {self.at_y(m.y)}" for m in self.drawn(series)]
        return "M" + "L".join(places) if len(places) > 1 else ""

    def bar(self, ends: tuple[float, float], *, vertical: bool) -> tuple[float, float]:
        """Where an error bar begins and ends, within the axes."""
        axis = self.y if vertical else self.x
        low, high = (min(max(end, axis.low), axis.high) for end in ends)
        return (self.at_y(low), self.at_y(high)) if vertical else (self.at_x(low), self.at_x(high))


def shortened(text: str, most: int = 24) -> str:
    """At most so many characters, the middle left out."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _fits(axis: Axis, value: float) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _step(least: float) -> float:
    """The round number (1, 2, 5 times a power of ten) from `least` on."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= least * (1 - 1e-9))


def _decades(low: float, high: float) -> list[tuple[float, str]]:
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
