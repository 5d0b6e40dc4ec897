"""Leaves a sample of a session's mutants, without those of type annotations, which nothing runs.

    python mutants/sample.py SESSION [COUNT]

The sample is the same each time; without a count all mutants stay. A session that has results is
left as it is.
"""

from __future__ import annotations

import ast
import random
import sys
from functools import cache
from pathlib import Path

from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import WorkItem

_Place = tuple[int, int]


@cache
def annotations(file: Path) -> list[tuple[_Place, _Place]]:
    """Where a file's annotations begin and end, as (line, column) pairs."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in found
        if node is not None
    ]


def is_run(item: WorkItem) -> bool:
    """Whether the mutated text is no annotation."""
    (change,) = item.mutations
    return not any(
        begin <= change.start_pos and change.end_pos <= end
        for begin, end in annotations(Path(change.module_path))
    )


def main(session: str, count: str | None = None) -> None:
    """Leave `count` mutants in the session, or all that are run."""
    with use_db(session) as db:
        if db.num_results:
            return
        kept = sorted(filter(is_run, db.work_items), key=lambda i: str(i.mutations))
        everything = len(kept)
        if count is not None and int(count) < everything:
            kept = random.Random(0).sample(kept, int(count))
        db.clear()
        db.add_work_items(kept)
    print(f"{len(kept)} of {everything} mutants")


if __name__ == "__main__":
    main(*sys.argv[1:])
