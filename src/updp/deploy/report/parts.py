"""What a page is made of, besides plots."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from updp.deploy.report.plot import Plot


@dataclass(frozen=True)
class Table:
    """The first column names the row; those in `left` hold text and the others numbers."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    key: str
    title: str
    texts: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = field(default=())


@dataclass(frozen=True)
class Card:
    """A headline figure; `unsure` where it cannot be told from the baseline's."""

    name: str
    value: str
    lines: Sequence[str]
    unsure: bool = False


@dataclass(frozen=True)
class Head:
    """The headline."""

    title: str
    sentence: str
    cards: Sequence[Card]
