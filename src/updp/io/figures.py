"""A log of figures that grows while a stage works, and survives a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from updp.errors import DamagedError, reason, unreadable
from updp.io import processes
from updp.io.files import naming, write_text
from updp.io.tracking import Curves


class Figures:
    """A log of figures, one JSON object per line; `curves` shows the same rows."""

    def __init__(self, path: Path, curves: Curves | None = None) -> None:
        self.path, self.curves = path, curves

    def add(self, **row: Any) -> None:
        """Append a row."""
        if not processes.is_first():
            return
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.curves is not None:
            self.curves.add(row)

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows; only the last may be cut off, by a kill. Raises UserError."""
        try:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error) from error
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                why = f"is damaged in line {number}: {reason(error)}"
                raise DamagedError(self.path, why) from error
            if not isinstance(row, dict):
                raise DamagedError(self.path, f"is damaged in line {number}: it is no row of names")
            rows.append(row)
        return rows

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the rows that are not `wanted`, because a resumed run writes them again."""
        rows = [row for row in self.rows() if wanted(row)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        if self.curves is not None:
            self.curves.restart(rows)
