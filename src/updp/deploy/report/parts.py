"""Parts of a report besides plots."""

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


_ROWS = 60  # of one series


def list_marks(plot: Plot) -> Table | None:
    """The marks of a plot as a table, for those who cannot see or point at them.

    Of a long curve every so many steps are listed; a cloud of very many marks is not. None where
    nothing would be listed, or the page has the figures elsewhere.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for series in plot.series if plot.listed else ():
        every = math.ceil(len(series.marks) / _ROWS)
        if every > 1 and not series.line:
            continue
        for mark in series.marks[::-1][::every][::-1]:  # the last one is among them
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
    unsure: bool = False  # it cannot be told from the baseline's


@dataclass(frozen=True)
class Head:
    """The headline: of which model, on which data, and what is claimed."""

    model: str
    data: str
    title: str
    sentence: str
    cards: Sequence[Card]
