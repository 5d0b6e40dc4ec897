"""Markdown tables of the pages in docs/results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[str] = ()
) -> list[str]:
    """Lines of a table; the columns named in `right` are aligned to the right.

    A cell is its text; a pipe in it becomes a slash. Raises ValueError for a row of another length.
    """
    lines = [_line(columns), _line("---:" if name in right else "---" for name in columns)]
    for row in rows:
        cells = [str(cell).replace("|", "/") for cell in row]
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells for {len(columns)} columns: {cells}")
        lines.append(_line(cells))
    return lines


def quartiles(timing: Mapping[str, float], unit: str = "") -> str:
    """A median with its quartiles, such as `1.27x (1.26-1.29)`."""
    return f"{timing['median']:.2f}{unit} ({timing['low']:.2f}-{timing['high']:.2f})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
