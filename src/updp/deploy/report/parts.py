"""Parts of a report other than plots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from updp.deploy.report.plot import Plot


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: tuple[int, ...] = (0,)  # columns of text, aligned left; the others are numbers


_ROWS = 60  # maximum number of rows per series


def list_marks(plot: Plot) -> Table | None:
    """The marks of a plot as a table, for readers who cannot see them or point at them.

    A long curve is thinned out; a cloud with very many marks is left out. None if nothing is left,
    or if the page has the figures elsewhere.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for series in plot.series if plot.listed else ():
        every = math.ceil(len(series.marks) / _ROWS)
        if every > 1 and not series.line:
            continue
        for mark in series.marks[::-1][::every][::-1]:  # includes the last one
            first, *lines = mark.text.split("\n")
            values = dict(line.split(": ", 1) for line in lines if ": " in line)
            found.append((f"{series.name}: {first}", values))
    names = list(dict.fromkeys(name for _, values in found for name in values))
    rows = [(name, *(values.get(n, "") for n in names)) for name, values in found]
    return Table(plot.title, ("", *names), rows) if rows else None


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; `key` is its anchor."""

    key: str
    title: str
    texts: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    name: str
    value: str
    lines: Sequence[str]
    unsure: bool = False  # whether the figure is within the noise of the baseline's


@dataclass(frozen=True)
class Head:
    """The headline: model, data, and the claim."""

    model: str
    data: str
    title: str
    sentence: str
    cards: Sequence[Card]
