"""Parts of a report besides plots."""

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
